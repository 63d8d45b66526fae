"""Where the ids of a text stand in it, against a walk over what each of them writes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

import tiny
from dskd import Vocabulary
from dskd.train.laying import Layer
from test_loading import byte_level

if TYPE_CHECKING:
    from collections.abc import Callable


def eating() -> Any:
    """Markers that swallow the white space beside them, as those of Phi-3 do."""
    backend = byte_level(" world", "the", " is")
    tokenizer = tiny.fast_tokenizer(tokenizer_object=backend, eos_token="</s>")  # noqa: S106 - no password
    markers = [AddedToken("<|end|>", rstrip=True, special=True), AddedToken("<|left|>", lstrip=True)]
    tokenizer.add_tokens(markers)
    return tokenizer


def lowering() -> Any:
    backend = byte_level("paris", " world")
    backend.normalizer = normalizers.Lowercase()
    return tiny.fast_tokenizer(tokenizer_object=backend, eos_token="</s>")  # noqa: S106 - no password


MADE: dict[str, Callable[[], Any]] = {
    "byte-level": tiny.teacher_tokenizer,
    "SentencePiece": tiny.student_tokenizer,
    "eating": eating,
}


@functools.cache
def made(name: str) -> tuple[Any, Vocabulary, Layer]:
    tokenizer = {**MADE, "lowering": lowering}[name]()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    return tokenizer, vocabulary, Layer(tokenizer, vocabulary)


texts = st.lists(
    st.sampled_from(
        [
            "Paris",
            "the",
            " world",
            " ",
            "  ",
            "\n",
            "é",
            "知",
            "\U0001f600",
            "</s>",
            "<|end|>",
            "<|left|>",
            "=4",
        ]
    ),
    max_size=12,
).map("".join)

each = pytest.mark.parametrize("name", MADE)


@each
@given(text=texts)
@example(text=" <|left|> <|end|> ")
@example(text="")
def test_the_bytes_at_each_place_are_those_of_the_id(name: str, text: str) -> None:
    tokenizer, vocabulary, layer = made(name)
    laid, data = layer.lay(text), text.encode()
    assert laid.is_exact
    for token, start, end in zip(laid.ids, laid.starts, laid.ends, strict=True):
        added = tokenizer.added_tokens_decoder.get(token)
        said = vocabulary.token_bytes(token) or b"" if added is None else str(added.content).encode()
        assert data[start:end] in (said, said.removeprefix(b" "))


@each
@given(text=texts)
def test_places_follow_each_other_and_only_white_space_beside_a_marker_is_in_none(
    name: str, text: str
) -> None:
    laid, data = made(name)[2].lay(text), text.encode()
    edges = [0, *(place for span in zip(laid.starts, laid.ends, strict=True) for place in span), len(data)]
    assert edges == sorted(edges)
    between = b"".join(data[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True))
    assert not between.strip()
    assert name == "eating" or not between


@each
@given(text=texts)
def test_uncut_the_ids_are_those_of_the_tokenizer(name: str, text: str) -> None:
    tokenizer, _, layer = made(name)
    assert layer.lay(text).ids == tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


@each
@given(text=texts, share=st.floats(0, 1))
def test_no_token_lies_across_a_cut_and_the_bytes_stay(name: str, text: str, share: float) -> None:
    cut = int(share * len(text))
    laid = made(name)[2].lay(text, [cut])
    place = len(text[:cut].encode())
    assert not any(start < place < end for start, end in zip(laid.starts, laid.ends, strict=True))
    assert laid.parts(place)


@each
@given(text=texts)
def test_the_index_of_a_place_is_that_of_a_loop(name: str, text: str) -> None:
    """The id that lies across it, or else the first that begins there or behind it."""
    laid = made(name)[2].lay(text)
    spans = list(zip(laid.starts, laid.ends, strict=True))
    for place in range(len(text.encode()) + 1):
        expected = next(
            (number for number, (start, end) in enumerate(spans) if start < place < end or start >= place),
            len(spans),
        )
        assert laid.index(place) == expected
        assert laid.parts(place) == (not any(start < place < end for start, end in spans))


@each
@given(before=texts, literal=st.sampled_from(["</s>", "a</s>b", "<|end|> x"]), behind=texts)
def test_a_marker_in_a_span_of_text_is_text_and_elsewhere_a_marker(
    name: str, before: str, literal: str, behind: str
) -> None:
    tokenizer, _, layer = made(name)
    text = before + literal + behind
    laid = layer.lay(text, as_text=[(len(before), len(before) + len(literal))])
    first, last = len(before.encode()), len((before + literal).encode())
    for token, start in zip(laid.ids, laid.starts, strict=True):
        if first <= start < last:
            added = tokenizer.added_tokens_decoder.get(token)
            assert added is None or not added.special
    eos = tokenizer.eos_token_id
    assert laid.ids.count(eos) == (before.count("</s>") + behind.count("</s>"))


def test_a_text_behind_a_cut_gets_no_space_that_it_has_not() -> None:
    """`2+2=` and `4`: Llama-2's tokenizer would write `2+2= 4`."""
    tokenizer, _, layer = made("SentencePiece")
    laid = layer.lay("the2+2=4", [7])
    assert tokenizer.convert_ids_to_tokens(laid.ids)[-1] == "4"
    laid = layer.lay("print(1 + 2)", [6])
    assert tokenizer.convert_ids_to_tokens(laid.ids)[-6:] == ["1", "▁", "+", "▁", "2", ")"]


def test_what_a_normaliser_changes_is_placed_by_its_cuts() -> None:
    tokenizer, _, layer = made("lowering")
    laid = layer.lay("PARIS is Paris world", [8])
    assert not laid.is_exact
    assert (
        laid.ids == tokenizer.backend_tokenizer.encode("paris is paris world", add_special_tokens=False).ids
    )
    assert laid.index(8) == len(tokenizer.backend_tokenizer.encode("paris is", add_special_tokens=False).ids)
    assert laid.index(20) == len(laid.ids)
