"""Tokenizers of every library as pieces: the spellings, kinds and roles of their ids, and their decoder.

Nothing is guessed from a name: the decoder comes from the tokenizer's own decoder chain, model flags or byte
table, and a tokenizer that cannot be read exactly is refused with the reason. No code that comes with a
tokenizer is run.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from dskd.decoder_chain import read_decoder
from dskd.pieces import Kind, Pieces, refuse_slots
from dskd.sentencepiece_model import ROLES, sentencepiece_pieces

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

__all__ = ["read_tokenizer"]


def read_tokenizer(tokenizer: Any) -> Pieces:
    """What a tokenizer says of its ids; see `Vocabulary.from_tokenizer`."""
    if hasattr(tokenizer, "serialized_model_proto"):
        return sentencepiece_pieces(tokenizer)
    if hasattr(tokenizer, "backend_tokenizer"):
        return _from_fast(tokenizer)
    if hasattr(tokenizer, "get_added_tokens_decoder") and hasattr(tokenizer, "model"):
        return _from_tokenizers(tokenizer)
    if hasattr(getattr(tokenizer, "sp_model", None), "serialized_model_proto"):
        return _from_slow(tokenizer)
    if hasattr(tokenizer, "decode_single_token_bytes") and hasattr(tokenizer, "special_tokens_set"):
        return _from_tiktoken(tokenizer)
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}"
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        raise TypeError(
            f"cannot read a {kind}: it decodes in Python, and holds neither a tokenizers.Tokenizer nor a "
            "SentencePiece model; give the fast tokenizer of that model, its vocabulary file "
            "(Vocabulary.from_file), or the bytes of its ids (Vocabulary.from_bytes)"
        )
    raise TypeError(
        f"cannot read a {kind}: give a tokenizers.Tokenizer, a tokenizer of transformers, a "
        "tiktoken.Encoding or a sentencepiece.SentencePieceProcessor (or use Vocabulary.from_file, "
        "Vocabulary.from_bytes)"
    )


# ---- tokenizers ------------------------------------------------------------------------------------------


def _from_tokenizers(tokenizer: Any) -> Pieces:
    """From a `tokenizers.Tokenizer`; the only role it names is the model's unknown token."""
    model = _model_of(tokenizer)
    decoder = read_decoder(tokenizer, byte_fallback=model.byte_fallback)
    added = tokenizer.get_added_tokens_decoder()
    slots = _slots({*(token_id for _, token_id in model.spelled), *added})
    spellings: list[str | None] = [None] * slots
    kinds = [Kind.OPAQUE] * slots
    normal = Kind.NORMAL
    # The decoder leaves specials out by what they are spelled, at whatever id.
    special = {token.content for token in added.values() if token.special}
    for spelling, token_id in model.spelled:
        if spellings[token_id] is not None:
            _refuse_second(*sorted([spelling, str(spellings[token_id])]), token_id=token_id)
        spellings[token_id] = spelling
        kinds[token_id] = Kind.SPECIAL if spelling in special else normal
    for token_id, token in added.items():
        _refuse_second(spellings[token_id], token.content, token_id=token_id)
        # Where it was given to the normalizer, the normalizer may have put a dummy prefix before it.
        spellings[token_id] = token.content if token.special else tokenizer.id_to_token(token_id)
        kinds[token_id] = Kind.SPECIAL if token.special else Kind.USER_DEFINED
    named = {} if model.unknown is None else {model.unknown: {"unk"}}
    return Pieces(spellings, kinds, named, decoder.steps, decoder.dummy_prefix)


class _Model(NamedTuple):
    """What the model inside a `tokenizers.Tokenizer` says."""

    spelled: list[tuple[str, int]]
    unknown: int | None
    byte_fallback: bool


def _model_of(tokenizer: Any) -> _Model:
    model = tokenizer.model
    if type(model).__name__ == "Unigram":
        # It shows its unknown token to nobody but pickle, and get_vocab hides a piece that it has twice.
        state = json.loads(model.__getstate__())
        pieces = [(spelling, token_id) for token_id, (spelling, _) in enumerate(state["vocab"])]
        return _Model(pieces, state["unk_id"], bool(state.get("byte_fallback")))
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
    unknown = vocabulary.get(model.unk_token) if model.unk_token else None
    return _Model(list(vocabulary.items()), unknown, bool(getattr(model, "byte_fallback", False)))


def _slots(ids: Collection[int]) -> int:
    """How many slots the ids need, if so many are allowed."""
    slots = max(ids, default=-1) + 1
    refuse_slots(slots, len(ids), f"the tokenizer defines id {slots - 1}")
    return slots


