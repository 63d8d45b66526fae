"""Rows on several sides at once, and what of them goes where they are too long."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import assets
import tiny
from conftest import needs_assets
from dskd import Aligner, Vocabulary
from dskd.train import DistillationCollator, Encoded, Side, TeacherSide, read_row
from dskd.train.fitting import Fitted, fit
from tiny import TURNS, assistant, system, user

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Row = dict[str, Any]


@functools.cache
def tokenizers() -> dict[str, Any]:
    """Of a teacher that ends its turns with its own marker, and of a student that ends them with `</s>`."""
    teacher, student = copy.deepcopy(tiny.teacher_tokenizer()), copy.deepcopy(tiny.student_tokenizer())
    teacher.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    teacher.chat_template = TURNS["marked"]
    student.chat_template = TURNS["bracketed"]
    return {"teacher": teacher, "student": student}


@functools.cache
def vocabularies() -> dict[str, Vocabulary]:
    roles = {"teacher": {"<|im_end|>": {"eos"}}, "student": None}
    return {name: Vocabulary.from_tokenizer(one, roles=roles[name]) for name, one in tokenizers().items()}


def sides(**options: Any) -> dict[str, Side]:
    return {name: Side(one, vocabularies()[name], **options) for name, one in tokenizers().items()}


def fitted(row: Mapping[str, Any], **options: Any) -> list[Fitted]:
    return fit(read_row(row), sides(**options))


def text_of(name: str, ids: Sequence[int]) -> str:
    """Byte for byte; specials by their literals."""
    added = tokenizers()[name].added_tokens_decoder
    vocabulary = vocabularies()[name]
    known = [
        str(added[token].content).encode() if token in added else vocabulary.token_bytes(token) or b""
        for token in ids
    ]
    return b"".join(known).decode(errors="replace")


def responses(name: str, one: Encoded) -> list[str]:
    return [text_of(name, one.ids[turn.start : turn.end]) for turn in one.turns]


def prompt_of(name: str, one: Encoded) -> str:
    return text_of(name, one.ids[: one.turns[0].start])


# What goes ----------------------------------------------------------------------


TEN: list[Row] = [
    system("Be short"),
    *(turn for number in range(10) for turn in (user(f"Is it {number}"), assistant(f"the answer {number}"))),
]


def test_of_ten_turns_whole_exchanges_go_and_beginning_and_system_message_stay() -> None:
    limit = 90
    rows = fitted({"messages": TEN}, max_prompt_length=limit, max_response_length=30)
    assert len(rows) == 10
    for number, row in enumerate(rows):
        for name, one in row.sides.items():
            kept = prompt_of(name, one)
            first = next(place for place in range(number + 1) if f"Is it {place}" in kept)
            expected = [TEN[0], *TEN[1 + 2 * first : 2 + 2 * number]]
            (rendering,) = sides()[name].render(
                read_row({"prompt": expected, "completion": [TEN[2 + 2 * number]]})
            )
            assert squeezed(text_of(name, one.ids)) == squeezed(rendering.text)
            assert one.turns[0].start <= limit
        assert row.shortened == (first > 0)
    assert [row.shortened for row in rows] == sorted(row.shortened for row in rows)
    assert rows[-1].shortened
    assert not rows[0].shortened


def squeezed(text: str) -> str:
    """Without spaces: the student's tokenizer puts some behind its specials."""
    return text.replace(" ", "")


def test_no_more_exchanges_go_than_must() -> None:
    """With the last one that went, the prompt of some side is too long."""
    limit = 150
    rows = fitted({"messages": TEN}, max_prompt_length=limit, max_response_length=30)
    assert len(rows) == 10
    for number, row in enumerate(rows):
        kept = prompt_of("teacher", row.sides["teacher"])
        first = next(place for place in range(number + 1) if f"Is it {place}" in kept)
        if first:
            prompt = [TEN[0], *TEN[2 * first - 1 : 2 + 2 * number]]
            (longer,) = fitted(
                {"prompt": prompt, "completion": [TEN[2 + 2 * number]]}, max_prompt_length=9999
            )
            assert any(one.turns[0].start > limit for one in longer.sides.values())


def test_all_turns_of_a_conversation_that_fits_are_one_row_and_each_is_learnt() -> None:
    (row,) = fitted({"messages": TEN}, max_prompt_length=9999)
    for name, one in row.sides.items():
        stop = {"teacher": "<|im_end|>", "student": "</s>"}[name]
        said = [text.strip() for text in responses(name, one)]
        assert said == [f"the answer {number}{stop}" for number in range(10)]
    assert not row.shortened


def test_a_question_that_is_too_long_loses_its_front_alike_on_all_sides() -> None:
    question = " ".join(f"word{number}" for number in range(100))
    messages = [system("Be short"), user("Is it"), assistant("the"), user(question), assistant("Paris")]
    *_, row = fitted({"messages": messages}, max_prompt_length=120)
    found = set()
    for name, one in row.sides.items():
        prompt = prompt_of(name, one)
        assert "Be short" in prompt
        assert "Is it" not in prompt
        assert one.turns[0].start <= 120
        said = prompt.partition("user")[2].removeprefix("\n").removeprefix("] ")
        found.add(said.partition("word99")[0])
    assert len(found) == 1
    assert question.endswith(found.pop() + "word99")
    assert row.shortened


