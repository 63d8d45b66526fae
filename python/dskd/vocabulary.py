"""What an aligner knows of a tokenizer: the bytes, kind and roles of every id.

A tokenizer is asked for its spellings, its decoder and its special tokens; the core makes the bytes. The
decoder is read from the tokenizer's own decoder chain or model flags, never guessed from its name, and a
tokenizer that cannot be read exactly is refused.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dskd import _core
from dskd.ragged import integer_rows

__all__ = ["Kind", "RolesLike", "Vocabulary"]

_Names = AbstractSet[str]
RolesLike: TypeAlias = Mapping[int, _Names] | Mapping[str, _Names] | Mapping[int | str, _Names]
"""Roles to add, by id or by the token's literal: `{"<|im_end|>": {"eos"}}`."""


class Kind(IntEnum):
    """What an id is; of several ids with the same bytes the canonical one has the lowest kind."""

    NORMAL = 0
    USER_DEFINED = 1
    BYTE = 2
    UNUSED = 3
    SPECIAL = 4
    OPAQUE = 5


class Vocabulary:
    """The bytes, kinds and roles of all ids of one tokenizer; immutable, picklable, hashed by content.

    Make one with `from_tokenizer` or `from_bytes`. *Token bytes* are what an id adds to the decoded text
    when ordinary text stands before it: `Ġthe` and `▁the` both have the bytes of ` the`. A *special*
    has none, and roles instead. Of an *opaque* id the bytes are unknown.
    """

    __slots__ = ("_canonical", "_content_hash", "_core", "_roles")

    def __init__(self, core: _core.Vocabulary) -> None:
        """Wraps the compiled vocabulary; use `from_tokenizer` or `from_bytes`."""
        self._core = core
        self._roles: dict[int, frozenset[str]] | None = None
        self._content_hash: str | None = None
        self._canonical: npt.NDArray[np.int32] | None = None

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        *,
        size: int | None = None,
        roles: RolesLike | None = None,
    ) -> Vocabulary:
        """The vocabulary of a tokenizer.

        Args:
            tokenizer: a `tokenizers.Tokenizer`, a fast tokenizer of transformers, or a
                `sentencepiece.SentencePieceProcessor`; byte-level BPE, or SentencePiece BPE with byte
                fallback.
            size: how many slots the model has (`model.config.vocab_size`), where those are more than the
                tokenizer defines; the surplus is opaque.
            roles: roles to add to those that the tokenizer names; an id named here is special.

        Raises:
            TypeError: it is no tokenizer of a known kind.
            ValueError: its family cannot be read exactly; `size` is too small; `roles` names no token.
        """
        return _vocabulary(_read(tokenizer), size, roles)

    @classmethod
    def from_bytes(
        cls,
        tokens: Sequence[bytes | None],
        *,
        size: int | None = None,
        roles: RolesLike | None = None,
        dummy_prefix: bool = False,
    ) -> Vocabulary:
        r"""A vocabulary from the bytes of every id: `from_bytes([b"a", b" b", None], roles={2: {"eos"}})`.

        Args:
            tokens: the bytes of each id; `None` for a slot that is not defined, or for a special that
                `roles` names. The bytes of a special are its literal and add nothing to the text.
            size: as in `from_tokenizer`.
            roles: as in `from_tokenizer`.
            dummy_prefix: whether the decoder drops one space at the start of a text; see `spans`.

        Raises:
            TypeError: a token is neither bytes nor None.
            ValueError: `size` is too small, `roles` names no token, or a token is too long.
        """
        for index, token in enumerate(tokens):
            if token is not None and not isinstance(token, bytes):
                raise TypeError(f"token {index} is {type(token).__name__}; tokens are bytes or None")
        kinds = [Kind.OPAQUE if token is None else Kind.NORMAL for token in tokens]
        return _vocabulary(_Pieces(list(tokens), kinds, dummy_prefix=dummy_prefix), size, roles)

    def __len__(self) -> int:
        """The number of slots; ids run from 0 to one less."""
        return len(self._core)

    @property
    def size(self) -> int:
        """The number of slots; ids run from 0 to one less."""
        return len(self._core)

    @property
    def dummy_prefix(self) -> bool:
        """Whether the decoder drops one space at the start of a text."""
        return self._core.dummy_prefix

    @property
    def core(self) -> _core.Vocabulary:
        """The compiled vocabulary."""
        return self._core

    def token_bytes(self, token_id: int) -> bytes | None:
        """What the id adds to the text: empty for a special, None if it is unknown.

        Raises:
            ValueError: the vocabulary has no such id.
        """
        return self._core.token_bytes(self._checked(token_id))

    def kind(self, token_id: int) -> Kind:
        """What the id is.

        Raises:
            ValueError: the vocabulary has no such id.
        """
        return Kind(self._core.kind(self._checked(token_id)))

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < len(self):
            raise ValueError(f"id {token_id} is not in the vocabulary (size {len(self)})")
        return token_id

    @property
    def roles(self) -> Mapping[int, AbstractSet[str]]:
        """For every special id what it is for: `bos`, `eos`, `pad`, `unk`, and its literal.

        An id that only pads or only stands for unknown text has no literal, since by it padding would pair
        with padding. One that only stands for unknown text is opaque, whatever the family; where it ends
        documents as well (SmolLM2's `<|endoftext|>`), say so: `roles={"<|endoftext|>": {"eos"}}`.
        """
        if self._roles is None:
            roles = self._core.roles()
            self._roles = {token_id: frozenset(names) for token_id, names in roles.items()}
        return self._roles

    @property
    def canonical_ids(self) -> npt.NDArray[np.int32]:
        """For every id the one that stands for all ids with its bytes, int32 `[size]`; -1 without bytes.

        Normal before user-defined before byte fallback before unused, then the lowest.
        """
        if self._canonical is None:
            self._canonical = self._core.canonical_ids()
            self._canonical.flags.writeable = False
        return self._canonical

    def spans(self, token_ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The byte interval `[start, end)` of each token in the text of all of them.

        The dummy prefix of a SentencePiece text is dropped, as the decoder drops it. An opaque token
        has (-1, -1); later spans count known bytes only.

        Args:
            token_ids: integers `[tokens]`.

        Returns:
            int64 `[tokens, 2]`.

        Raises:
            ValueError: an id is not in the vocabulary; its position is named.
        """
        rows = integer_rows(token_ids, "token_ids")
        if len(rows) > 1:
            raise ValueError(f"token_ids has {len(rows)} rows; spans takes one sequence")
        return self._core.spans(rows.values.astype(np.int64, copy=False))

    @property
    def content_hash(self) -> str:
        """SHA-256 over all that alignment depends on, in hexadecimal; the same in every process."""
        if self._content_hash is None:
            arena, lengths, kinds, roles, dummy_prefix = self._core.parts()
            named = sorted((token_id, sorted(names)) for token_id, names in roles.items())
            digest = hashlib.sha256(lengths.astype("<u4").tobytes() + kinds.tobytes() + arena)
            digest.update(json.dumps([named, dummy_prefix]).encode())
            self._content_hash = digest.hexdigest()
        return self._content_hash

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same bytes, kinds and roles."""
        return isinstance(other, Vocabulary) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        """A hash of the content, the same in every process."""
        return int(self.content_hash[:15], 16)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its content: the same vocabulary gives the same bytes in every process."""
        arena, lengths, kinds, roles, dummy_prefix = self._core.parts()
        named = tuple((token_id, tuple(sorted(roles[token_id]))) for token_id in sorted(roles))
        return _from_parts, (arena, lengths.tobytes(), kinds.tobytes(), named, dummy_prefix)

    def __repr__(self) -> str:
        """Its size, its specials and the head of its hash."""
        return f"Vocabulary(size={len(self)}, specials={len(self.roles)}, hash={self.content_hash[:12]})"


def _from_parts(
    arena: bytes,
    lengths: bytes,
    kinds: bytes,
    named: tuple[tuple[int, tuple[str, ...]], ...],
    dummy_prefix: bool,
) -> Vocabulary:
    return Vocabulary(
        _core.Vocabulary.from_parts(
            arena,
            np.frombuffer(lengths, dtype=np.uint32),
            np.frombuffer(kinds, dtype=np.uint8),
            {token_id: set(names) for token_id, names in named},
            dummy_prefix,
        )
    )


_Step = tuple[str, str, str]
"""The name of a decoder step, and for `replace` what becomes what."""


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What a tokenizer says of its ids."""

    spellings: list[str | None] | list[bytes | None]
    kinds: list[Kind]
    named: dict[int, set[str]] = field(default_factory=dict)
    """The roles that the tokenizer names, by id; literals are added later."""
    steps: tuple[_Step, ...] = ()
    """The steps of its decoder, for spellings that are text."""
    dummy_prefix: bool = False


def _vocabulary(pieces: _Pieces, size: int | None, roles: RolesLike | None) -> Vocabulary:
    spellings, kinds = _with_size(pieces, None if size is None else operator.index(size))
    named = {token_id: set(names) for token_id, names in pieces.named.items()}
    for token_id, names in _added_roles(roles or {}, spellings):
        named.setdefault(token_id, set()).update(names)
    for token_id, roles_named in named.items():
        is_unknown = "unk" in roles_named and roles_named <= {"unk", "pad"}
        kinds[token_id] = Kind.OPAQUE if is_unknown else Kind.SPECIAL
    all_roles = {
        token_id: _roles_of(named.get(token_id, set()), spellings[token_id])
        for token_id, kind in enumerate(kinds)
        if token_id in named or kind == Kind.SPECIAL
    }
    return Vocabulary(_core_vocabulary(spellings, np.array(kinds, dtype=np.uint8), all_roles, pieces))


def _with_size(pieces: _Pieces, size: int | None) -> tuple[list[Any], list[Kind]]:
    defined = len(pieces.spellings)
    surplus = 0 if size is None else size - defined
    if defined + surplus > _core.MAX_ENTRIES:
        raise ValueError(f"size={size}, and a vocabulary may have {_core.MAX_ENTRIES} entries")
    if surplus < 0:
        raise ValueError(
            f"size={size} is smaller than the tokenizer, which defines ids up to {defined - 1}; "
            "leave size= out, or pass the vocab_size of a model that has all of them"
        )
    return [*pieces.spellings, *[None] * surplus], [*pieces.kinds, *[Kind.OPAQUE] * surplus]


def _added_roles(
    roles: RolesLike, spellings: Sequence[str | bytes | None]
) -> Iterator[tuple[int, AbstractSet[str]]]:
    """The roles by id, those named by literal too."""
    ids: dict[str | bytes | None, int] = {}
    if any(isinstance(key, str) for key in roles):
        ids = {spelling: token_id for token_id, spelling in reversed(list(enumerate(spellings)))}
    for key, names in roles.items():
        if isinstance(names, str):
            raise TypeError(f"roles[{key!r}] is a string; give a set of roles: {{{names!r}}}")
        token_id = ids.get(key, ids.get(key.encode())) if isinstance(key, str) else operator.index(key)
        if token_id is None:
            raise ValueError(f"roles names {key!r}, and the vocabulary has no such token")
        if not 0 <= token_id < len(spellings):
            raise ValueError(f"roles names id {key}, and the vocabulary has ids 0 to {len(spellings) - 1}")
        yield token_id, names


def _roles_of(named: set[str], spelling: str | bytes | None) -> set[str]:
    """The roles of a special: those that are named, and its literal unless it only pads or hides text."""
    if spelling is None or (named and named <= {"pad", "unk"}):
        return named
    return named | {spelling if isinstance(spelling, str) else spelling.decode(errors="backslashreplace")}


def _core_vocabulary(
    spellings: list[Any], kinds: npt.NDArray[np.uint8], roles: dict[int, set[str]], pieces: _Pieces
) -> _core.Vocabulary:
    if pieces.steps:
        _refuse_surrogates(spellings)
        return _core.Vocabulary.from_spellings(spellings, kinds, roles, pieces.steps, pieces.dummy_prefix)
    lengths = np.fromiter((len(token or b"") for token in spellings), np.uint32, len(spellings))
    arena = b"".join(token or b"" for token in spellings)
    return _core.Vocabulary.from_parts(arena, lengths, kinds, roles, pieces.dummy_prefix)


def _refuse_surrogates(spellings: Sequence[str | None]) -> None:
    for index, spelling in enumerate(spellings):
        if spelling is not None and not spelling.isascii():
            try:
                spelling.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"token {index} is spelled {spelling!r}, which is not Unicode text"
                ) from error


