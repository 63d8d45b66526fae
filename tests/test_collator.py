"""From text to a batch: what is supervised, what is a pair, and what is cut, against a loop over bytes."""

from __future__ import annotations

import functools
import itertools
import pickle
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

import assets
import tiny
from conftest import needs_assets
from dskd import Aligner, Counts, PairKind, Vocabulary
from dskd.nn import Needs
from dskd.train import (
    Collated,
    DistillationCollator,
    Encoded,
    EncodedRow,
    EncodedTurn,
    Plain,
    Side,
    TeacherSide,
)
from tiny import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from dskd.nn.places import Supervised, TeacherPlaces


@functools.cache
def real(name: str) -> Any:
    return AutoTokenizer.from_pretrained(needs_assets(lambda: assets.tokenizer(name)))


@functools.cache
def vocabulary_of(name: str) -> Vocabulary:
    return Vocabulary.from_tokenizer(real(name))


def of_real(teacher: str, student: str) -> DistillationCollator:
    return tiny.collator_of(*(Side(real(name), vocabulary_of(name)) for name in (teacher, student)))


@functools.cache
def of_tiny() -> DistillationCollator:
    return tiny.collator(tiny.teacher_tokenizer(), tiny.student_tokenizer())


def sides_of(collator: DistillationCollator) -> tuple[Side, Side]:
    """The only teacher's, and the student's."""
    return collator.teachers["teacher"].side, collator.student


