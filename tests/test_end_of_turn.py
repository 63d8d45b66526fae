"""A student that ends its turns still does after it was trained on: its template's marker, not its `eos`."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny
from tiny import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

STUDENT_STOP, TEACHER_STOP = "<|im_end|>", "<end_of_turn>"

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OTHER = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)

ANSWERS = ("Paris", "the answer is two", "Hello world", "the world is the answer", "is it Paris")
ROWS = [
    {"messages": [{"role": "user", "content": f"Say it {index}"}, {"role": "assistant", "content": answer}]}
    for index, answer in enumerate(ANSWERS)
]


def with_markers(tokenizer: Any, template: str, *markers: str) -> Any:
    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"additional_special_tokens": list(markers)})
    made.chat_template = template
    return made


@functools.cache
def tokenizers() -> dict[str, Any]:
    return {
        "student": with_markers(tiny.student_tokenizer(), CHATML, "<|im_start|>", STUDENT_STOP),
        "teacher": with_markers(tiny.teacher_tokenizer(), OTHER, "<assistant>", "<user>", TEACHER_STOP),
    }


def trained(folder: Path, objective: str, steps: int, models: Mapping[str, Any], who: str = "student") -> Any:
    """A trainer that has run; it trained the student, whose tokenizer is that of `who`."""
    made = tiny.trainer(
        folder,
        teacher=models["teacher"],
        student=models["student"],
        rows=ROWS,
        dtype=torch.float32,
        objective=objective,
        optim="adamw_torch",
        learning_rate=3e-3,
        max_steps=steps,
        per_device_train_batch_size=len(ROWS),
        logging_steps=steps,
        more={
            "processing_class": tokenizers()[who],
            "teacher_processing_class": tokenizers()["teacher"],
        },
    )
    made.train()
    return made


def probability_of_ends(made: Any) -> float:
    """The least that the student gives to its marker where a turn ends."""
    side, model, least = made.data_collator.student, made.student.eval(), 1.0
    for row in made.train_dataset:
        (one,) = made.data_collator.encode(row)
        turn = one.student.turns[-1]
        assert side.tokenizer.convert_ids_to_tokens(one.student.ids[turn.end - 1]) == STUDENT_STOP
        ids = torch.tensor([one.student.ids[: turn.end - 1]])
        with torch.no_grad():
            said = model(ids).logits[0, -1].softmax(-1)
        least = min(least, float(said[one.student.ids[turn.end - 1]]))
    return least


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both end their turns by their own templates."""
    folder = tmp_path_factory.mktemp("end")
    made = {
        who: tiny.llama(len(tokenizer), HIDDEN[who], seed=seed)
        for seed, (who, tokenizer) in enumerate(tokenizers().items())
    }
    for who in ("teacher", "student"):
        learner = copy.deepcopy(made[who])
        trained(folder / who, "sft", 150, {"teacher": made["teacher"], "student": learner}, who)
        made[who] = learner
    return made


@pytest.mark.parametrize(
    "objective", ["sft", "dual_space", "shared_vocabulary", "strict_top_k", "alm", "uld"]
)
def test_a_student_that_ends_its_turns_still_does(
    objective: str, models: dict[str, Any], tmp_path: Path
) -> None:
    own = {"teacher": copy.deepcopy(models["teacher"]), "student": copy.deepcopy(models["student"])}
    made = trained(tmp_path, objective, 40, own)
    assert probability_of_ends(made) > 0.9


def test_the_two_stops_are_a_pair_and_each_other_in_the_maps(models: dict[str, Any], tmp_path: Path) -> None:
    made = trained(
        tmp_path, "shared_vocabulary", 1, {name: copy.deepcopy(one) for name, one in models.items()}
    )
    teacher = made.data_collator.teachers["teacher"].side
    ids = (
        tokenizers()["teacher"].convert_tokens_to_ids(TEACHER_STOP),
        tokenizers()["student"].convert_tokens_to_ids(STUDENT_STOP),
    )
    assert (teacher.stop_id, made.data_collator.student.stop_id) == ids
    maps = made._models["teacher"].maps  # noqa: SLF001 - what the losses are given
    assert list(ids) in maps.overlap.tolist()
    assert maps.to_student[ids[0]] == ids[1] == maps.to_student[tokenizers()["teacher"].eos_token_id]
    batch = tiny.batch_of(made, ROWS)
    assert len(batch.places.teachers["teacher"].paired) >= len(ROWS)
    labels = batch.places.student.labels[batch.places.teachers["teacher"].paired].tolist()
    assert labels.count(ids[1]) == len(ROWS)
