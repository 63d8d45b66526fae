"""Every order of decoder steps is read as `tokenizers` decodes, or refused: bytes are what an id adds."""

from __future__ import annotations

import itertools

import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import decoders, models

from dskd import Aligner, Kind, Vocabulary

SPELLINGS = [
    *(
        "the",
        "a",
        "A",
        "bb",
        "▁a",
        "▁",
        "a▁b",
        "▁▁",
        "_",
        "_a",
        "é",
        "##a",
        "##",
        ".",
        "##.",
        " ",
        " x",
        "x ",
    ),
    *(
        "Ġa",
        "Ċ",
        "Ã",
        "©",
        "<",
        "<0x41>",
        "<0x62>",
        "<0x2E>",
        "<0xC3>",
        "<0xA9>",
        "<0xE2>",
        "<0x96>",
        "<0x81>",
    ),
    *("<0x82>", "<0x20>", "<0x5F>", "<0xGG>"),
]
IDS = {spelling: token_id for token_id, spelling in enumerate(SPELLINGS)}
ORDINARY = [IDS["the"]]
FIRST = [IDS[spelling] for spelling in ("the", "a", "▁a", "A", "é")]
"""A first token with `##`, with several `▁`, a space that no decoder put there, or bytes that a decoder joins
with those behind them begins a text in another way.
"""

LINKS = {
    "ByteFallback": decoders.ByteFallback(),
    "ByteLevel": decoders.ByteLevel(),
    "Fuse": decoders.Fuse(),
    "Strip": decoders.Strip(" ", 1, 0),
    "Strip x": decoders.Strip("x", 1, 0),
    "Strip nothing": decoders.Strip(" ", 0, 0),
    "Strip the end": decoders.Strip(" ", 0, 1),
    "Metaspace": decoders.Metaspace(),
    "Metaspace, first": decoders.Metaspace(prepend_scheme="first"),
    "Metaspace, never": decoders.Metaspace(prepend_scheme="never"),
    "Metaspace _": decoders.Metaspace("_"),
    "WordPiece": decoders.WordPiece(),
    "WordPiece as it is": decoders.WordPiece(cleanup=False),
    "WordPiece without prefix": decoders.WordPiece("", cleanup=True),
    "Replace ▁": decoders.Replace("▁", " "),
    "Replace ▁ by _": decoders.Replace("▁", "_"),
    "Replace é": decoders.Replace("é", "▁"),
    "Replace A": decoders.Replace("A", "▁"),
    "Replace a": decoders.Replace("a", "bb"),
    "Replace bb": decoders.Replace("bb", "X"),
    "Replace spaces": decoders.Replace(" ", "xx"),
    "Replace nothing": decoders.Replace("", "x"),
    "Replace by pattern": decoders.Replace(tokenizers.Regex("a+"), " "),
    "CTC": decoders.CTC(),
    "BPEDecoder": decoders.BPEDecoder(),
}


def tokenizer_with(*names: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordLevel(IDS, "<0xGG>"))
    tokenizer.decoder = decoders.Sequence([LINKS[name] for name in names])
    return tokenizer


def text_of(vocabulary: Vocabulary, ids: list[int]) -> str | None:
    """The text of the ids; None if one of them is opaque, or neighbouring bytes are no whole characters."""
    text = ""
    for _, run in itertools.groupby(ids, lambda token_id: vocabulary.kind(token_id) == Kind.BYTE):
        tokens = [vocabulary.token_bytes(token_id) for token_id in run]
        try:
            text += b"".join(tokens).decode()  # type: ignore[arg-type] # None is the TypeError
        except (TypeError, UnicodeDecodeError):
            return None
    return text


ROWS = st.lists(st.integers(0, len(SPELLINGS) - 2), min_size=1, max_size=5)
CHAINS = st.lists(st.sampled_from(list(LINKS)), min_size=1, max_size=4)
"""The unknown token is the last; it is opaque whatever decodes it."""