# ---- Tokenizers -> pieces --------------------------------------------------------------------------------

_SUPPORTED = "supported are byte-level BPE and SentencePiece BPE with byte fallback"
_NAMED_ROLES = ("bos", "eos", "pad", "unk")


def _read(tokenizer: Any) -> _Pieces:
    if hasattr(tokenizer, "serialized_model_proto"):
        return _read_sentencepiece(tokenizer)
    if hasattr(tokenizer, "backend_tokenizer"):
        return _read_transformers(tokenizer)
    if hasattr(tokenizer, "get_added_tokens_decoder") and hasattr(tokenizer, "model"):
        return _read_tokenizers(tokenizer)
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    raise TypeError(
        f"cannot read a {kind}: give a tokenizers.Tokenizer, a fast tokenizer of transformers or a "
        "sentencepiece.SentencePieceProcessor (or Vocabulary.from_bytes)"
    )


def _read_tokenizers(tokenizer: Any) -> _Pieces:
    """From a `tokenizers.Tokenizer`; the only role it names is the model's unknown token."""
    model = tokenizer.model
    steps, dummy_prefix = _decoder_of(type(model).__name__, model, tokenizer.decoder)
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    slots = max(*vocabulary.values(), *added, -1) + 1
    if slots > _core.MAX_ENTRIES:
        raise ValueError(f"the tokenizer defines id {slots - 1}; ids end at {_core.MAX_ENTRIES - 1}")
    spellings: list[str | None] = [None] * slots
    kinds = [Kind.OPAQUE] * len(spellings)
    for spelling, token_id in vocabulary.items():
        spellings[token_id] = spelling
        kinds[token_id] = Kind.NORMAL
    for token_id, token in added.items():
        spellings[token_id] = token.content
        kinds[token_id] = Kind.SPECIAL if token.special else Kind.USER_DEFINED
    unknown = vocabulary.get(model.unk_token) if model.unk_token else None
    named = {} if unknown is None else {unknown: {"unk"}}
    return _Pieces(spellings, kinds, named, steps, dummy_prefix)