@functools.cache
def real_rows() -> list[dict[str, str]]:
    """Real texts, parted where a space or a word begins."""
    rows = []
    for text in needs_assets(lambda: assets.instruction_rows(12)):
        middle = text.index(" ", len(text) // 2)
        rows.append({"prompt": text[:middle], "completion": text[middle:][:600]})
        rows.append({"prompt": text[: middle + 1], "completion": text[middle + 1 :][:600]})
    return rows


SIDES = ("teacher", "student")


def places_of(batch: Collated, teacher: str = "teacher") -> TeacherPlaces:
    return batch.places.teachers[teacher]


def triples(found: Supervised | None) -> list[tuple[int, int, int]]:
    """(row, column, label), in the order of the positions."""
    assert found is not None
    return list(zip(found.row.tolist(), found.column.tolist(), found.labels.tolist(), strict=True))


def supervised(batch: Collated, side: str = "student") -> list[tuple[int, int, int]]:
    return triples(batch.places.student if side == "student" else places_of(batch).supervised)


def pairs(batch: Collated, teacher: str = "teacher") -> list[tuple[int, int, int]]:
    """(row, teacher column, student column) of the tokens that are pairs, not of what predicts them."""
    of_student, said = supervised(batch), places_of(batch, teacher)
    found = []
    for index, row, column in zip(said.paired.tolist(), said.row.tolist(), said.column.tolist(), strict=True):
        assert row == of_student[index][0]
        found.append((row, column + 1, of_student[index][1] + 1))
    return found


def labels_of(batch: Collated) -> list[int]:
    """The student's labels as they follow each other in the text."""
    return [label for _, _, label in sorted(supervised(batch))]


def ids_of(batch: Collated, side: str) -> list[list[int]]:
    """The rows without their padding, which is on the right."""
    tokens = batch.student if side == "student" else batch.teachers[side]
    lengths = tokens.attention_mask.sum(1).tolist()
    width = tokens.attention_mask.shape[1]
    assert tokens.attention_mask.tolist() == [[1] * length + [0] * (width - length) for length in lengths]
    assert max(lengths) == width
    return [ids[:length] for ids, length in zip(tokens.input_ids.tolist(), lengths, strict=True)]


def cut_of(batch: Collated) -> dict[str, int]:
    return {name: int(count) for name, count in batch.cut.items()}


def encoded_by(side: Side, prompt: str, completion: str) -> Encoded:
    """A row of two strings on one side."""
    (rendering,) = side.render(Plain(prompt, completion))
    return side.encode(rendering, is_plain=True)


ALIKE = "llama2 to phi3"
"""Two tokenizers that part ordinary text alike."""

CASES: dict[str, tuple[Callable[[], DistillationCollator], Callable[[], list[dict[str, str]]]]] = {
    "tiny": (of_tiny, lambda: ROWS),
    "gpt2 to llama2": (lambda: of_real("gpt2", "llama2"), real_rows),
    "phi3 to gpt2": (lambda: of_real("phi3", "gpt2"), real_rows),
    ALIKE: (lambda: of_real("llama2", "phi3"), real_rows),
}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_what_a_loop_over_tokens_and_bytes_finds(case: str) -> None:
    collator, rows = CASES[case][0](), CASES[case][1]()
    batch = collator(rows)
    sides = sides_of(collator)
    readings = [(tiny.read(sides[0], row), tiny.read(sides[1], row)) for row in rows]
    assert ids_of(batch, "teacher") == [one.ids for one, _ in readings]
    assert ids_of(batch, "student") == [one.ids for _, one in readings]
    for which, side in enumerate(SIDES):
        assert sorted(supervised(batch, side)) == [
            (index, column - 1, both[which].ids[column])
            for index, both in enumerate(readings)
            for column in both[which].columns
        ]
    expected = [
        (index, *pair)
        for index, (one, row) in enumerate(zip(readings, rows, strict=True))
        for pair in tiny.token_pairs(sides, one, row["completion"])
        if all(pair)
    ]
    assert pairs(batch) == expected
    assert len(expected) > 2 * len(rows) - 2
    straddled = sum(reading.straddles for both in readings for reading in both)
    assert cut_of(batch) == {"teacher": 0, "student": 0, "shortened": 0, "straddled": straddled}


@pytest.mark.parametrize("case", CASES)
def test_positions_are_in_walk_order_and_those_that_the_teacher_speaks_to_come_first(case: str) -> None:
    batch = CASES[case][0]()(CASES[case][1]())
    positions, count = supervised(batch), len(pairs(batch))
    assert 0 < count < len(positions) + (case == ALIKE)
    assert places_of(batch).paired.tolist() == list(range(count))
    for part in (positions[:count], positions[count:], supervised(batch, "teacher")):
        assert part == sorted(part)


@pytest.mark.parametrize("case", CASES)
def test_every_label_is_the_next_token_and_every_pair_one_token_of_the_text(case: str) -> None:
    collator, rows = CASES[case][0](), CASES[case][1]()
    batch = collator(rows)
    ids = {side: ids_of(batch, side) for side in SIDES}
    for side in SIDES:
        for row, column, label in supervised(batch, side):
            assert ids[side][row][column + 1] == label
    vocabularies = [side.vocabulary for side in sides_of(collator)]
    kinds = places_of(batch).kind.tolist()
    for (row, teacher_column, student_column), kind in zip(pairs(batch), kinds, strict=True):
        tokens = ids["teacher"][row][teacher_column], ids["student"][row][student_column]
        known = [one.token_bytes(token) for one, token in zip(vocabularies, tokens, strict=True)]
        if kind == PairKind.ROLE:
            assert known == [b"", b""]
            assert vocabularies[0].roles[tokens[0]] & vocabularies[1].roles[tokens[1]]
        elif kind == PairKind.EXACT:
            assert known[0] == known[1] != b""
        else:
            assert {known[0], b" " + (known[0] or b"")} & {known[1], b" " + (known[1] or b"")}


@pytest.mark.parametrize("case", CASES)
def test_the_end_of_turn_is_a_label_on_both_sides_and_a_pair(case: str) -> None:
    collator, rows = CASES[case][0](), CASES[case][1]()
    batch = collator(rows)
    teacher, student = (ids_of(batch, side) for side in SIDES)
    for index in range(len(rows)):
        assert teacher[index][-1] == sides_of(collator)[0].tokenizer.eos_token_id
        assert student[index][-1] == collator.student.tokenizer.eos_token_id
        last = len(teacher[index]) - 1, len(student[index]) - 1
        assert (index, last[1] - 1, collator.student.tokenizer.eos_token_id) in supervised(batch)
        assert (index, *last) in pairs(batch)


def counts_of(batch: Collated, teacher: str = "teacher") -> dict[str, int]:
    return dict(zip(Counts.__dataclass_fields__, batch.alignment_counts[teacher].tolist(), strict=True))


@pytest.mark.parametrize(
    ("student", "first"), [("llama2", "▁Paris"), ("phi3", "▁Paris"), ("gpt2", "ĠParis"), ("qwen2", "ĠParis")]
)
def test_a_space_that_the_tokenizer_adds_by_itself_is_not_there_twice(student: str, first: str) -> None:
    batch = of_real("gpt2", student)([{"prompt": "The capital of France is", "completion": " Paris"}])
    found = real(student).convert_ids_to_tokens(labels_of(batch))
    assert found == [first, real(student).eos_token]
    counts = counts_of(batch)
    assert (counts["exact"], counts["space"], counts["role"]) == (1, 0, 1)
    assert (counts["teacher_bytes"], counts["student_bytes"]) == (6, 6)


def test_a_text_without_a_space_gets_none() -> None:
    """Llama-2 has no token for `Paris` without a space before it."""
    batch = of_real("gpt2", "llama2")([{"prompt": "Name it:\n", "completion": "Paris"}])
    assert real("llama2").convert_ids_to_tokens(labels_of(batch)) == ["Par", "is", "</s>"]
    counts = counts_of(batch)
    assert (counts["exact"], counts["space"], counts["role"]) == (0, 0, 1)
    assert counts["chunk_bytes"] == 5


def test_a_text_with_nothing_before_it_is_a_pair_but_for_the_space_that_a_tokenizer_adds() -> None:
    batch = of_real("gpt2", "llama2")([{"prompt": "", "completion": "Is Paris"}])
    counts = counts_of(batch)
    assert real("llama2").convert_ids_to_tokens(labels_of(batch)) == ["▁Is", "▁Paris", "</s>"]
    assert (counts["exact"], counts["space"], counts["role"]) == (1, 1, 1)


def test_more_than_one_space_loses_only_that_which_is_added() -> None:
    batch = of_tiny()([{"prompt": "a", "completion": "  Paris"}])
    labels = labels_of(batch)[:-1]
    vocabulary = of_tiny().student.vocabulary
    assert b"".join(vocabulary.token_bytes(label) or b"" for label in labels) == b"  Paris"


def test_prompt_and_response_are_tokenised_apart_where_a_token_lies_across_them() -> None:
    """Together ` Paris` would be one token; the prompt's part of it is no label."""
    collator = tiny.collator(tiny.teacher_tokenizer(), tiny.teacher_tokenizer())
    tokenizer = tiny.teacher_tokenizer()
    batch = collator([{"prompt": "the P", "completion": "aris"}])
    assert tokenizer.convert_ids_to_tokens(ids_of(batch, "student")[0]) == [
        "the", "ĠP", "a", "r", "i", "s", "</s>",
    ]  # fmt: skip
    assert tokenizer.convert_ids_to_tokens(labels_of(batch)) == [
        "a",
        "r",
        "i",
        "s",
        "</s>",
    ]
    assert cut_of(batch)["straddled"] == 2  # on both sides


# ---- What is cut -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5, 9])
def test_a_long_prompt_loses_the_same_beginning_on_all_sides(limit: int) -> None:
    """What is left fits into the limit on each side, and the batch is that of rows with such prompts."""
    collator = tiny.collator(tiny.teacher_tokenizer(), tiny.student_tokenizer(), max_prompt_length=limit)
    batch, shortened, straddled = collator(ROWS), 0, 0
    for index, row in enumerate(ROWS):
        prompt = row["prompt"]
        suffixes = [{**row, "prompt": prompt[start:]} for start in range(len(prompt) + 1)]
        readings = [[tiny.read(side, suffix) for side in sides_of(collator)] for suffix in suffixes]
        found = [ids_of(batch, name)[index] for name in SIDES]
        (left,) = (start for start, both in enumerate(readings) if found == [one.ids for one in both])
        assert left == len(prompt) or all(one.first <= limit for one in readings[left])
        assert left == 0 or any(one.first > limit for one in readings[0])
        shortened += left > 0
        straddled += sum(one.straddles for one in readings[left])
    assert cut_of(batch) == {"teacher": 0, "student": 0, "shortened": shortened, "straddled": straddled}
    assert shortened > 0


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 12])
def test_a_long_response_loses_its_end_at_a_byte_that_all_sides_have_and_is_counted(limit: int) -> None:
    collator = tiny.collator(tiny.teacher_tokenizer(), tiny.student_tokenizer(), max_response_length=limit)
    batch, sides = collator(ROWS), sides_of(collator)
    readings = [(tiny.read(sides[0], row), tiny.read(sides[1], row)) for row in ROWS]
    ends = [cuts(sides, both, row["completion"], limit) for both, row in zip(readings, ROWS, strict=True)]
    for which, name in enumerate(SIDES):
        expected = [both[which].ids[: end[which]] for both, end in zip(readings, ends, strict=True)]
        assert ids_of(batch, name) == expected
        cut = [len(ids) < len(both[which].ids) for ids, both in zip(expected, readings, strict=True)]
        assert cut_of(batch)[name] == sum(cut) > 0
    expected_pairs = [
        (index, *pair)
        for index, (both, end, row) in enumerate(zip(readings, ends, ROWS, strict=True))
        for pair in tiny.token_pairs(sides, both, row["completion"])
        if 0 < pair[0] < end[0] and 0 < pair[1] < end[1]
    ]
    assert pairs(batch) == expected_pairs