def _refuse_second(first: str | None, second: str, *, token_id: int) -> None:
    if first is not None and first != second:
        raise ValueError(f"the tokenizer gives id {token_id} to two tokens, {first!r} and {second!r}")


# ---- transformers ----------------------------------------------------------------------------------------


def _from_fast(tokenizer: Any) -> Pieces:
    """From a fast tokenizer of transformers: what its backend says, and which tokens it names by their use.

    Its list of further special tokens (`extra_special_tokens`) is not believed: special is what the backend
    flags as such, which is what `decode(skip_special_tokens=True)` leaves out. Of a SentencePiece model
    transformers lists every user-defined piece there (the full stop of XLNet), and decodes it as text.
    """
    return _with_roles(_from_tokenizers(tokenizer.backend_tokenizer), tokenizer, _ids_named_by_use(tokenizer))


def _ids_named_by_use(tokenizer: Any) -> Iterator[int]:
    """The ids of `bos_token`, `sep_token`, and so on."""
    for literal in getattr(tokenizer, "special_tokens_map", {}).values():
        token_id = tokenizer.convert_tokens_to_ids(literal) if isinstance(literal, str) else None
        if token_id is not None:
            yield token_id


def _from_slow(tokenizer: Any) -> Pieces:
    """From a tokenizer of transformers around a SentencePiece model; its ids may be others than the model's.

    The model's decoder counts and not that of the Python around it, which writes `<0xE2>` out. What is
    special, that Python says: its `decode(skip_special_tokens=True)` goes by `all_special_ids`.
    """
    model = sentencepiece_pieces(tokenizer.sp_model)
    index = {spelling: position for position, spelling in enumerate(model.spellings)}
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    slots = _slots(set(vocabulary.values()))
    spellings: list[str | None] = [None] * slots
    kinds = [Kind.OPAQUE] * slots
    for spelling, token_id in vocabulary.items():
        _refuse_second(spellings[token_id], spelling, token_id=token_id)
        spellings[token_id] = spelling
        kinds[token_id] = model.kinds[index[spelling]] if spelling in index else Kind.USER_DEFINED
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if not 0 <= token_id < slots:
            raise ValueError(
                f"added token {token.content!r} has id {token_id}, the vocabulary ends before it"
            )
        spellings[token_id] = token.content
        kinds[token_id] = Kind.SPECIAL if token.special else Kind.USER_DEFINED
    pieces = Pieces(spellings, kinds, {}, model.steps, model.dummy_prefix)
    return _with_roles(pieces, tokenizer, tokenizer.all_special_ids)


def _with_roles(pieces: Pieces, tokenizer: Any, special: Iterable[int]) -> Pieces:
    """`pieces` with the roles that a tokenizer of transformers names, and these ids special."""
    for role, token_id in (*_roles_of(tokenizer), *(("", token_id) for token_id in special)):
        if not 0 <= token_id < len(pieces.kinds):
            raise ValueError(f"special id {token_id} is beyond the tokenizer's last, {len(pieces.kinds) - 1}")
        pieces.kinds[token_id] = Kind.SPECIAL
        if role:
            pieces.named.setdefault(token_id, set()).add(role)
    return pieces


def _roles_of(tokenizer: Any) -> Iterator[tuple[str, int]]:
    for role in ROLES:
        token_id = getattr(tokenizer, f"{role}_token_id", None)
        if token_id is not None:
            yield role, token_id


# ---- tiktoken --------------------------------------------------------------------------------------------


def _from_tiktoken(encoding: Any) -> Pieces:
    """From a `tiktoken.Encoding`: the bytes of its ranks, its special tokens, and which ends a text."""
    slots = encoding.n_vocab
    defined = len(encoding.token_byte_values()) + len(encoding.special_tokens_set)
    refuse_slots(slots, defined, f"the encoding defines id {slots - 1}")
    tokens: list[bytes | None] = [_bytes_of(encoding, token_id) for token_id in range(slots)]
    kinds = [Kind.OPAQUE if token is None else Kind.NORMAL for token in tokens]
    named: dict[int, set[str]] = {}
    for literal in encoding.special_tokens_set:
        token_id = encoding.encode_single_token(literal)
        kinds[token_id] = Kind.SPECIAL
        if literal == "<|endoftext|>":  # encoding.eot_token is defined as this one
            named[token_id] = {"eos"}
    return Pieces(tokens, kinds, named)


def _bytes_of(encoding: Any, token_id: int) -> bytes | None:
    try:
        token: bytes = encoding.decode_single_token_bytes(token_id)
    except KeyError:  # a gap between the ranks
        return None
    return token
