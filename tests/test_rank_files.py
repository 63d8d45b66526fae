"""Rank files: real ones of each kind give the bytes of their publishers, and a malformed line is named."""

from __future__ import annotations

import ast
import base64
import contextlib
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import assets
from conftest import needs_assets
from dskd import Aligner, Kind, Vocabulary

RANK_FILES = {
    "tekken": "tekken.json",
    "qwen": "qwen.tiktoken",
    "cl100k": "cl100k.tiktoken",
    "o200k": "o200k.tiktoken",
    "rwkv": "rwkv_vocab_v20230424.txt",
}


@functools.cache
def path_of(name: str) -> Path:
    return needs_assets(lambda: assets.tokenizer(name)) / RANK_FILES[name]


@functools.cache
def vocabulary_of(name: str) -> Vocabulary:
    return Vocabulary.from_file(path_of(name))


def written(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "vocabulary.txt"
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def tekken(folder: Path, **changes: Any) -> Path:
    """A small tekken.json: two special tokens, and `a`, `b`, `ab` of which the last is cut off."""
    contents: dict[str, Any] = {
        "config": {"default_vocab_size": 4, "default_num_special_tokens": 2, "pattern": "."},
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate([b"a", b"b", b"ab"])
        ],
    }
    path = folder / "tekken.json"
    path.write_text(json.dumps({**contents, **changes}), encoding="utf-8")
    return path


# ---- Real files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen", "cl100k", "o200k"])
def test_a_tiktoken_file_gives_the_bytes_of_its_lines(name: str) -> None:
    vocabulary = vocabulary_of(name)
    lines = path_of(name).read_bytes().splitlines()
    assert len(lines) > 100_000
    for line in lines:
        token, rank = line.split()
        assert vocabulary.token_bytes(int(rank)) == base64.b64decode(token)
    assert vocabulary.size == 1 + max(int(line.split()[1]) for line in lines)


def test_tekken_ranks_stand_behind_the_special_tokens_and_are_cut_to_the_model() -> None:
    contents = json.loads(path_of("tekken").read_bytes())
    vocabulary = vocabulary_of("tekken")
    assert vocabulary.size == contents["config"]["default_vocab_size"] == 131_072
    assert {vocabulary.kind(token_id) for token_id in range(1000)} == {Kind.SPECIAL, Kind.OPAQUE}
    for entry in contents["vocab"][: 131_072 - 1000]:
        assert vocabulary.token_bytes(1000 + entry["rank"]) == base64.b64decode(entry["token_bytes"])


def test_tekken_names_its_roles() -> None:
    roles = vocabulary_of("tekken").roles
    assert [roles[token_id] for token_id in (0, 1, 2, 3, 11, 999)] == [
        {"unk"},
        {"bos", "<s>"},
        {"eos", "</s>"},
        {"[INST]"},
        {"pad"},
        set(),
    ]


def test_an_rwkv_vocabulary_gives_the_bytes_of_its_literals() -> None:
    vocabulary = vocabulary_of("rwkv")
    lines = path_of("rwkv").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(lines) == 65_529
    for line in lines:
        token_id, literal, length = line[: line.index(" ")], line[line.index(" ") : line.rindex(" ")], line
        value = ast.literal_eval(literal.strip())
        token = value if isinstance(value, bytes) else value.encode()
        assert vocabulary.token_bytes(int(token_id)) == token
        assert len(token) == int(length[length.rindex(" ") :])


def test_rwkvs_end_of_text_is_a_slot_to_give_a_role() -> None:
    assert vocabulary_of("rwkv").kind(0) == Kind.OPAQUE
    vocabulary = Vocabulary.from_file(path_of("rwkv"), size=65_536, roles={0: {"eos"}})
    assert vocabulary.size == 65_536
    assert vocabulary.kind(0) == Kind.SPECIAL
    assert vocabulary.roles == {0: {"eos"}}


def test_qwens_rank_file_and_its_tokenizer_json_have_the_same_bytes() -> None:
    folder = needs_assets(lambda: assets.tokenizer("qwen2"))
    other = Vocabulary.from_tokenizer(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))
    ranks = vocabulary_of("qwen")
    assert ranks.size == 151_643
    assert [ranks.token_bytes(i) for i in range(ranks.size)] == [
        other.token_bytes(i) for i in range(ranks.size)
    ]


