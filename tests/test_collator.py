"""From text to a batch: what is supervised, what is a pair, and what is cut, against a loop over bytes."""

from __future__ import annotations

import functools
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

import assets
import tiny
from conftest import needs_assets
from dskd import Aligner, Counts, Vocabulary
from dskd.train import DistillationCollator, Side
from tiny import ROWS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

Batch = dict[str, "torch.Tensor"]


@functools.cache
def real(name: str) -> Any:
    return AutoTokenizer.from_pretrained(needs_assets(lambda: assets.tokenizer(name)))


@functools.cache
def vocabulary_of(name: str) -> Vocabulary:
    return Vocabulary.from_tokenizer(real(name))


def of_real(teacher: str, student: str, **limits: int) -> DistillationCollator:
    sides = {
        side: Side(real(name), vocabulary_of(name), **limits)
        for side, name in (("teacher", teacher), ("student", student))
    }
    return DistillationCollator(**sides, aligner=Aligner(vocabulary_of(teacher), vocabulary_of(student)))


@functools.cache
def of_tiny() -> DistillationCollator:
    return tiny.collator(tiny.teacher_tokenizer(), tiny.student_tokenizer())


@functools.cache
def real_rows() -> list[dict[str, str]]:
    """Real texts, parted where a space or a word begins."""
    rows = []
    for text in needs_assets(lambda: assets.instruction_rows(12)):
        middle = text.index(" ", len(text) // 2)
        rows.append({"prompt": text[:middle], "completion": text[middle:][:600]})
        rows.append({"prompt": text[: middle + 1], "completion": text[middle + 1 :][:600]})
    return rows


SUPERVISED = {
    "teacher": ("attended_row", "attended_column", "teacher_labels"),
    "student": ("row", "column", "labels"),
}


def supervised(batch: Batch, side: str = "student") -> list[tuple[int, int, int]]:
    names = SUPERVISED[side]
    return list(zip(*(batch[name].tolist() for name in names), strict=True))


def pairs(batch: Batch) -> list[tuple[int, int, int]]:
    """(row, teacher column, student column) of the tokens that are pairs, not of what predicts them."""
    found = []
    for index, row, column in zip(
        *(batch[name].tolist() for name in ("paired", "teacher_row", "teacher_column")), strict=True
    ):
        assert row == int(batch["row"][index])
        found.append((row, column + 1, int(batch["column"][index]) + 1))
    return found


def ids_of(batch: Batch, side: str) -> list[list[int]]:
    """The rows without their padding, which is on the right."""
    mask = batch[f"{side}_attention_mask"]
    lengths = mask.sum(1).tolist()
    assert mask.tolist() == [[1] * length + [0] * (mask.shape[1] - length) for length in lengths]
    assert max(lengths) == mask.shape[1]
    return [ids[:length] for ids, length in zip(batch[f"{side}_input_ids"].tolist(), lengths, strict=True)]


CASES: dict[str, tuple[Callable[[], DistillationCollator], Callable[[], list[dict[str, str]]]]] = {
    "tiny": (of_tiny, lambda: ROWS),
    "gpt2 to llama2": (lambda: of_real("gpt2", "llama2"), real_rows),
    "phi3 to gpt2": (lambda: of_real("phi3", "gpt2"), real_rows),
    "llama2 to phi3": (lambda: of_real("llama2", "phi3"), real_rows),
}


@pytest.mark.parametrize("case", CASES)
def test_a_batch_is_what_a_loop_over_tokens_and_bytes_finds(case: str) -> None:
    collator, rows = CASES[case][0](), CASES[case][1]()
    batch = collator(rows)
    sides = collator.teacher, collator.student
    readings = [(tiny.read(sides[0], row), tiny.read(sides[1], row)) for row in rows]
    assert ids_of(batch, "teacher") == [one.ids for one, _ in readings]
    assert ids_of(batch, "student") == [one.ids for _, one in readings]
    for which, side in enumerate(SUPERVISED):
        assert supervised(batch, side) == [
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
    assert batch["cut"].tolist() == [0, 0]


@pytest.mark.parametrize("case", CASES)
def test_every_label_is_the_next_token_and_every_pair_one_token_of_the_text(case: str) -> None:
    collator, rows = CASES[case][0](), CASES[case][1]()
    batch = collator(rows)
    for side in SUPERVISED:
        for row, column, label in supervised(batch, side):
            assert batch[f"{side}_attention_mask"][row, column + 1] == 1
            assert batch[f"{side}_input_ids"][row, column + 1] == label
    for row, teacher_column, student_column in pairs(batch):
        tokens = (
            int(batch["teacher_input_ids"][row, teacher_column]),
            int(batch["student_input_ids"][row, student_column]),
        )
        known = (
            collator.teacher.vocabulary.token_bytes(tokens[0]),
            collator.student.vocabulary.token_bytes(tokens[1]),
        )
        assert None not in known
        if b"" in known:
            roles = collator.teacher.vocabulary.roles[tokens[0]], collator.student.vocabulary.roles[tokens[1]]
            assert roles[0] & roles[1]
        else:
            assert known[0] == known[1] or {known[0], b" " + (known[0] or b"")} & {
                known[1],
                b" " + (known[1] or b""),
            }


@pytest.mark.parametrize("case", CASES)
def test_the_end_of_turn_is_a_label_on_both_sides_and_a_pair(case: str) -> None:
    collator, rows = CASES[case][0](), CASES[case][1]()
    batch = collator(rows)
    teacher, student = (ids_of(batch, side) for side in ("teacher", "student"))
    for index in range(len(rows)):
        assert teacher[index][-1] == collator.teacher.tokenizer.eos_token_id
        assert student[index][-1] == collator.student.tokenizer.eos_token_id
        last = len(teacher[index]) - 1, len(student[index]) - 1
        assert (index, last[1] - 1, collator.student.tokenizer.eos_token_id) in supervised(batch)
        assert (index, *last) in pairs(batch)


def counts_of(batch: Batch) -> dict[str, int]:
    return dict(zip(Counts.__dataclass_fields__, batch["alignment_counts"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("student", "first"), [("llama2", "▁Paris"), ("phi3", "▁Paris"), ("gpt2", "ĠParis"), ("qwen2", "ĠParis")]
)
def test_a_space_that_the_tokenizer_adds_by_itself_is_not_there_twice(student: str, first: str) -> None:
    batch = of_real("gpt2", student)([{"prompt": "The capital of France is", "completion": " Paris"}])
    found = real(student).convert_ids_to_tokens([label for _, _, label in supervised(batch)])
    assert found == [first, real(student).eos_token]
    counts = counts_of(batch)
    assert (counts["exact"], counts["space"], counts["role"]) == (1, 0, 1)
    assert (counts["teacher_bytes"], counts["student_bytes"]) == (6, 6)


def test_a_text_without_a_space_is_a_pair_but_for_it() -> None:
    batch = of_real("gpt2", "llama2")([{"prompt": "Name it:\n", "completion": "Paris"}])
    assert real("llama2").convert_ids_to_tokens([label for _, _, label in supervised(batch)]) == [
        "▁Paris",
        "</s>",
    ]
    counts = counts_of(batch)
    assert (counts["exact"], counts["space"], counts["role"]) == (0, 1, 1)


def test_more_than_one_space_loses_only_that_which_is_added() -> None:
    batch = of_tiny()([{"prompt": "a", "completion": "  Paris"}])
    labels = [label for _, _, label in supervised(batch)][:-1]
    vocabulary = of_tiny().student.vocabulary
    assert b"".join(vocabulary.token_bytes(label) or b"" for label in labels) == b"  Paris"


def test_prompt_and_response_are_tokenised_apart() -> None:
    """Together ` Paris` would be one token; the prompt's part of it is no label."""
    collator = tiny.collator(tiny.teacher_tokenizer(), tiny.teacher_tokenizer())
    tokenizer = tiny.teacher_tokenizer()
    batch = collator([{"prompt": "the P", "completion": "aris"}])
    assert tokenizer.convert_ids_to_tokens(ids_of(batch, "student")[0]) == [
        "the", "ĠP", "a", "r", "i", "s", "</s>",
    ]  # fmt: skip
    assert tokenizer.convert_ids_to_tokens([label for _, _, label in supervised(batch)]) == [
        "a",
        "r",
        "i",
        "s",
        "</s>",
    ]


# ---- What is cut -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5, 9])
def test_a_long_prompt_loses_its_beginning_on_each_side_by_its_own_tokens(limit: int) -> None:
    collator = tiny.collator(tiny.teacher_tokenizer(), tiny.student_tokenizer(), max_prompt_length=limit)
    batch, whole = collator(ROWS), of_tiny()(ROWS)
    sides = {"teacher": collator.teacher, "student": collator.student}
    for name, side in sides.items():
        readings = [tiny.read(side, row) for row in ROWS]
        opening = [side.tokenizer.bos_token_id] if name == "student" else []
        room = max(limit - len(opening), 0)
        assert ids_of(batch, name) == [
            one.ids
            if one.first <= limit
            else [*opening, *one.ids[one.first - room : one.first], *one.ids[one.first :]]
            for one in readings
        ]
    assert batch["labels"].tolist() == whole["labels"].tolist()
    assert batch["paired"].tolist() == whole["paired"].tolist()
    assert batch["cut"].tolist() == [0, 0]


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 12])
def test_a_long_response_loses_its_end_and_is_counted(limit: int) -> None:
    collator = tiny.collator(tiny.teacher_tokenizer(), tiny.student_tokenizer(), max_response_length=limit)
    batch, cut = collator(ROWS), {}
    for name, side in {"teacher": collator.teacher, "student": collator.student}.items():
        readings = [tiny.read(side, row) for row in ROWS]
        assert ids_of(batch, name) == [one.ids[: one.first + limit] for one in readings]
        cut[name] = sum(len(one.ids) - one.first > limit for one in readings)
    assert batch["cut"].tolist() == [cut["teacher"], cut["student"]]
    assert cut["student"] > 0
    found = {(row, student) for row, _, student in pairs(batch)}
    for index, row in enumerate(ROWS):
        readings_of_row = tiny.read(collator.teacher, row), tiny.read(collator.student, row)
        expected = {
            (index, student)
            for teacher, student in tiny.token_pairs(
                (collator.teacher, collator.student), readings_of_row, row["completion"]
            )
            if 0 < teacher < readings_of_row[0].first + limit
            and 0 < student < readings_of_row[1].first + limit
        }
        assert {pair for pair in found if pair[0] == index} == expected, row


def test_a_response_that_just_fits_has_its_end_and_one_more_token_costs_it() -> None:
    tokenizer = tiny.teacher_tokenizer()
    rows = [{"prompt": "is", "completion": " world" * count} for count in (3, 4)]
    collator = tiny.collator(tokenizer, tokenizer, max_response_length=4)
    batch = collator(rows)
    ends = [ids[-1] == tokenizer.eos_token_id for ids in ids_of(batch, "student")]
    assert ends == [True, False]
    assert batch["cut"].tolist() == [1, 1]
    assert len(batch["labels"]) == 8


# ---- Where nothing stands before a response --------------------------------------------------------------


def test_behind_nothing_the_first_token_is_no_label_and_no_pair() -> None:
    """The teacher has no beginning of sequence, the student has; then the other way."""
    row = {"prompt": "", "completion": " Paris is"}
    batch = of_tiny()([row])
    assert len(batch["labels"]) == 3
    assert [column for _, column, _ in supervised(batch, "teacher")] == [0, 1]
    assert pairs(batch) == [(0, 1, 2), (0, 2, 3)]
    turned = tiny.collator(tiny.student_tokenizer(), tiny.teacher_tokenizer())([row])
    assert tiny.teacher_tokenizer().convert_ids_to_tokens([label for _, _, label in supervised(turned)]) == [
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
    batch = of_tiny()([{"prompt": prompt, "completion": [{"role": "assistant", "content": " Paris"}]}])
    text = "[system] Be short\n[user] Where?\n[assistant]"
    for name, tokenizer in {"teacher": tiny.teacher_tokenizer(), "student": tiny.student_tokenizer()}.items():
        expected = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        last = [
            tokenizer.backend_tokenizer.token_to_id(one)
            for one in ("ĠParis" if name == "teacher" else "▁Paris", "</s>")
        ]
        assert ids_of(batch, name)[0] == [*expected, *last]
    assert len(pairs(batch)) == 2


def test_templates_of_their_own_keep_their_specials() -> None:
    collator = of_real("qwen2", "phi3")
    prompt = [{"role": "user", "content": "Where?"}]
    batch = collator([{"prompt": prompt, "completion": [{"role": "assistant", "content": "Paris"}]}])
    for name, side in {"teacher": "qwen2", "student": "phi3"}.items():
        ids = real(side).apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        assert ids_of(batch, name)[0][: len(ids)] == list(ids)
        assert any(token in real(side).added_tokens_decoder for token in ids)


@pytest.mark.parametrize("student", ["tiny", "llama2", "gpt2"])
def test_the_literal_of_a_special_in_the_text_stays_text(student: str) -> None:
    collator = of_tiny() if student == "tiny" else of_real("gpt2", student)
    tokenizer = collator.student.tokenizer
    literal = f"It ends with {tokenizer.eos_token} here"
    batch = collator([{"prompt": literal, "completion": " " + literal}])
    for name, side in {"teacher": collator.teacher, "student": collator.student}.items():
        ids = ids_of(batch, name)[0]
        assert ids.count(side.tokenizer.eos_token_id) == 1
        assert ids[-1] == side.tokenizer.eos_token_id
    labels = [label for _, _, label in supervised(batch)][:-1]
    known = b"".join(collator.student.vocabulary.token_bytes(label) or b"" for label in labels)
    assert known.decode() == " " + literal


# ---- Batches and workers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["tiny", "gpt2 to llama2"])
def test_a_batch_is_its_rows_one_by_one(case: str) -> None:
    collator, rows = CASES[case][0](), CASES[case][1]()
    batch, alone = collator(rows), [collator([row]) for row in rows]
    for side in ("teacher", "student"):
        assert ids_of(batch, side) == [ids_of(one, side)[0] for one in alone]
    for side in SUPERVISED:
        assert supervised(batch, side) == [
            (index, *item[1:]) for index, one in enumerate(alone) for item in supervised(one, side)
        ]
    assert pairs(batch) == [(index, *item[1:]) for index, one in enumerate(alone) for item in pairs(one)]
    for name in ("alignment_counts", "cut"):
        assert batch[name].tolist() == torch.stack([one[name] for one in alone]).sum(0).tolist()


def test_every_tensor_is_int64_of_the_shape_that_is_said() -> None:
    batch = of_tiny()(ROWS)
    assert {name: tensor.dim() for name, tensor in batch.items()} == {
        **{
            f"{side}_{kind}": 2 for side in ("teacher", "student") for kind in ("input_ids", "attention_mask")
        },
        **dict.fromkeys(("row", "column", "labels", "paired", "teacher_row", "teacher_column"), 1),
        **dict.fromkeys(("attended_row", "attended_column", "teacher_labels"), 1),
        **dict.fromkeys(("alignment_counts", "cut"), 1),
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_pickled_it_makes_the_same_batches() -> None:
    again = pickle.loads(pickle.dumps(of_tiny()))  # noqa: S301 - our own
    assert_same(again(ROWS), of_tiny()(ROWS))


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