def test_of_calls_behind_the_last_question_the_first_go_with_their_results() -> None:
    calls = [
        turn
        for number in range(9)
        for turn in (assistant(f"look {number}"), {"role": "tool", "content": f"found {number}"})
    ]
    messages = [system("Be short"), user("Is it"), *calls, assistant("Paris")]
    *_, row = fitted({"messages": messages}, max_prompt_length=300, max_response_length=30)
    for name, one in row.sides.items():
        prompt = prompt_of(name, one)
        assert "Be short" in prompt
        assert "Is it" in prompt
        kept = [number for number in range(9) if f"look {number}" in prompt]
        assert kept == [number for number in range(9) if f"found {number}" in prompt]
        assert 0 < len(kept) < 9
        assert kept == list(range(9))[-len(kept) :]


def test_a_system_message_that_is_too_long_is_refused_with_the_way_out() -> None:
    messages = [system("the answer " * 50), user("Is it"), assistant("Paris")]
    with pytest.raises(ValueError, match=r"does not fit into max_prompt_length.*raise max_prompt_length"):
        fitted({"messages": messages}, max_prompt_length=64)


@pytest.mark.parametrize("letter", ["x", "é", "知", "\U0001f600"])
def test_a_prompt_that_is_one_giant_word_fits_in_the_end(letter: str) -> None:
    (row,) = fitted({"prompt": letter * 3000, "completion": "Paris"}, max_prompt_length=10)
    for name, one in row.sides.items():
        assert set(prompt_of(name, one).removeprefix("<s>").strip(" ")) == {letter}
        assert one.turns[0].start <= 10
        assert responses(name, one) == ["Paris</s>"]


# Turns that are not alike ---------------------------------------------------------


DROPPING = tiny.TURNS["marked"].replace(
    "{{ m['content'] }}",
    "{% if loop.last and m['reasoning_content'] %}<think>{{ m['reasoning_content'] }}</think>{% endif %}"
    "{{ m['content'] }}",
)
"""Drops earlier thinking, as Qwen3 does."""

THOUGHT: list[Row] = [
    user("Is it"),
    assistant("Paris", reasoning_content="forty"),
    user("Is it two"),
    assistant("world", reasoning_content="the answer"),
]


def test_where_one_side_drops_earlier_thinking_all_sides_have_a_row_for_each_turn() -> None:
    both = sides()
    both["teacher"] = Side(tokenizers()["teacher"], vocabularies()["teacher"], chat_template=DROPPING)
    both["student"] = Side(
        tokenizers()["student"], vocabularies()["student"], chat_template=TURNS["thinking"]
    )
    assert len(both["student"].render(read_row({"messages": THOUGHT}))) == 1
    rows = fit(read_row({"messages": THOUGHT}), both)
    assert len(rows) == 2
    for row, said in zip(rows, ("forty</think>Paris", "the answer</think>world"), strict=True):
        for name, one in row.sides.items():
            (response,) = responses(name, one)
            assert said in response


@functools.cache
def real_side(tokenizer: str, template: str) -> Side:
    folder = needs_assets(lambda: assets.tokenizer(tokenizer))
    own: Any = transformers.AutoTokenizer.from_pretrained(folder)
    source = needs_assets(assets.chat_templates)[template]
    vocabulary = Vocabulary.from_tokenizer(own, roles={"<|im_end|>": {"eos"}})
    stops = (own.convert_tokens_to_ids("<|im_end|>"),)
    return Side(own, vocabulary, chat_template=source, stop_ids=stops)


def test_qwen3_splits_a_conversation_with_thinking_and_keeps_one_without_whole() -> None:
    qwen = real_side("qwen2", "Qwen-Qwen3-0.6B")
    both = {"teacher": qwen, "student": sides(chat_template=TURNS["thinking"])["student"]}
    rows = fit(read_row({"messages": THOUGHT}), both)
    said = [
        [one.sides["teacher"].ids[turn.start : turn.end] for turn in one.sides["teacher"].turns]
        for one in rows
    ]
    assert [[qwen.tokenizer.decode(ids) for ids in turns] for turns in said] == [
        ["<think>\nforty\n</think>\n\nParis<|im_end|>"],
        ["<think>\nthe answer\n</think>\n\nworld<|im_end|>"],
    ]
    assert [responses("student", one.sides["student"]) for one in rows] == [
        ["<think>forty</think>Paris</s>"],
        ["<think>the answer</think>world</s>"],
    ]


# Pairs ----------------------------------------------------------------------------


