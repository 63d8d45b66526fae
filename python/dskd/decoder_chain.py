"""The decoder of a `tokenizers.Tokenizer` as steps that change the bytes of one token at a time.

A chain is read exactly or refused. What decides is whether the text that a token adds depends on the token
alone, wherever ordinary text stands before it. Three decoders fail that and stay refused: `BPEDecoder` writes
the space of a word behind it and leaves it out at the end of a text, `CTC` drops a token that repeats the one
before, and a step behind the joining (`Fuse`, `ByteLevel`) sees several tokens at once.

At the start of a text decoders drop a space; the flag `dummy_prefix` says so. Two of them do a little more
there, which no other place of a text shows: Metaspace drops every `▁` of the first token and not one only,
and WordPiece leaves the `##` of a first token standing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dskd.pieces import Step

__all__ = ["decoder_steps"]

_Json = dict[str, Any]


def decoder_steps(tokenizer: Any, *, byte_fallback: bool) -> tuple[tuple[Step, ...], bool]:
    """The steps of a tokenizer's decoder, and whether it drops a space at the start of a text.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        byte_fallback: whether its model writes what it does not know as bytes.

    Raises:
        ValueError: what a token adds to the text cannot be read from the token alone; the step is named.
    """
    model = tokenizer.model
    name = type(model).__name__
    if getattr(model, "end_of_word_suffix", None):
        raise ValueError(
            f"{name} with the word suffix {model.end_of_word_suffix!r} cannot be read exactly: "
            f"{_SPACE_BEHIND}"
        )
    decoder = _decoder_of(tokenizer)
    if decoder is None:
        return _without_decoder(name)
    steps, dummy_prefix = _steps_of(decoder)
    prefix = getattr(model, "continuing_subword_prefix", None)
    if prefix and ("word", prefix, "") not in steps:
        raise ValueError(
            f"{name} marks what goes on with a word by {prefix!r}, and its decoder does not take that away: "
            f"set tokenizer.decoder = decoders.WordPiece({prefix!r})"
        )
    if byte_fallback and ("byte_fallback", "", "") not in steps:
        raise ValueError(
            f"{name} falls back to bytes, and its decoder has no step ByteFallback that reads them: the "
            "decoder would write <0xE2> out"
        )
    return steps, dummy_prefix


_SPACE_BEHIND = (
    "the space of a word stands behind it and is left out at the end of a text, so that what a token adds "
    "depends on what follows"
)


def _without_decoder(name: str) -> tuple[tuple[Step, ...], bool]:
    """Tokens are joined by spaces then, which is what whole words want and nothing else."""
    if name == "WordLevel":
        return (("word", "", ""),), True
    raise ValueError(
        f"this {name} tokenizer has no decoder, which says what its spellings mean: set tokenizer.decoder to "
        "the one that it was trained for (decoders.ByteLevel() for byte-level BPE)"
    )


def _decoder_of(tokenizer: Any) -> _Json | None:
    try:
        decoder = tokenizer.decoder
        state: _Json | None = None if decoder is None else json.loads(decoder.__getstate__())
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"the decoder is made in Python and cannot be read: {error}") from error
    return state


def _steps_of(decoder: _Json) -> tuple[tuple[Step, ...], bool]:
    steps: list[Step] = []
    dummy_prefix = False
    previous = None
    for link in _links(decoder):
        if previous not in _MAY_FOLLOW.get(link["type"], {previous}):
            order = f"{link['type']} behind {previous}"
            raise ValueError(
                f"the decoder step {order} is not supported: it would see several tokens at once"
            )
        previous = link["type"]
        added, drops_space = _read(link)
        if drops_space and dummy_prefix:
            raise ValueError(f"the decoder step {json.dumps(link)} would drop a second space; not supported")
        steps += added
        dummy_prefix |= drops_space
    return tuple(steps), dummy_prefix


def _read(link: _Json) -> tuple[list[Step], bool]:
    """The steps for one link of a chain, and whether it drops a space at the start of a text."""
    match link:
        case {"type": "ByteLevel" | "ByteFallback" | "Fuse" as name}:
            return _PLAIN[name], False
        case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
            return [("replace", pattern, content)], False
        case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
            return [("replace", mark, " ")], scheme != "never"
        case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup}:
            # With an empty prefix every token "goes on".
            word: list[Step] = [("word", prefix, "")] if prefix else []
            return [*word, *(_CLEANUP if cleanup else ())], bool(prefix)
        case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
            return [], start == 1
        case {"type": "BPEDecoder"}:
            raise ValueError(f"the decoder step BPEDecoder cannot be read exactly: {_SPACE_BEHIND}")
        case {"type": "CTC"}:
            raise ValueError(
                "the decoder step CTC cannot be read exactly: it drops a token that repeats the one before, "
                "so that what a token adds depends on its neighbour"
            )
        case _:
            raise ValueError(f"the decoder step {json.dumps(link)} is not supported")


_PLAIN: dict[str, list[Step]] = {
    "ByteLevel": [("byte_level", "", "")],
    "ByteFallback": [("byte_fallback", "", "")],
    "Fuse": [],
}
_CLEANUP: tuple[Step, ...] = tuple(
    ("replace", dirty, clean)
    for dirty, clean in (
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    )
)
"""What WordPiece's `cleanup` does to each token, its space before it, in this order."""

_MAY_FOLLOW: dict[str, set[str | None]] = {
    # These change one token at a time, in this order ...
    "ByteLevel": {None},
    "WordPiece": {None},
    "Metaspace": {None},
    "Replace": {None, "Replace"},
    "ByteFallback": {None, "Replace", "Metaspace"},
    # ... until they are joined. What comes then changes the text; before, it would change every token.
    "Strip": {"ByteLevel", "Fuse"},
}


def _links(decoder: _Json) -> Iterator[_Json]:
    """The steps of a decoder chain, its sequences opened."""
    if decoder["type"] == "Sequence":
        for inner in decoder["decoders"]:
            yield from _links(inner)
    else:
        yield decoder
