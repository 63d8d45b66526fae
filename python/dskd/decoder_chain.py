"""The decoder of a `tokenizers.Tokenizer` as steps that change the bytes of one token at a time.

A chain is read exactly or refused. What decides is whether the text that a token adds depends on the token
alone, wherever ordinary text stands before it. While tokens stand apart any step is of that kind.
`ByteFallback` joins neighbouring bytes, `ByteLevel` and `Fuse` join everything; a step behind them sees
several tokens at once. What can still be read there:

- `Replace` of one character, and `Metaspace`, which replaces one: no two tokens share a character, unless
  it is written in byte tokens (`▁` as `<0xE2> <0x96> <0x81>`). So that it is never read wrongly, its second
  byte is opaque then. Tokens of byte-level BPE hold parts of characters everywhere; there it must be of one
  byte.
- `Strip` of one space at the start of the text. (`Metaspace` takes joined text for a first token, and drops
  every `▁` of it.)

`BPEDecoder` and `CTC` stay refused: the one writes the space of a word behind it and leaves it out at the end
of a text, the other drops a token that repeats the one before.

At the start of a text decoders drop a space; the flag `dummy_prefix` says so. Two of them do a little more
there, which no other place of a text shows: Metaspace drops every `▁` of the first token and not one only,
and WordPiece leaves the `##` of a first token standing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from dskd.pieces import DecoderStep

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Decoder", "read_decoder"]

_Json = dict[str, Any]

_MOST_LINKS = 64
"""The longest chain of a real tokenizer has 5; each costs time for each token."""


class Decoder(NamedTuple):
    """The steps of a decoder, and whether it drops a space at the start of a text."""

    steps: tuple[DecoderStep, ...]
    dummy_prefix: bool


def read_decoder(tokenizer: Any, *, byte_fallback: bool) -> Decoder:
    """What a tokenizer's decoder does to each token.

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
    chain = _read(decoder)
    prefix = getattr(model, "continuing_subword_prefix", None)
    if prefix and DecoderStep("word", prefix) not in chain.steps:
        raise ValueError(
            f"{name} marks what goes on with a word by {prefix!r}, and its decoder does not take that away: "
            f"set tokenizer.decoder = decoders.WordPiece({prefix!r})"
        )
    if byte_fallback and _BYTE_FALLBACK not in chain.steps:
        raise ValueError(
            f"{name} falls back to bytes, and its decoder has no step ByteFallback that reads them: the "
            "decoder would write <0xE2> out"
        )
    return Decoder(tuple(chain.steps), chain.dummy_prefix)


_SPACE_BEHIND = (
    "the space of a word stands behind it and is left out at the end of a text, so that what a token adds "
    "depends on what follows"
)

_BYTE_LEVEL = DecoderStep("byte_level")
_BYTE_FALLBACK = DecoderStep("byte_fallback")


def _without_decoder(name: str) -> Decoder:
    """Tokens are joined by spaces then, which is what whole words want and nothing else."""
    if name == "WordLevel":
        return Decoder((DecoderStep("word"),), dummy_prefix=True)
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


def _read(decoder: _Json) -> _Chain:
    links = list(_links(decoder))
    if len(links) > _MOST_LINKS:
        raise ValueError(
            f"the decoder has {len(links)} steps, and {_MOST_LINKS} are allowed; give Vocabulary.from_bytes "
            "what the ids decode to"
        )
    chain = _Chain()
    for link in links:
        chain.add(link)
    return chain


def _links(decoder: _Json) -> Iterator[_Json]:
    """The steps of a decoder chain, its sequences opened."""
    if decoder["type"] == "Sequence":
        for inner in decoder["decoders"]:
            yield from _links(inner)
    else:
        yield decoder