def _read_transformers(tokenizer: Any) -> _Pieces:
    """From a fast tokenizer of transformers: what its backend says, and its special-token map."""
    pieces = _read_tokenizers(tokenizer.backend_tokenizer)
    by_role = [(role, getattr(tokenizer, f"{role}_token_id", None)) for role in _NAMED_ROLES]
    for role, token_id in [*by_role, *(("", token_id) for token_id in tokenizer.all_special_ids)]:
        if token_id is None:
            continue
        if not 0 <= token_id < len(pieces.kinds):
            raise ValueError(f"special id {token_id} is beyond the tokenizer's last, {len(pieces.kinds) - 1}")
        pieces.kinds[token_id] = Kind.SPECIAL
        if role:
            pieces.named.setdefault(token_id, set()).add(role)
    return pieces


def _decoder_of(name: str, model: Any, decoder: Any) -> tuple[tuple[_Step, ...], bool]:
    """The decoder's steps, and whether it drops a space at the start of a text."""
    if name != "BPE":
        raise ValueError(f"{name} tokenizers are not supported yet: {_SUPPORTED}")
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        raise ValueError(f"BPE with a subword prefix or a word suffix is not supported yet: {_SUPPORTED}")
    steps, dummy_prefix = _steps_of(None if decoder is None else json.loads(decoder.__getstate__()))
    if not {"byte_level", "byte_fallback"} & {step[0] for step in steps}:
        raise ValueError(
            f"BPE without a byte-level or byte-fallback decoder is not supported yet: {_SUPPORTED}"
        )
    return steps, dummy_prefix