def test_special_tokens_of_a_tiktoken_file_are_given_by_id() -> None:
    roles = {151_643: {"eos", "<|endoftext|>"}, 151_645: {"eos", "<|im_end|>"}}
    vocabulary = Vocabulary.from_file(path_of("qwen"), size=151_936, roles=roles)
    assert vocabulary.roles == roles
    assert vocabulary.kind(151_644) == Kind.OPAQUE


@pytest.mark.parametrize("name", RANK_FILES)
def test_single_bytes_are_all_there(name: str) -> None:
    vocabulary = vocabulary_of(name)
    tokens = {vocabulary.token_bytes(token_id) for token_id in range(vocabulary.size)}
    assert {bytes([byte]) for byte in range(256)} <= tokens


def greedy(vocabulary: Vocabulary, text: bytes) -> list[int]:
    """The longest token that matches, again and again: what RWKV's own tokenizer does."""
    ids = {vocabulary.token_bytes(token_id): token_id for token_id in range(vocabulary.size)}
    longest = max(len(token) for token in ids if token)
    found, at = [], 0
    while at < len(text):
        ends = (end for end in range(min(len(text), at + longest), at, -1) if text[at:end] in ids)
        end = next(ends)
        found.append(ids[text[at:end]])
        at = end
    return found


def test_a_longest_match_vocabulary_aligns_with_byte_level_bpe() -> None:
    folder = needs_assets(lambda: assets.tokenizer("gpt2"))
    student = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "def greet(name):\n    return f'Héllo, {name}! 你好 🎉'\n"
    aligned = Aligner(vocabulary_of("rwkv"), student).align(
        greedy(vocabulary_of("rwkv"), text.encode()), student.encode(text).ids
    )
    assert aligned.coverage.student.tolist() == [1.0]
    assert len(aligned.differences) == 0
    assert len(aligned.pairs) > 10


# ---- What a file may hold ---------------------------------------------------------------------------------