def cuts(
    sides: tuple[Side, Side], readings: tuple[tiny.Reading, tiny.Reading], completion: str, limit: int
) -> tuple[int, int]:
    """Where each side ends: behind the last byte that both can end at, else at its own limit."""
    most = [one.first + limit for one in readings]
    if all(len(one.ids) <= end for one, end in zip(readings, most, strict=True)):
        return len(readings[0].ids), len(readings[1].ids)
    text = completion.encode()
    spans = [tiny.spans_of(side, one, text) for side, one in zip(sides, readings, strict=True)]
    kept = [
        {column: span[1] for column, span in of.items() if column < end}
        for of, end in zip(spans, most, strict=True)
    ]
    if not (common := set(kept[0].values()) & set(kept[1].values())):
        return most[0], most[1]
    last = [max(column for column, end in of.items() if end <= max(common)) + 1 for of in kept]
    return last[0], last[1]


def test_a_response_that_just_fits_has_its_end_and_one_more_token_costs_it() -> None:
    tokenizer = tiny.teacher_tokenizer()
    rows = [{"prompt": "is", "completion": " world" * count} for count in (3, 4)]
    collator = tiny.collator(tokenizer, tokenizer, max_response_length=4)
    batch = collator(rows)
    ends = [ids[-1] == tokenizer.eos_token_id for ids in ids_of(batch, "student")]
    assert ends == [True, False]
    assert cut_of(batch) == {"teacher": 1, "student": 1, "shortened": 0, "straddled": 0}
    assert len(labels_of(batch)) == 8