def _steps_of(decoder: dict[str, Any] | None) -> tuple[tuple[_Step, ...], bool]:
    steps: list[_Step] = []
    dummy_prefix = False
    previous = None
    for link in _links(decoder):
        if previous not in _MAY_FOLLOW.get(link["type"], {previous}):
            order = f"{link['type']} behind {previous}"
            raise ValueError(f"the decoder step {order} is not supported: {_SUPPORTED}")
        previous = link["type"]
        match link:
            case {"type": "ByteLevel"}:
                steps.append(("byte_level", "", ""))
            case {"type": "ByteFallback"}:
                steps.append(("byte_fallback", "", ""))
            case {"type": "Replace", "pattern": {"String": pattern}, "content": content}:
                steps.append(("replace", pattern, content))
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                dummy_prefix = start == 1
            case {"type": "Fuse"}:
                pass
            case _:
                raise ValueError(f"the decoder step {json.dumps(link)} is not supported yet: {_SUPPORTED}")
    return tuple(steps), dummy_prefix


_MAY_FOLLOW: dict[str, set[str | None]] = {
    # These change one token at a time, in this order ...
    "ByteLevel": {None},
    "Replace": {None, "Replace"},
    "ByteFallback": {None, "Replace"},
    # ... until they are joined. What comes then changes the text; before, it would change every token.
    "Strip": {"ByteLevel", "Fuse"},
}