def test_blank_lines_are_passed_over_and_gaps_are_opaque(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_file(written(tmp_path, "YQ== 0", "", "Yg== 2", " "))
    assert [vocabulary.token_bytes(token_id) for token_id in range(3)] == [b"a", None, b"b"]


def test_a_path_may_be_a_string_and_a_name_of_any_kind(tmp_path: Path) -> None:
    path = written(tmp_path, "1 'a' 1", "2 b'\\xff' 1", '3 "\'é" 3')
    vocabulary = Vocabulary.from_file(str(path))
    assert [vocabulary.token_bytes(token_id) for token_id in range(4)] == [None, b"a", b"\xff", "'é".encode()]


def test_tekken_takes_the_special_tokens_that_it_lists(tmp_path: Path) -> None:
    listed = [{"rank": 1, "token_str": "</s>", "is_control": True}]
    vocabulary = Vocabulary.from_file(tekken(tmp_path, special_tokens=listed))
    assert vocabulary.roles == {0: set(), 1: {"eos", "</s>"}}
    assert [vocabulary.token_bytes(token_id) for token_id in range(4)] == [b"", b"", b"a", b"b"]


def test_tekken_without_a_list_has_the_names_of_its_time(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_file(tekken(tmp_path))
    assert vocabulary.roles == {0: {"unk"}, 1: {"bos", "<s>"}}


def test_a_special_token_of_tekken_and_a_token_of_the_same_bytes_are_two_ids(tmp_path: Path) -> None:
    spelled = [base64.b64encode(token).decode() for token in (b"</s>", b"a")]
    vocab = [{"rank": rank, "token_bytes": text} for rank, text in enumerate(spelled)]
    path = tekken(tmp_path, vocab=vocab, special_tokens=[{"rank": 1, "token_str": "</s>"}])
    vocabulary = Vocabulary.from_file(path)
    assert [vocabulary.kind(token_id) for token_id in (1, 2)] == [Kind.SPECIAL, Kind.NORMAL]
    assert vocabulary.token_bytes(2) == b"</s>"


def test_bytes_that_a_file_has_at_two_ranks_are_those_of_both(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_file(written(tmp_path, "YQ== 0", "YQ== 1"))
    assert vocabulary.canonical_ids.tolist() == [0, 0]


# ---- What is malformed ------------------------------------------------------------------------------------

LIMIT = 65_535


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1 is neither that of a \\*.tiktoken file .* given to Vocabulary.from_tokenizer"),
        (["#version: 0.2", "Ġ t"], "line 1 is neither"),
        ([b"\x80\x02\xff"], "line 1 is neither"),
        (["YQ== 0", "Yg=="], "line 2 is b'Yg=='; it should be a token in base64, a space and its rank"),
        (["YQ== 0", "Yg== -1"], "line 2 is b'Yg== -1'; it should be"),
        (["YQ== 0", "Yg== 1 x"], "line 2 is b'Yg== 1 x'; it should be"),
        (["YQ== 0", "", "Y!== 1"], r"line 3: b'Y!==' is not base64"),
        (["YQ== 0", "Yg= 1"], r"line 2: b'Yg=' is not base64 \(Incorrect padding\)"),
        (["YQ== 0", "Yg== 0"], "line 2: id 0 is there already, as b'a'"),
        (["YQ== 4194304"], "line 1: id 4194304; ids end at 4194303"),
        (["YQ== 0", f"Yg== {10**18}"], "line 2: id 1000000000000000000; ids end at 4194303"),
        (["YQ== 0", "Yg== " + "9" * 5000], r"line 2 is b'Yg== 9+' \.\.\.; it should be"),
        (["YQ== 0", "= 1"], "line 2: "),
        (
            ["YQ== 0", base64.b64encode(b"a" * (LIMIT + 1)) + b" 1"],
            "line 2: a token of 65536 bytes; 1 to 65535 are allowed",
        ),
        (["YQ== 0", b"YWFh" * 100_000 + b" 1"], "line 2 has 262240 bytes or more; no token is so long"),
        (["1 'a' 1", "2 'b'"], "line 2 is b\"2 'b'\"; it should be an id, a Python literal"),
        (["1 'a' 1", "2 b 1"], "line 2 is b'2 b 1'; it should be an id, a Python literal"),
        (["1 'a' 1", "2 __import__('os') 1"], "line 2 is .*; it should be an id, a Python literal"),
        (["1 'a' 1", "2 'b' 2"], "line 2: b\"'b'\" has 1 bytes, and the line says 2"),
        (["1 'a' 1", "2 '' 0"], "line 2: a token of 0 bytes; 1 to 65535 are allowed"),
        (["1 'a' 1", "1 'b' 1"], "line 2: id 1 is there already, as b'a'"),
        (["1 'a' 1", r"2 '\x' 1"], "line 2: .* is no literal of text or bytes"),
        (["1 'a' 1", r"2 '\ud800' 3"], "line 2: .* is no literal of text or bytes .*surrogates not allowed"),
        (["1 'a' 1", "2 b'é' 2"], "line 2: .* is no literal of text or bytes"),
        (["1 'a' 1", "2 'a' + 'b' 2"], "line 2: .* is no literal of text or bytes"),
        (["1 'a' 1", "2 'a', 'b' 2"], "line 2: .* is no literal of text or bytes"),
        (["1 'a' 1", f"2 'a'{'+(' * 60_000}'b' 2"], "line 2: .* is no literal of text or bytes"),
        (["1 'a' 1", b"2 '\xff' 1"], "line 2: .* is no literal of text or bytes"),
        (["1 'a' 1", "99999999 'b' 1"], "line 2: id 99999999; ids end at 4194303"),
    ],
)
def test_a_malformed_line_is_named(lines: list[str | bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_file(written(tmp_path, *lines))


@pytest.mark.parametrize("line", ["YQ== 262144", "262144 'a' 1"], ids=["tiktoken", "RWKV"])
def test_a_file_of_one_line_with_a_large_id_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="defines id 262144: 262145 slots for 1 token, and 262144 are allowed"
    ):
        Vocabulary.from_file(written(tmp_path, line))


def test_a_tekken_of_hardly_any_token_and_many_special_ones_is_refused(tmp_path: Path) -> None:
    config = {"default_vocab_size": 300_000, "default_num_special_tokens": 299_999}
    with pytest.raises(ValueError, match="default_vocab_size 300000: 300000 slots for 3 tokens, and 262144"):
        Vocabulary.from_file(tekken(tmp_path, config=config))


ENTRY = {"rank": 0, "token_bytes": "YQ=="}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": None}, "is no tekken.json, which has a config, a list vocab"),
        ({"vocab": {"a": 1}}, "is no tekken.json"),
        ({"special_tokens": 7}, "is no tekken.json"),
        ({"config": None, "model": {}}, "from_tokenizer what tokenizers.Tokenizer.from_file makes of it"),
        ({"config": {}}, "its config has default_num_special_tokens = None; it should be a number"),
        (
            {"config": {"default_num_special_tokens": 2, "default_vocab_size": 2}},
            "default_vocab_size is 2, with 2 special tokens; it should be more than those",
        ),
        (
            {"config": {"default_num_special_tokens": 2, "default_vocab_size": 2**40}},
            "has default_vocab_size 1099511627776, and a vocabulary may have 4194304 entries",
        ),
        ({"vocab": [ENTRY]}, "rank 1 is not in its vocab, which should have all from 0 to 1"),
        ({"vocab": []}, "rank 0 is not in its vocab, which should have all from 0 to 1"),
        ({"vocab": [{**ENTRY, "rank": 1}]}, "rank 0 is not in its vocab, which should have all from 0 to 1"),
        ({"vocab": [ENTRY, 5]}, r"vocab\[1\] has rank None; it should be a number from 0 on"),
        ({"vocab": [{**ENTRY, "rank": -1}]}, r"vocab\[0\] has rank -1; it should be a number"),
        ({"vocab": [{**ENTRY, "rank": True}]}, r"vocab\[0\] has rank True; it should be a number"),
        ({"vocab": [{**ENTRY, "rank": 0.0}]}, r"vocab\[0\] has rank 0.0; it should be a number"),
        ({"vocab": [{"rank": 0}]}, r"vocab\[0\] has token_bytes = None; it should be a string"),
        ({"vocab": [{**ENTRY, "token_bytes": "é"}]}, r"vocab\[0\]: 'é' is not base64"),
        ({"vocab": [ENTRY, ENTRY]}, r"vocab\[1\]: rank 0 is there already, as b'a'"),
        (
            {"special_tokens": [{"rank": 2, "token_str": "x"}]},
            r"special_tokens\[0\]: 'x' has rank 2, and default_num_special_tokens is 2",
        ),
        (
            {"special_tokens": [{"rank": 1, "token_str": "<s>"}, {"rank": 1, "token_str": "</s>"}]},
            r"special_tokens\[1\]: rank 1 of '</s>' is there already, as '<s>'",
        ),
        (
            {"special_tokens": [{"rank": -1, "token_str": "<s>"}]},
            r"special_tokens\[0\] has rank -1; it should be a number from 0 on",
        ),
        ({"special_tokens": ["<s>"]}, r"special_tokens\[0\] has rank None; it should be a number"),
        ({"special_tokens": [{"rank": 0}]}, r"special_tokens\[0\] has token_str = None; it should be"),
        (
            {"special_tokens": [{"rank": 0, "token_str": "\ud800"}]},
            r"special_tokens\[0\] .* not Unicode text",
        ),
    ],
)
def test_a_malformed_tekken_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_file(tekken(tmp_path, **changes))