@dataclass(slots=True)
class _Chain:
    """A decoder as far as it is read: what its links do to a token, one behind the other."""

    steps: list[DecoderStep] = field(default_factory=list)
    dummy_prefix: bool = False
    joined_by: str | None = None
    """The last link that joined tokens, neighbouring bytes (`ByteFallback`) or all."""

    def add(self, link: _Json) -> None:
        match link:
            case {"type": "ByteLevel" | "ByteFallback" as name}:
                self._bytes(name)
            case {"type": "Fuse"}:
                self.joined_by = "Fuse"
            case {"type": "Replace", "pattern": {"String": pattern}, "content": content} if pattern:
                self._replace("Replace", pattern, content)
            case {"type": "Metaspace", "replacement": mark, "prepend_scheme": scheme}:
                self._metaspace(mark, drops=scheme != "never")
            case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup}:
                self._refuse_joined("WordPiece")
                self._word_piece(prefix, _CLEANUP if cleanup else ())
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                if not self._is_one_text:
                    raise ValueError(
                        "the decoder step Strip before the tokens are joined is not supported: it would "
                        "change every token and not the start of the text"
                    )
                if start:
                    self._drop_space("Strip")
            case _:
                raise _not_supported(link)

    @property
    def _is_one_text(self) -> bool:
        return self.joined_by in {"ByteLevel", "Fuse"}

    def _refuse_joined(self, name: str) -> None:
        if self.joined_by is not None:
            raise _sees_several(f"{name} behind {self.joined_by}")

    def _bytes(self, name: str) -> None:
        self._refuse_joined(name)
        if self.dummy_prefix and (name == "ByteLevel" or any(step.name == "word" for step in self.steps)):
            raise ValueError(
                f"the decoder step {name} is not supported behind one that drops the space at the start of a "
                "text: a token without its space would be read in another way"
            )
        self.steps.append(_BYTE_LEVEL if name == "ByteLevel" else _BYTE_FALLBACK)
        self.joined_by = name

    def _replace(self, name: str, old: str, new: str) -> None:
        if self.joined_by is not None:
            order = f"{name} of {old!r} behind {self.joined_by}"
            if len(old) > 1:
                raise _sees_several(order)
            if _BYTE_LEVEL in self.steps and not old.isascii():
                raise ValueError(
                    f"the decoder step {order} is not supported: byte-level tokens may hold parts of it"
                )
        if self.dummy_prefix and " " in old + new:
            raise ValueError(
                f"the decoder step {name} of {old!r} by {new!r} is not supported behind one that drops the "
                "space at the start of a text: there it would see another text"
            )
        self.steps.append(DecoderStep("replace", old, new))

    def _metaspace(self, mark: str, *, drops: bool) -> None:
        if drops and self._is_one_text:  # all of it is the first token, which loses its marks
            self._replace("Metaspace", mark, "")
            return
        if drops and any(" " in step.new for step in self.steps):
            raise ValueError(
                "the decoder step Metaspace is not supported behind one that writes spaces: at the start of "
                "a text it drops only its own"
            )
        self._replace("Metaspace", mark, " ")
        if drops:
            self._drop_space("Metaspace")

    def _word_piece(self, prefix: str, cleanup: Iterable[DecoderStep]) -> None:
        if prefix:  # with an empty one every token "goes on"
            self.steps.append(DecoderStep("word", prefix))
        self.steps += cleanup
        if prefix:
            self._drop_space("WordPiece")

    def _drop_space(self, name: str) -> None:
        if self.dummy_prefix:
            raise ValueError(f"the decoder step {name} would drop a second space; not supported")
        self.dummy_prefix = True


def _sees_several(order: str) -> ValueError:
    return ValueError(f"the decoder step {order} is not supported: it would see several tokens at once")


def _not_supported(link: _Json) -> ValueError:
    reasons = {
        "BPEDecoder": _SPACE_BEHIND,
        "CTC": "it drops a token that repeats the one before, so that what a token adds depends on its "
        "neighbour",
    }
    name = link["type"]
    if name in reasons:
        return ValueError(f"the decoder step {name} cannot be read exactly: {reasons[name]}")
    return ValueError(f"the decoder step {json.dumps(link)} is not supported")


_CLEANUP = tuple(
    DecoderStep("replace", dirty, clean)
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