@given(CHAINS, ROWS, st.sampled_from(FIRST))
def test_any_chain_is_read_as_it_decodes_or_refused(names: list[str], ids: list[int], first: int) -> None:
    tokenizer = tokenizer_with(*names)
    try:
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
    except ValueError:
        assume(False)
    added = text_of(vocabulary, ids)
    if added is not None:
        assert tokenizer.decode([*ORDINARY, *ids]) == tokenizer.decode(ORDINARY) + added
    text = text_of(vocabulary, [first, *ids])
    if text is not None and vocabulary.token_bytes(first):
        text = text.removeprefix(" ") if vocabulary.dummy_prefix else text
        assert tokenizer.decode([first, *ids]) == text


@pytest.mark.parametrize(
    "names",
    [
        ("Replace ▁", "ByteFallback", "Fuse", "Strip"),  # Llama
        ("Replace ▁", "ByteFallback", "Fuse"),  # Gemma
        ("Metaspace", "ByteFallback", "Fuse"),  # TIPSv2
        ("Replace ▁", "Fuse", "Strip"),
        ("Fuse", "Replace ▁", "Strip"),
        ("Fuse", "Metaspace, never"),
        ("Replace bb", "Metaspace"),
        ("Metaspace, never", "Replace ▁ by _", "Fuse"),
        ("ByteLevel", "Replace a", "Fuse", "Strip"),
        ("Replace ▁", "ByteLevel", "Strip"),
        ("Replace ▁ by _", "WordPiece", "Fuse"),
        ("Fuse", "Metaspace"),
    ],
    ids=str,
)
def test_an_order_that_can_be_read_is_read_whole(names: tuple[str, ...]) -> None:
    tokenizer = tokenizer_with(*names)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    known = range(len(SPELLINGS) - 1)
    assert None not in {vocabulary.token_bytes(token_id) for token_id in known}
    texts = {token_id: text_of(vocabulary, [token_id]) for token_id in known}
    assert len(known) >= sum(text is not None for text in texts.values()) > len(known) // 2
    for token_id, text in texts.items():
        if text is not None:
            assert tokenizer.decode([*ORDINARY, token_id]) == tokenizer.decode(ORDINARY) + text


# ---- A character in byte tokens ---------------------------------------------------------------------------

BEHIND_BYTES = [
    ("ByteFallback", "Metaspace"),
    ("ByteFallback", "Metaspace, never"),
    ("ByteFallback", "Replace ▁", "Fuse"),
    ("ByteFallback", "Fuse", "Replace ▁"),
    ("ByteFallback", "Fuse", "Replace ▁", "Strip"),
    ("ByteFallback", "Fuse", "Metaspace"),
    ("ByteFallback", "Fuse", "Metaspace, never"),
]
SPACE_IN_BYTES = [IDS["<0xE2>"], IDS["<0x96>"], IDS["<0x81>"]]


@pytest.mark.parametrize("names", BEHIND_BYTES, ids=str)
def test_of_a_replaced_character_in_byte_tokens_one_is_opaque_and_all_else_is_read(
    names: tuple[str, ...],
) -> None:
    tokenizer = tokenizer_with(*names)
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    opaque = [i for i in range(len(SPELLINGS) - 1) if vocabulary.kind(i) == Kind.OPAQUE]
    assert opaque == [IDS["<0x96>"]]
    assert tokenizer.decode([*ORDINARY, *SPACE_IN_BYTES]) != "the▁"
    for row in [["▁a"], ["<0x41>"], ["<0xC3>", "<0xA9>"], ["a▁b", "▁▁"], ["<0xE2>", "<0x82>", "<0x81>"]]:
        ids = [IDS[spelling] for spelling in row]
        assert tokenizer.decode([*ORDINARY, *ids]) == f"the{text_of(vocabulary, ids)}"