@pytest.mark.parametrize("text", ["{", "{" * 100_000, '{"a":' * 100_000, '{"a": 1} x', '{"\udcff": 1}'])
def test_a_file_that_begins_like_json_and_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"tekken\.json is not JSON: "):
        Vocabulary.from_file(path)


def test_a_json_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tekken.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(1 << 29)  # a hole, which takes no disk
    with pytest.raises(ValueError, match=r"has 536870912 bytes, and a tekken\.json has 67108864 at most"):
        Vocabulary.from_file(path)


LINES = st.one_of(
    st.binary(max_size=20),
    st.builds("{} {}".format, st.sampled_from(["YQ==", "Yg==", "x", "", "=", "4pY="]), st.integers(-1, 5)),
    st.builds(
        "{} {} {}".format,
        st.integers(0, 5),
        st.sampled_from(["'a'", "b'\\xff'", '"é"', "'", "b''", "'\\N{DOG}'", "'a' 'b'"]),
        st.integers(0, 3),
    ),
)


@given(st.lists(LINES, max_size=4))
def test_any_file_is_a_vocabulary_or_a_value_error(lines: list[str | bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ValueError):
        assert 0 < len(Vocabulary.from_file(written(Path(folder), *lines))) <= 6


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.sampled_from(["YQ==", "<s>", "\ud800", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rank", "token_bytes", "token_str"]), inner, max_size=3)
    ),
    max_leaves=8,
)
CONFIG = st.fixed_dictionaries({"default_vocab_size": JSON, "default_num_special_tokens": JSON})


@given(st.fixed_dictionaries({"config": CONFIG | JSON, "vocab": JSON}, optional={"special_tokens": JSON}))
def test_any_tekken_is_a_vocabulary_or_a_value_error(contents: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ValueError):
        Vocabulary.from_file(tekken(Path(folder), **contents))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Vocabulary.from_file(tmp_path / "nothing.tiktoken")


def test_a_size_smaller_than_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size=1 is smaller than the tokenizer, which defines ids up to 1"):
        Vocabulary.from_file(written(tmp_path, "YQ== 0", "Yg== 1"), size=1)
