"""What an aligner knows of a tokenizer: the bytes, kind and roles of every id.

`dskd.reading` and `dskd.rank_files` ask a tokenizer or a file for spellings, decoder and special tokens; the
core makes the bytes.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dskd import _core
from dskd.pieces import Kind, Pieces, refuse_slots
from dskd.ragged import integer_rows
from dskd.rank_files import read_rank_file
from dskd.reading import read_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Kind", "RolesLike", "Vocabulary"]

_Names = AbstractSet[str]
RolesLike: TypeAlias = Mapping[int, _Names] | Mapping[str, _Names] | Mapping[int | str, _Names]
"""Roles to add, by id or by the token's literal: `{"<|im_end|>": {"eos"}}`."""


class Vocabulary:
    """The bytes, kinds and roles of all ids of one tokenizer; immutable, picklable, hashed by content.

    Make one with `from_tokenizer`, `from_file` or `from_bytes`. *Token bytes* are what an id adds to the
    decoded text when ordinary text stands before it: `Ġthe` and `▁the` both have the bytes of ` the`. A
    *special* has none, and roles instead. Of an *opaque* id the bytes are unknown.
    """

    __slots__ = ("_canonical", "_content_hash", "_core", "_roles")

    def __init__(self, core: _core.Vocabulary) -> None:
        """Wraps the compiled vocabulary; use `from_tokenizer`, `from_file` or `from_bytes`."""
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
        cut: bool = False,
    ) -> Vocabulary:
        """The vocabulary of a tokenizer.

        Args:
            tokenizer: a `tokenizers.Tokenizer`, a tokenizer of transformers (fast, or slow around a
                SentencePiece model), a `tiktoken.Encoding`, or a `sentencepiece.SentencePieceProcessor`:
                byte-level BPE, SentencePiece BPE and Unigram with and without byte fallback, WordPiece,
                whole words. What transformers does to a text that is decoded already
                (`clean_up_tokenization_spaces`) does not count.
            size: how many slots the model has (`model.config.vocab_size`), where those are more than the
                tokenizer defines; the surplus is opaque.
            roles: roles to add to those that the tokenizer names; an id named here is special.
            cut: whether `size` may be smaller than the tokenizer (Gemma 3's defines an id for which its text
                models have no row); the ids from there on are not in the vocabulary, and a row that has one
                is refused when it comes.

        Raises:
            TypeError: it is no tokenizer of a known kind.
            ValueError: it cannot be read exactly, and the message says why; `size` is too small; `roles`
                names no token.
        """
        pieces = read_tokenizer(tokenizer)
        return _vocabulary(pieces if size is None or not cut else _cut(pieces, size), size, roles)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        size: int | None = None,
        roles: RolesLike | None = None,
    ) -> Vocabulary:
        """The vocabulary in a rank file: a list of ids and their bytes; which kind it is, its content says.

        Args:
            path: `*.tiktoken` (base64 and rank a line; special tokens are not in it: give `roles` by id, and
                `size`), `tekken.json` (special tokens first, cut to its `default_vocab_size`), or RWKV's
                `rwkv_vocab_*.txt` (id, Python literal and length a line; its end of text is
                `roles={0: {"eos"}}`).
            size: as in `from_tokenizer`.
            roles: as in `from_tokenizer`.

        Raises:
            OSError: the file cannot be opened.
            ValueError: it is of another kind, or a line of it is malformed, and is named; or as in
                `from_tokenizer`.
        """
        return _vocabulary(read_rank_file(path), size, roles)

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
        if not set(map(type, tokens)) <= {bytes, type(None)}:
            for index, token in enumerate(tokens):
                if token is not None and not isinstance(token, bytes):
                    raise TypeError(f"token {index} is {type(token).__name__}; tokens are bytes or None")
        normal, opaque = Kind.NORMAL, Kind.OPAQUE
        kinds = [opaque if token is None else normal for token in tokens]
        return _vocabulary(Pieces(list(tokens), kinds, dummy_prefix=dummy_prefix), size, roles)

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


def _vocabulary(pieces: Pieces, size: int | None, roles: RolesLike | None) -> Vocabulary:
    spellings, kinds = _with_size(pieces, None if size is None else operator.index(size))
    named = {token_id: set(names) for token_id, names in pieces.named.items()}
    for token_id, names in _added_roles(roles or {}, spellings):
        named.setdefault(token_id, set()).update(names)
    for token_id, roles_named in named.items():
        is_unknown = "unk" in roles_named and roles_named <= {"unk", "pad"}
        kinds[token_id] = Kind.OPAQUE if is_unknown else Kind.SPECIAL
    numbers = np.frombuffer(bytes(kinds), dtype=np.uint8)
    specials = {*named, *np.flatnonzero(numbers == Kind.SPECIAL).tolist()}
    all_roles = {
        token_id: _roles_of(named.get(token_id, set()), spellings[token_id]) for token_id in sorted(specials)
    }
    return Vocabulary(_core_vocabulary(spellings, numbers, all_roles, pieces))


def _cut(pieces: Pieces, size: int) -> Pieces:
    """Without the ids from `size` on."""
    named = {token_id: names for token_id, names in pieces.named.items() if token_id < size}
    return replace(pieces, spellings=pieces.spellings[:size], kinds=pieces.kinds[:size], named=named)


def _with_size(pieces: Pieces, size: int | None) -> tuple[list[Any], list[Kind]]:
    defined = len(pieces.spellings)
    if size is None or size == defined:
        refuse_slots(defined, defined, f"it has {defined} tokens")
        return pieces.spellings, pieces.kinds
    if size < defined:
        raise ValueError(
            f"size={size} is smaller than the tokenizer, which defines ids up to {defined - 1}; "
            "leave size= out, or pass the vocab_size of a model that has all of them"
        )
    refuse_slots(size, defined - pieces.kinds.count(Kind.OPAQUE), f"size={size}")
    surplus = size - defined
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
    spellings: list[Any], kinds: npt.NDArray[np.uint8], roles: dict[int, set[str]], pieces: Pieces
) -> _core.Vocabulary:
    if pieces.steps is not None:
        _refuse_surrogates(spellings)
        return _core.Vocabulary.from_spellings(spellings, kinds, roles, pieces.steps, pieces.dummy_prefix)
    tokens = [token or b"" for token in spellings]
    lengths = np.fromiter(map(len, tokens), np.uint32, len(tokens))
    return _core.Vocabulary.from_parts(b"".join(tokens), lengths, kinds, roles, pieces.dummy_prefix)


def _refuse_surrogates(spellings: Sequence[str | None]) -> None:
    for index, spelling in enumerate(spellings):
        if spelling is not None and not spelling.isascii():
            try:
                spelling.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"token {index} is spelled {spelling!r}, which is not Unicode text"
                ) from error