def _links(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The steps of a decoder chain, its sequences opened."""
    if decoder is not None and decoder["type"] == "Sequence":
        for inner in decoder["decoders"]:
            yield from _links(inner)
    elif decoder is not None:
        yield decoder


_SENTENCEPIECE_MODELS = {1: "Unigram", 2: "BPE", 3: "word", 4: "character"}
_SENTENCEPIECE_KINDS = {
    1: Kind.NORMAL,
    2: Kind.SPECIAL,  # unknown
    3: Kind.SPECIAL,  # control
    4: Kind.USER_DEFINED,
    5: Kind.UNUSED,
    6: Kind.BYTE,
}


def _read_sentencepiece(processor: Any) -> _Pieces:
    """From a `SentencePieceProcessor`: the pieces and the flags of its model."""
    model = _sentencepiece_model(processor)
    _refuse_sentencepiece(model)
    normalizer = model.normalizer_spec
    named: dict[int, set[str]] = {}
    for role in _NAMED_ROLES:
        token_id = getattr(processor, f"{role}_id")()
        if token_id >= 0:
            named.setdefault(token_id, set()).add(role)
    return _Pieces(
        spellings=[piece.piece for piece in model.pieces],
        kinds=[_SENTENCEPIECE_KINDS[piece.type] for piece in model.pieces],
        named=named,
        steps=(("replace", "▁", " "), ("byte_fallback", "", "")),
        dummy_prefix=normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces,
    )


def _sentencepiece_model(processor: Any) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2  # noqa: PLC0415 - only those who pass one have it
    except ImportError as error:
        raise ImportError("reading a SentencePiece model needs protobuf: pip install protobuf") from error
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # made at run time
    model.ParseFromString(processor.serialized_model_proto())
    return model


def _refuse_sentencepiece(model: Any) -> None:
    name = _SENTENCEPIECE_MODELS.get(model.trainer_spec.model_type, "unknown")
    if name != "BPE":
        raise ValueError(f"SentencePiece {name} models are not supported yet: {_SUPPORTED}")
    if not model.trainer_spec.byte_fallback:
        raise ValueError(f"SentencePiece BPE without byte fallback is not supported yet: {_SUPPORTED}")
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise ValueError(f"SentencePiece with white space as a suffix is not supported yet: {_SUPPORTED}")
    if model.denormalizer_spec.precompiled_charsmap:
        raise ValueError(
            "a SentencePiece model with a denormalizer changes text after decoding; not supported"
        )