# ---- Where nothing stands before a response --------------------------------------------------------------


def test_behind_nothing_the_first_token_is_no_label_and_no_pair() -> None:
    """The teacher has no beginning of sequence, the student has; then the other way."""
    row = {"prompt": "", "completion": "Paris is"}
    batch = of_tiny()([row])
    assert len(labels_of(batch)) == 3
    assert [column for _, column, _ in supervised(batch, "teacher")] == [0, 1]
    assert pairs(batch) == [(0, 1, 2), (0, 2, 3)]
    turned = tiny.collator(tiny.student_tokenizer(), tiny.teacher_tokenizer())([row])
    assert tiny.teacher_tokenizer().convert_ids_to_tokens(labels_of(turned)) == [
        "Ġis",
        "</s>",
    ]
    assert pairs(turned) == [(0, 2, 1), (0, 3, 2)]


def test_a_single_token_behind_nothing_has_no_label_at_all() -> None:
    tokenizer = tiny.teacher_tokenizer()
    collator = tiny.collator(tokenizer, tokenizer, max_response_length=1)
    batch = collator([{"prompt": "", "completion": " Paris"}, {"prompt": "is", "completion": " Paris"}])
    assert supervised(batch) == [(1, 1, tokenizer(" Paris")["input_ids"][0])]
    assert pairs(batch) == [(1, 2, 2)]


# ---- Messages and specials -------------------------------------------------------------------------------


def test_messages_go_through_the_chat_template_of_each_side() -> None:
    prompt = [{"role": "system", "content": "Be short"}, {"role": "user", "content": "Where?"}]
    batch = of_tiny()([{"prompt": prompt, "completion": [{"role": "assistant", "content": "Paris"}]}])
    text = "[system] Be short\n[user] Where?\n[assistant]"
    for name, tokenizer in {"teacher": tiny.teacher_tokenizer(), "student": tiny.student_tokenizer()}.items():
        expected = tokenizer.backend_tokenizer.encode(f"{text} Paris", add_special_tokens=False)
        assert expected.tokens[-1] == ("ĠParis" if name == "teacher" else "▁Paris")
        assert ids_of(batch, name)[0] == [*expected.ids, tokenizer.eos_token_id]
    assert labels_of(batch) == ids_of(batch, "student")[0][-2:]
    assert len(pairs(batch)) == 2