def collated(row: Mapping[str, Any], **templates: str) -> tuple[Any, list[tuple[str, str]]]:
    """A batch of one row, and the texts of its pairs."""
    own = sides()
    for name, template in templates.items():
        own[name] = Side(tokenizers()[name], vocabularies()[name], chat_template=template)
    aligner = Aligner(own["teacher"].vocabulary, own["student"].vocabulary)
    given = TeacherSide(own["teacher"], aligner, tiny.EVERYTHING)
    collator = DistillationCollator(own["student"], {"teacher": given})
    batch = collator([row])
    places = batch.places.teachers["teacher"]
    rows, columns = places.row.tolist(), places.column.tolist()
    found = []
    for index, number, column in zip(places.paired.tolist(), rows, columns, strict=True):
        label = int(batch.places.student.labels[index])
        other = int(batch.teachers["teacher"].input_ids[number, column + 1])
        found.append((text_of("teacher", [other]), text_of("student", [label])))
    return batch, found


def test_the_stops_of_two_models_are_a_pair_in_every_turn() -> None:
    batch, found = collated({"messages": TEN})
    assert found.count(("<|im_end|>", "</s>")) == 10
    assert int(batch.cut["student"]) == 0


def test_reasoning_that_both_sides_write_is_shared() -> None:
    row = {"messages": [user("Is it"), assistant("Paris", reasoning_content="the answer is the answer")]}
    _, found = collated(row, teacher=DROPPING, student=TURNS["thinking"])
    assert (" is", " is") in found
    assert (" the", " the") in found


def test_reasoning_that_one_side_writes_is_no_pair_and_learnt_there() -> None:
    row = {"messages": [user("Is it"), assistant("Paris", reasoning_content="the answer is the answer")]}
    batch, found = collated(row, student=TURNS["thinking"])
    assert (" is", " is") not in found
    assert found[-1] == ("<|im_end|>", "</s>")
    assert "the answer is the answer" in text_of("student", sorted_labels(batch))


def sorted_labels(batch: Any) -> list[int]:
    """The student's labels as they stand in the text."""
    places = batch.places.student
    by_column = sorted(zip(places.column.tolist(), places.labels.tolist(), strict=True))
    return [label for _, label in by_column]


# Whatever the row -----------------------------------------------------------------


words = st.lists(
    st.sampled_from(["Paris", "the", " world", "answer", "is", "é", "知", "\n", "  ", "</s>", "x" * 9, "!"]),
    min_size=1,
    max_size=12,
).map("".join)
said = words.filter(lambda text: bool(text.strip()))
plain = st.fixed_dictionaries({"prompt": st.one_of(st.just(""), words), "completion": words})


@st.composite
def conversations(draw: st.DrawFn) -> Row:
    messages = [system(draw(said))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages += [user(draw(said)), assistant(draw(said))]
    return {"messages": messages}


@settings(max_examples=100)
@given(row=st.one_of(plain, conversations()), prompt=st.integers(120, 400), response=st.integers(1, 30))
def test_nothing_is_longer_than_the_limits_and_what_is_shared_is_supervised(
    row: Row, prompt: int, response: int
) -> None:
    for one in fitted(row, max_prompt_length=prompt, max_response_length=response):
        turns = {len(encoded.turns) for encoded in one.sides.values()}
        assert len(turns) == 1
        for encoded in one.sides.values():
            assert encoded.turns[0].start <= prompt
            assert len(encoded.ids) <= prompt + response
            assert all(turn.end - turn.start <= response for turn in encoded.turns)
            labels, shared = encoded.labels(), encoded.shared_labels([True] * len(encoded.turns))
            inside = {
                place
                for turn in encoded.turns
                for place in range(turn.start, min(turn.end, len(encoded.ids)))
            }
            assert {place for place, label in enumerate(labels) if label != -100} == inside
            assert all(label in (-100, of_all) for label, of_all in zip(shared, labels, strict=True))


@settings(max_examples=100)
@given(row=st.one_of(plain, conversations()), response=st.integers(4, 30))
def test_responses_that_are_cut_end_at_the_same_byte_on_all_sides(row: Row, response: int) -> None:
    """Where every side has room for a byte of the content that the others can end at as well."""
    for one in fitted(row, max_prompt_length=9999, max_response_length=response):
        if all(encoded.is_whole for encoded in one.sides.values()):
            continue
        lengths = set()
        for encoded in one.sides.values():
            (turn,) = encoded.turns
            assert encoded.places is not None
            lengths.add(encoded.places[-1] - turn.place if not turn.ends else None)
        whole = fitted(row, max_prompt_length=9999)
        assert len(lengths - {None}) == 1 or not _could_share(whole, response)


def _could_share(whole: list[Fitted], response: int) -> bool:
    """Whether the tokens of the first turns that do not fit end at a byte on all sides."""
    for one in whole:
        ends = []
        for encoded in one.sides.values():
            for turn in encoded.turns:
                places = encoded.places or []
                ends.append({place - turn.place for place in places[turn.content : turn.start + response]})
        if not {place for place in set.intersection(*ends) if place > 0}:
            return False
    return True
