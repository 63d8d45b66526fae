"""The pieces of a SentencePiece model: BPE, Unigram, words or characters, with and without byte fallback.

Its decoder is the same for all of them: `▁` is a space, `<0xE2>` of the byte type is a byte, any other piece
is its text, and at the start of a text one space is dropped if a flag of the normalizer says so.
"""

from __future__ import annotations

from typing import Any

from dskd.pieces import DecoderStep, Kind, Pieces

__all__ = ["ROLES", "sentencepiece_pieces"]

ROLES = ("bos", "eos", "pad", "unk")

_KINDS = {
    1: Kind.NORMAL,
    2: Kind.SPECIAL,  # unknown
    3: Kind.SPECIAL,  # control
    4: Kind.USER_DEFINED,
    5: Kind.UNUSED,
    6: Kind.BYTE,
}


def sentencepiece_pieces(processor: Any) -> Pieces:
    """From a `SentencePieceProcessor`: the pieces and the flags of its model.

    Raises:
        ValueError: the model changes text in a way that no piece shows.
        ImportError: protobuf is not installed.
    """
    spellings = _spellings(processor)
    model = _model(processor)
    _refuse(model)
    named: dict[int, set[str]] = {}
    for role in ROLES:
        token_id = getattr(processor, f"{role}_id")()
        if token_id >= 0:
            named.setdefault(token_id, set()).add(role)
    kinds = [_KINDS[piece.type] for piece in model.pieces]
    byte_fallback = (DecoderStep("byte_fallback"),) if Kind.BYTE in kinds else ()
    normalizer = model.normalizer_spec
    return Pieces(
        spellings=spellings,
        kinds=kinds,
        named=named,
        steps=(DecoderStep("replace", "▁", " "), *byte_fallback),
        dummy_prefix=normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces,
    )


def _model(processor: Any) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2  # noqa: PLC0415 - only those who pass one have it
    except ImportError as error:
        raise ImportError("reading a SentencePiece model needs protobuf: pip install protobuf") from error
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # made at run time
    model.ParseFromString(processor.serialized_model_proto())
    return model


def _spellings(processor: Any) -> list[str | None]:
    """What the pieces are; protobuf would hand over broken ones as bytes, or an error without a place."""
    return [_spelling(processor, index) for index in range(processor.get_piece_size())]


def _spelling(processor: Any, index: int) -> str:
    try:
        spelling: str = processor.id_to_piece(index)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"piece {index} of the SentencePiece model is {error.object!r}, which is not UTF-8; the file is "
            "damaged, get it again"
        ) from error
    return spelling


def _refuse(model: Any) -> None:
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise ValueError(
            "a SentencePiece model with white space as a suffix (treat_whitespace_as_suffix) cannot be read "
            "exactly: the space at the end of a text is left out, so that what a token adds depends on what "
            "follows"
        )
    if model.denormalizer_spec.precompiled_charsmap:
        raise ValueError(
            "a SentencePiece model with a denormalizer cannot be read exactly: it changes the text once its "
            "pieces are joined"
        )