def test_templates_of_their_own_keep_their_specials() -> None:
    collator = of_real("qwen2", "phi3")
    prompt = [{"role": "user", "content": "Where?"}]
    batch = collator([{"prompt": prompt, "completion": [{"role": "assistant", "content": "Paris"}]}])
    for name, side in {"teacher": "qwen2", "student": "phi3"}.items():
        ids = real(side).apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        assert ids_of(batch, name)[0][: len(ids)] == list(ids)
        assert any(token in real(side).added_tokens_decoder for token in ids)


def of_literals(student: str, *, parse_markers: bool) -> tuple[DistillationCollator, str]:
    """A collator, and a text with the literal of its student's end of sequence."""
    names = {"teacher": real("gpt2"), "student": real(student)} if student != "tiny" else {}
    teacher = names.get("teacher", tiny.teacher_tokenizer())
    tokenizer = names.get("student", tiny.student_tokenizer())
    collator = tiny.collator(teacher, tokenizer, parse_markers=parse_markers)
    return collator, f"It ends with {tokenizer.eos_token} here"


@pytest.mark.parametrize("student", ["tiny", "llama2", "gpt2"])
def test_the_literal_of_a_special_in_a_text_that_is_not_trusted_stays_text(student: str) -> None:
    collator, literal = of_literals(student, parse_markers=False)
    batch = collator([{"prompt": literal, "completion": " " + literal}])
    for name, side in zip(SIDES, sides_of(collator), strict=True):
        ids = ids_of(batch, name)[0]
        assert ids.count(side.tokenizer.eos_token_id) == 1
        assert ids[-1] == side.tokenizer.eos_token_id
    labels = labels_of(batch)[:-1]
    known = b"".join(collator.student.vocabulary.token_bytes(label) or b"" for label in labels)
    assert known.decode() == " " + literal


@pytest.mark.parametrize("student", ["tiny", "llama2", "gpt2"])
def test_the_literal_of_a_special_in_a_text_is_that_special(student: str) -> None:
    collator, literal = of_literals(student, parse_markers=True)
    batch = collator([{"prompt": literal, "completion": " " + literal}])
    eos = collator.student.tokenizer.eos_token_id
    assert ids_of(batch, "student")[0].count(eos) == 3
    assert labels_of(batch).count(eos) == 2


def test_a_completion_that_ends_with_the_literal_of_the_end_has_one_end() -> None:
    rows = [{"prompt": "Is it", "completion": text} for text in (" Paris", " Paris</s>", " Paris</s>\n")]
    plain, *others = (of_tiny()([row]) for row in rows)
    for other in others:
        for name in SIDES:
            assert ids_of(other, name) == ids_of(plain, name)
        assert pairs(other) == pairs(plain)


# ---- Chunks ----------------------------------------------------------------------------------------------

Runs = tuple[tuple[int, ...], tuple[int, ...]]
"""The teacher's columns of a chunk's tokens, and the student's."""


def chunks(batch: Collated, teacher: str = "teacher") -> list[tuple[int, Runs]]:
    """The row of each chunk and its tokens, in the order of their numbers."""
    places = places_of(batch, teacher).chunks
    assert places is not None
    student = [supervised(batch)[index] for index in places.positions.tolist()]
    found: list[dict[str, list[tuple[int, int]]]] = [
        {side: [] for side in SIDES} for _ in range(places.count)
    ]
    for side, positions, numbers in (
        ("teacher", triples(places.teacher), places.teacher_chunk),
        ("student", student, places.chunk),
    ):
        for (row, column, _), number in zip(positions, numbers.tolist(), strict=True):
            found[number][side].append((row, column + 1))
    made = []
    for one in found:
        (row,) = {row for tokens in one.values() for row, _ in tokens}
        made.append((row, (columns(one["teacher"]), columns(one["student"]))))
    return made