def test_a_replaced_character_in_byte_tokens_pairs_with_nothing_and_pairs_go_on_behind_it() -> None:
    vocabulary = Vocabulary.from_tokenizer(tokenizer_with("ByteFallback", "Fuse", "Replace ▁"))
    other = Vocabulary.from_bytes([b"the", "▁".encode()])
    found = Aligner(vocabulary, other).align([*ORDINARY, *SPACE_IN_BYTES, *ORDINARY * 8], [0, 1, *[0] * 8])
    assert found.pairs.teacher.tolist() == found.chunks.teacher_start.tolist() == [0, *range(4, 12)]


def test_one_byte_in_a_byte_token_is_replaced() -> None:
    vocabulary = Vocabulary.from_tokenizer(
        tokenizer_with("ByteFallback", "Replace a", "Replace A", "Replace é")
    )
    read = {
        spelling: vocabulary.token_bytes(IDS[spelling]) for spelling in ("<0x41>", "<0x62>", "A", "<0xC3>")
    }
    assert read == {"<0x41>": "▁".encode(), "<0x62>": b"b", "A": "▁".encode(), "<0xC3>": b"\xc3"}
    assert vocabulary.kind(IDS["<0xA9>"]) == Kind.OPAQUE


# ---- What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("BPEDecoder",), "step BPEDecoder cannot be read exactly: the space of a word stands behind"),
        (("CTC",), "step CTC cannot be read exactly: it drops a token that repeats"),
        (("Replace by pattern",), '"Replace".*"Regex".* is not supported'),
        (("Replace nothing",), '"Replace".*"String": "".* is not supported'),
        (("Fuse", "Strip x"), '"Strip".* is not supported'),
        (("Fuse", "Strip the end"), '"Strip".* is not supported'),
        (("Strip",), "Strip before the tokens are joined is not supported: it would change every token"),
        (("ByteFallback", "Strip", "Fuse"), "Strip before the tokens are joined"),
        (
            ("ByteFallback", "Replace bb", "Fuse"),
            "'bb' behind ByteFallback .* would see several tokens at once",
        ),
        (
            ("ByteFallback", "Fuse", "Replace bb"),
            "Replace of 'bb' behind Fuse is not supported: it would see",
        ),
        (
            ("ByteLevel", "Replace ▁"),
            "Replace of '▁' behind ByteLevel .*byte-level tokens may hold parts of it",
        ),
        (
            ("ByteLevel", "Fuse", "Metaspace"),
            "Metaspace of '▁' behind Fuse .*byte-level tokens may hold parts",
        ),
        (("Fuse", "ByteLevel"), "ByteLevel behind Fuse is not supported: it would see several"),
        (("ByteFallback", "ByteLevel"), "ByteLevel behind ByteFallback is not"),
        (("ByteLevel", "ByteFallback"), "ByteFallback behind ByteLevel is not"),
        (("ByteFallback", "WordPiece"), "WordPiece behind ByteFallback is not"),
        (("Metaspace", "Fuse", "Strip"), "step Strip would drop a second space"),
        (("Metaspace", "WordPiece"), "step WordPiece would drop a second space"),
        (("Metaspace", "Replace spaces"), "Replace of ' ' by 'xx' .* behind one that drops the space"),
        (("Fuse", "Strip", "Replace ▁"), "Replace of '▁' by ' ' .* behind one that drops the space"),
        (("Replace ▁", "Metaspace"), "Metaspace is not supported behind one that writes spaces"),
        (("Metaspace", "ByteLevel"), "ByteLevel is not supported behind one that drops the space"),
        (("WordPiece", "ByteFallback"), "ByteFallback is not supported behind one that drops the space"),
    ],
    ids=str,
)
def test_an_order_that_cannot_be_read_is_refused_by_its_step(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_tokenizer(tokenizer_with(*names))


def test_more_steps_than_any_decoder_has_are_refused_by_their_number() -> None:
    tokenizer = tokenizer_with(*["Replace a"] * 20_000)
    with pytest.raises(ValueError, match="the decoder has 20000 steps, and 64 are allowed; give"):
        Vocabulary.from_tokenizer(tokenizer)
