"""A vocabulary made from bytes: kinds, roles, canonical ids, spans, hash, and what it refuses."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dskd import Kind, Vocabulary, _core, reference
from dskd.vocabulary import _from_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT = [b"a", b" a", b"\xe2\x96", b""]


def made_of(kinds: Sequence[Kind], spellings: Sequence[str], steps: list[tuple[str, str, str]]) -> Vocabulary:
    numbers = np.array(kinds, dtype=np.uint8)
    return Vocabulary(_core.Vocabulary.from_spellings(list(spellings), numbers, {}, steps, False))


def test_bytes_come_back_as_given() -> None:
    vocabulary = Vocabulary.from_bytes(TEXT)
    assert [vocabulary.token_bytes(token_id) for token_id in range(4)] == TEXT
    assert {vocabulary.kind(token_id) for token_id in range(4)} == {Kind.NORMAL}


def test_none_is_opaque_and_surplus_slots_are_opaque() -> None:
    vocabulary = Vocabulary.from_bytes([b"a", None], size=4)
    assert len(vocabulary) == vocabulary.size == 4
    assert [vocabulary.kind(token_id) for token_id in range(4)] == [Kind.NORMAL, *[Kind.OPAQUE] * 3]
    assert vocabulary.token_bytes(3) is None


def test_a_model_may_have_far_more_slots_than_a_small_tokenizer_and_not_any_number() -> None:
    assert len(Vocabulary.from_bytes([b"a"], size=262_144)) == 262_144
    message = "size=262145: 262145 slots for 1 token, and 262144 are allowed"
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_bytes([b"a", None], size=262_145)


def test_of_a_large_tokenizer_a_model_may_have_four_times_the_slots() -> None:
    tokens = [b"a"] * 70_000
    assert len(Vocabulary.from_bytes(tokens, size=280_000)) == 280_000
    with pytest.raises(ValueError, match="280001 slots for 70000 tokens, and 280000 are allowed"):
        Vocabulary.from_bytes(tokens, size=280_001)


def test_slots_that_are_given_one_by_one_may_all_be_empty() -> None:
    assert len(Vocabulary.from_bytes([None] * 300_000)) == 300_000


def test_an_id_with_roles_is_special_and_adds_no_text() -> None:
    vocabulary = Vocabulary.from_bytes([b"a", b"</s>"], roles={1: {"eos"}})
    assert vocabulary.kind(1) == Kind.SPECIAL
    assert vocabulary.token_bytes(1) == b""
    assert vocabulary.roles == {1: {"eos", "</s>"}}


def test_roles_may_name_the_literal() -> None:
    vocabulary = Vocabulary.from_bytes([b"a", b"</s>"], roles={"</s>": {"eos"}})
    assert vocabulary.roles == {1: {"eos", "</s>"}}


def test_unk_is_opaque_where_that_is_its_only_role_besides_pad() -> None:
    roles = {0: {"unk"}, 1: {"unk", "pad"}, 2: {"unk", "eos"}}
    vocabulary = Vocabulary.from_bytes([b"<unk>", b"<x>", b"<y>"], roles=roles)
    assert [vocabulary.kind(token_id) for token_id in range(3)] == [Kind.OPAQUE, Kind.OPAQUE, Kind.SPECIAL]


def test_what_only_pads_has_no_literal_by_which_it_could_pair() -> None:
    vocabulary = Vocabulary.from_bytes([b"<pad>"], roles={0: {"pad"}})
    assert vocabulary.roles == {0: {"pad"}}


def test_the_canonical_id_is_the_lowest_of_those_with_the_same_bytes() -> None:
    vocabulary = Vocabulary.from_bytes([b"b", b"a", None, b"a", b"</s>", b""], roles={4: {"eos"}})
    assert vocabulary.canonical_ids.tolist() == [0, 1, -1, 1, -1, -1]


def test_normal_stands_before_user_defined_before_byte_fallback_before_unused() -> None:
    kinds = [Kind.UNUSED, Kind.BYTE, Kind.USER_DEFINED, Kind.NORMAL]
    spellings = ["a", "<0x61>", "a", "a"]
    for count in range(1, 5):
        vocabulary = made_of(kinds[:count], spellings[:count], [("byte_fallback", "", "")])
        assert vocabulary.canonical_ids.tolist() == [count - 1] * count


def test_spans_drop_the_dummy_prefix_and_count_known_bytes() -> None:
    tokens = [b" a", b"b", None, b"</s>", b" "]
    vocabulary = Vocabulary.from_bytes(tokens, roles={3: {"eos"}}, dummy_prefix=True)
    assert vocabulary.spans([3, 0, 2, 1, 3]).tolist() == [[0, 0], [0, 1], [-1, -1], [1, 2], [2, 2]]
    assert vocabulary.spans([4, 0]).tolist() == [[0, 0], [0, 2]]
    assert vocabulary.spans([]).shape == (0, 2)


def test_spans_keep_the_first_space_where_the_decoder_does() -> None:
    assert Vocabulary.from_bytes([b" a"]).spans([0]).tolist() == [[0, 2]]


ENTRIES = st.lists(st.none() | st.binary(max_size=3) | st.just(b" a"), min_size=1, max_size=6)


@given(ENTRIES, st.data(), st.booleans())
def test_spans_equal_their_definition(tokens: list[bytes | None], data: st.DataObject, prefix: bool) -> None:
    vocabulary = Vocabulary.from_bytes(tokens, dummy_prefix=prefix, roles={0: {"eos"}})
    ids = data.draw(st.lists(st.integers(0, len(tokens) - 1), max_size=8))
    assert vocabulary.spans(ids).tolist() == [list(span) for span in reference.spans(vocabulary, ids)]


STEPS = st.lists(
    st.sampled_from(
        [
            ("replace", "▁", " "),
            ("replace", " .", "."),
            ("replace", "é", "ab"),
            ("replace", "A", "▁"),
            ("replace", "bb", "A"),
            ("byte_level", "", ""),
            ("byte_fallback", "", ""),
            ("word", "##", ""),
            ("word", "", ""),
        ]
    ),
    max_size=4,
)
SPELLINGS = st.text("aé▁Ġ<0xE2>\n好", max_size=6) | st.sampled_from(
    [
        "<0xE2>",
        "<0x96>",
        "<0xA9>",
        "<0x41>",
        "<0x62>",
        "Ã©",
        "AbbA",
        "<0x0a>",
        "<0xGG>",
        "Ċ",
        "▁▁",
        "##a",
        "####",
        ".",
        "",
    ]
)


@given(SPELLINGS, st.sampled_from([Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED]), STEPS)
def test_decoding_equals_its_definition(spelling: str, kind: Kind, steps: list[tuple[str, str, str]]) -> None:
    vocabulary = made_of([kind], [spelling], steps or [("replace", "x", "y")])
    expected = reference.token_bytes(spelling, kind, steps or [("replace", "x", "y")])
    assert vocabulary.token_bytes(0) == expected


def test_the_byte_level_alphabet_is_complete() -> None:
    alphabet = reference.byte_level_alphabet()
    vocabulary = made_of([Kind.NORMAL] * 256, list(alphabet), [("byte_level", "", "")])
    found = [vocabulary.token_bytes(token_id) for token_id in range(256)]
    assert found == [bytes([byte]) for byte in alphabet.values()]
    assert sorted(alphabet.values()) == list(range(256))


def test_a_pickle_is_the_same_vocabulary() -> None:
    vocabulary = Vocabulary.from_bytes([b"a", None, b"<s>"], roles={2: {"bos", "eos"}}, dummy_prefix=True)
    again = pickle.loads(pickle.dumps(vocabulary))  # noqa: S301 - our own
    assert again == vocabulary
    assert hash(again) == hash(vocabulary)
    assert again.dummy_prefix
    assert again.roles == vocabulary.roles


@pytest.mark.parametrize(
    "other",
    [
        Vocabulary.from_bytes([b"b", b"<s>"], roles={1: {"bos"}}),
        Vocabulary.from_bytes([b"a", b"<s>"], roles={1: {"eos"}}),
        Vocabulary.from_bytes([b"a", b"<s>"]),
        Vocabulary.from_bytes([b"a", b"<s>"], roles={1: {"bos"}}, size=3),
        Vocabulary.from_bytes([b"a", b"<s>"], roles={1: {"bos"}}, dummy_prefix=True),
    ],
    ids=["bytes", "roles", "kinds", "size", "dummy prefix"],
)
def test_the_content_hash_tells_vocabularies_apart(other: Vocabulary) -> None:
    vocabulary = Vocabulary.from_bytes([b"a", b"<s>"], roles={1: {"bos"}})
    assert other.content_hash != vocabulary.content_hash
    assert other != vocabulary


def test_a_hash_fits_where_hashes_go() -> None:
    vocabulary = Vocabulary.from_bytes([b"a"])
    assert hash(vocabulary) == int(vocabulary.content_hash[:15], 16)


def test_hash_and_pickle_are_the_same_in_every_process() -> None:
    code = (
        "import hashlib, pickle, dskd\n"
        "v = dskd.Vocabulary.from_bytes([b'a', b'<s>'], roles={1: {'bos', 'eos', 'x', 'y', 'z'}})\n"
        "print(hash(v), hash(dskd.Aligner(v, v)), v.content_hash)\n"
        "print(hashlib.sha256(pickle.dumps(v)).hexdigest())"
    )
    seeds = ("1", "2", "3")
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in seeds
    ]
    assert len(set(runs)) == 1
    assert len(runs[0].split()) == 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Vocabulary.from_bytes([b"a"]).spans([0, 7]), ValueError, r"position 1: id 7 .*size 1"),
        (lambda: Vocabulary.from_bytes([b"a"]).spans([[0], [0]]), ValueError, "2 rows; spans takes one"),
        (lambda: Vocabulary.from_bytes([b"a"]).token_bytes(-1), ValueError, r"id -1 .*size 1"),
        (
            lambda: Vocabulary.from_bytes([b"a"]).kind(2**70),
            ValueError,
            r"id 1180591620717411303424 .*size 1",
        ),
        (
            lambda: Vocabulary.from_bytes([], size=2**40),
            ValueError,
            "size=1099511627776, and a vocabulary may have 4194304 entries",
        ),
        (
            lambda: _from_parts(b"", b"", b"", ((5, ("eos",)),), False),
            ValueError,
            "id 5 has roles and is not",
        ),
        (
            lambda: _from_parts(b"abc", b"\1\0\0\0", b"\0", (), False),
            ValueError,
            "3 bytes where 1 are needed",
        ),
        (lambda: Vocabulary.from_bytes([b"a"], size=cast("Any", 2.5)), TypeError, "'float' object cannot be"),
        (lambda: Vocabulary.from_bytes([b"a", b"b"], size=1), ValueError, r"size=1 is smaller .* up to 1"),
        (lambda: Vocabulary.from_bytes([b"a"], roles={3: {"eos"}}), ValueError, r"id 3, .* ids 0 to 0"),
        (
            lambda: Vocabulary.from_bytes([b"a"], roles={"x": {"eos"}}),
            ValueError,
            "'x', and .* no such token",
        ),
        (
            lambda: Vocabulary.from_bytes([b"a"], roles=cast("Any", {0: "eos"})),
            TypeError,
            r"give a set of roles: \{'eos'\}",
        ),
        (lambda: Vocabulary.from_bytes(cast("Any", ["a"])), TypeError, "token 0 is str; tokens are bytes"),
        (lambda: Vocabulary.from_bytes([b"a" * 70_000]), ValueError, "token 0 has 70000 bytes, and 65535"),
        (lambda: Vocabulary.from_tokenizer(object()), TypeError, "cannot read a builtins.object: give a"),
        (
            lambda: made_of([Kind.BYTE], ["x"], [("byte_fallback", "", "")]),
            ValueError,
            r'"x"; it should .*<0xHH>',
        ),
        (
            lambda: made_of([Kind.NORMAL], ["x"], [("rot13", "", "")]),
            ValueError,
            'unknown decoder step "rot13"',
        ),
    ],
)
def test_bad_input_says_where_and_what_to_do(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