def columns(tokens: list[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(column for _, column in tokens)


def chunks_by_bytes(
    sides: tuple[Side, Side], readings: tuple[tiny.Reading, tiny.Reading], text: bytes, limit: int
) -> Iterator[Runs]:
    """Between each two neighbouring places of the text where tokens of both end; all of them predicted."""
    spans = []
    for side, reading in zip(sides, readings, strict=True):
        of_tokens = tiny.spans_of(side, reading, text)
        spans.append(
            {
                column: span
                for column, span in of_tokens.items()
                if span[0] < span[1] and column < reading.first + limit
            }
        )
    ends = sorted({0} | {end for _, end in spans[0].values()} & {end for _, end in spans[1].values()})
    for start, end in itertools.pairwise(ends):
        runs = [
            tuple(column for column, span in of.items() if start <= span[0] and span[1] <= end)
            for of in spans
        ]
        if min(*runs[0], *runs[1]) > 0:
            yield runs[0], runs[1]


@pytest.mark.parametrize("limit", [3, 512])
@pytest.mark.parametrize("case", CASES)
def test_the_chunks_are_what_a_loop_over_bytes_finds(case: str, limit: int) -> None:
    sides, rows = sides_of(CASES[case][0]()), CASES[case][1]()
    limited = [Side(side.tokenizer, side.vocabulary, max_response_length=limit) for side in sides]
    batch = tiny.collator_of(limited[0], limited[1])(rows)
    expected = [
        (index, runs)
        for index, row in enumerate(rows)
        for runs in chunks_by_bytes(
            sides, (tiny.read(sides[0], row), tiny.read(sides[1], row)), row["completion"].encode(), limit
        )
    ]
    assert sorted(chunks(batch)) == sorted(expected)
    assert limit == 3 or case == ALIKE or max(len(run) for _, runs in expected for run in runs) > 1


@pytest.mark.parametrize("case", CASES)
def test_both_sides_of_a_chunk_have_its_bytes_but_for_the_one_space(case: str) -> None:
    collator = CASES[case][0]()
    batch = collator(CASES[case][1]())
    ids = [ids_of(batch, side) for side in SIDES]
    for row, runs in chunks(batch):
        said = [
            b"".join(side.vocabulary.token_bytes(of[row][column]) or b"" for column in run)
            for side, of, run in zip(sides_of(collator), ids, runs, strict=True)
        ]
        assert said[0] == said[1] or {said[0], b" " + said[0]} & {said[1], b" " + said[1]}, said


@pytest.mark.parametrize("case", CASES)
def test_chunks_are_numbered_in_the_order_of_their_positions(case: str) -> None:
    places = places_of(CASES[case][0]()(CASES[case][1]())).chunks
    assert places is not None
    assert places.positions.tolist() == sorted(set(places.positions.tolist()))
    numbers = [number for number, _ in itertools.groupby(places.chunk.tolist())]
    assert numbers == list(range(places.count))
    assert set(places.teacher_chunk.tolist()) == set(numbers)


def test_a_chunk_that_encloses_a_token_without_bytes_is_left_out() -> None:
    """` answer` is two tokens of the student, between which a special stands."""
    collator = of_tiny()
    teacher, student = sides_of(collator)
    of_teacher = encoded_by(teacher, "is", " the answer is")
    of_student = encoded_by(student, "is", " the answer is")
    names = student.tokenizer.convert_ids_to_tokens(of_student.ids)
    assert names[-5:] == ["▁the", "▁ans", "wer", "▁is", "</s>"]
    inside = len(names) - 3
    ids = [*of_student.ids[:inside], student.tokenizer.bos_token_id, *of_student.ids[inside:]]
    first = of_student.turns[0].start
    with_it = Encoded(ids, (EncodedTurn(first, None, first, len(ids), ends=True),))
    batch = collator.collate([EncodedRow(with_it, {"teacher": of_teacher})])
    said = [teacher.tokenizer.convert_ids_to_tokens(of_teacher.ids)[runs[0][0]] for _, runs in chunks(batch)]
    assert said == ["Ġthe", "Ġis"]


# ---- Encoded, and what a model sampled -------------------------------------------------------------------


@pytest.mark.parametrize("case", ["tiny", "gpt2 to llama2"])
def test_a_batch_is_its_encoded_rows_collated(case: str) -> None:
    collator, rows = CASES[case][0](), CASES[case][1]()
    encoded = [one for row in rows for one in collator.encode(row)]
    assert len(encoded) == len(rows)
    assert_same(collator.collate(encoded), collator(rows))
    for name, side in zip(SIDES, sides_of(collator), strict=True):
        for row, one in zip(rows, encoded, strict=True):
            mine = one.student if name == "student" else one.teachers[name]
            reading = tiny.read(side, row)
            assert (mine.ids, mine.is_whole) == (reading.ids, True)
            (turn,) = mine.turns
            assert (turn.start, turn.content, turn.end) == (reading.first, reading.first, len(reading.ids))
            assert mine.labels() == [-100] * reading.first + reading.ids[reading.first :]


def test_sampled_ids_enter_as_they_are_however_the_tokenizer_would_spell_their_text() -> None:
    """The student sampled ` the` letter by letter, and was stopped before its end of turn."""
    collator = of_tiny()
    teacher, student = sides_of(collator)
    prompt = encoded_by(student, "Say:", " the")
    letters = student.tokenizer.convert_tokens_to_ids(["▁", "t", "h", "e"])
    begins = prompt.turns[0].start
    ids = [*prompt.ids[:begins], *letters]
    of_teacher = encoded_by(teacher, "Say:", " the")
    sampled = Encoded(ids, (EncodedTurn(begins, None, begins, len(ids), ends=False),))
    batch = collator.collate([EncodedRow(sampled, {"teacher": of_teacher})])
    assert ids_of(batch, "student") == [ids]
    assert labels_of(batch) == letters
    assert pairs(batch) == []
    first = len(ids) - 4, len(of_teacher.ids) - 2
    assert chunks(batch) == [(0, ((first[1],), tuple(range(first[0], first[0] + 4))))]
    assert cut_of(batch) == {"teacher": 0, "student": 1, "shortened": 0, "straddled": 0}


# ---- Several teachers ------------------------------------------------------------------------------------


def of_two(**needs: Needs) -> DistillationCollator:
    """`big` has the teacher's tokenizer, `near` the student's own."""
    student = sides_of(of_tiny())[1]
    sides = {"big": sides_of(of_tiny())[0], "near": student}
    return DistillationCollator(
        student,
        {
            name: TeacherSide(side, Aligner(side.vocabulary, student.vocabulary), needs.get(name, PAIRS))
            for name, side in sides.items()
        },
    )


PAIRS = Needs(pairs=True)


def test_each_of_two_teachers_speaks_as_it_does_alone() -> None:
    two, one = of_two()(ROWS), of_tiny()(ROWS)
    alone = tiny.collator(tiny.student_tokenizer(), tiny.student_tokenizer())(ROWS)
    for name, single in (("big", one), ("near", alone)):
        assert sorted(pairs(two, name)) == sorted(pairs(single))
        assert ids_of(two, name) == ids_of(single, "teacher")
        assert counts_of(two, name) == counts_of(single)
        assert int(two.cut[name]) == int(single.cut["teacher"])
    assert sorted(supervised(two)) == sorted(supervised(one))
    assert set(two.cut) == {"student", "big", "near", "shortened", "straddled"}


def test_positions_that_both_teachers_speak_to_come_before_those_of_one() -> None:
    batch = of_two()(ROWS)
    found = [set(places_of(batch, name).paired.tolist()) for name in ("big", "near")]
    spoken = [sum(index in one for one in found) for index in range(len(supervised(batch)))]
    assert spoken == sorted(spoken, reverse=True)
    assert set(spoken) == {1, 2}  # the student's own tokenizer pairs all
    for name in ("big", "near"):
        paired = places_of(batch, name).paired.tolist()
        assert paired == sorted(paired)


def test_a_teacher_has_what_the_losses_need_of_it_and_no_more() -> None:
    given = {"big": Needs(positions=True), "near": Needs(chunks=True)}
    big, near = (places_of(of_two(**given)(ROWS), name) for name in given)
    assert triples(big.supervised) == supervised(of_tiny()(ROWS), "teacher")
    assert near.supervised is None
    assert big.chunks is None
    assert near.chunks is not None
    plain = [places_of(of_two()(ROWS), name) for name in given]
    assert [(one.supervised, one.chunks) for one in plain] == [(None, None)] * 2


def test_chunks_of_two_teachers_are_those_of_each_alone() -> None:
    """Positions are then as they stand in the text: tokens of a chunk of one may be pairs of the other."""
    needs = Needs(pairs=True, chunks=True)
    batch = of_two(big=needs, near=needs)(ROWS)
    assert supervised(batch) == sorted(supervised(batch))
    assert sorted(chunks(batch, "big")) == sorted(chunks(of_tiny()(ROWS)))


# ---- Batches and workers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["tiny", "gpt2 to llama2"])
def test_a_batch_is_its_rows_one_by_one(case: str) -> None:
    collator, rows = CASES[case][0](), CASES[case][1]()
    batch, alone = collator(rows), [collator([row]) for row in rows]
    for side in SIDES:
        assert ids_of(batch, side) == [ids_of(one, side)[0] for one in alone]
        assert sorted(supervised(batch, side)) == [
            (index, *item[1:]) for index, one in enumerate(alone) for item in sorted(supervised(one, side))
        ]
    assert pairs(batch) == [(index, *item[1:]) for index, one in enumerate(alone) for item in pairs(one)]
    assert sorted(chunks(batch)) == sorted(
        (index, runs) for index, one in enumerate(alone) for _, runs in chunks(one)
    )
    for name, counted in batch.alignment_counts.items():
        assert counted.tolist() == torch.stack([one.alignment_counts[name] for one in alone]).sum(0).tolist()
    assert batch.places.counts() == {
        name: sum(one.places.counts()[name] for one in alone) for name in batch.places.counts()
    }


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All that a batch holds, by where it is."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from tensors(one, f"{path}.{name}")
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name), f"{path}.{field.name}")


def assert_same(found: Collated, expected: Collated) -> None:
    one, other = dict(tensors(found)), dict(tensors(expected))
    assert one.keys() == other.keys()
    assert len(other) > 20
    for name, tensor in other.items():
        assert torch.equal(one[name], tensor), name
    assert found.places.counts() == expected.places.counts()


def test_every_tensor_is_int64_and_its_length_is_the_number_of_rows() -> None:
    batch = of_tiny()(ROWS)
    assert {tensor.dtype for _, tensor in tensors(batch)} == {torch.int64}
    assert len(batch) == len(ROWS)
    assert batch.places.counts() == {
        "labels": len(supervised(batch)),
        "pairs": len(pairs(batch)),
        "chunks": len(chunks(batch)),
        "teacher_labels": len(supervised(batch, "teacher")),
    }


def test_a_batch_moves_as_a_whole() -> None:
    batch = of_two(big=tiny.EVERYTHING)(ROWS)
    moved = dict(tensors(batch.to("meta", non_blocking=True)))
    assert {name: tensor.shape for name, tensor in moved.items()} == {
        name: tensor.shape for name, tensor in tensors(batch)
    }
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}
    assert {tensor.device.type for _, tensor in tensors(batch)} == {"cpu"}


def test_a_batch_is_pinned_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing can be pinned: that all of it is asked to be is what is seen."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    batch = of_two(big=tiny.EVERYTHING)(ROWS)
    pinned = batch.pin_memory()
    assert_same(pinned, batch)
    assert all(one is not other for (_, one), (_, other) in zip(tensors(pinned), tensors(batch), strict=True))


@pytest.mark.parametrize("make", [of_tiny, of_two])
def test_pickled_it_makes_the_same_batches(make: Callable[[], DistillationCollator]) -> None:
    again = pickle.loads(pickle.dumps(make()))  # noqa: S301 - our own
    assert_same(again(ROWS), make()(ROWS))
    assert_same(pickle.loads(pickle.dumps(make()(ROWS))), make()(ROWS))  # noqa: S301


@pytest.mark.filterwarnings(
    # Python 3.12 says it of every fork of a process with threads; the workers of a DataLoader are forked.
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
def test_workers_make_the_same_batches_as_the_main_process() -> None:
    rows: Sequence[Any] = ROWS * 3
    options = {"batch_size": 5, "collate_fn": of_tiny()}
    forked = list(DataLoader(rows, num_workers=2, multiprocessing_context="fork", **options))  # type: ignore[arg-type]
    here = list(DataLoader(rows, num_workers=0, **options))  # type: ignore[arg-type]
    assert len(here) == 5
    for one, other in zip(forked, here, strict=True):
        assert_same(one, other)
