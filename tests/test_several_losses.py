"""Several losses and several teachers in one run of the trainer: weights, logs, checkpoints, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tiny
from dskd.nn import LOSSES
from dskd.train.trainer import PROJECTORS_FILE
from tiny import ONE_VOCABULARY, UNGATED, assert_same

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

CROSS_ENTROPY: dict[str, Any] = {"loss": "cross_entropy", "weight": 0.5}
OF_TWO: list[dict[str, Any]] = [
    CROSS_ENTROPY,
    {"loss": "dual_space", "weight": 0.3, "teacher": "big", **UNGATED},
    {"loss": "dual_space", "weight": 0.2, "teacher": "other", "student_to_teacher": "trained"},
    {"loss": "shared_vocabulary", "weight": 0.4, "teacher": "other", "temperature": 2.0},
]
OF_ONE: list[dict[str, Any]] = [
    CROSS_ENTROPY,
    {"loss": "dual_space", "weight": 0.3, **UNGATED},
    {"loss": "shared_vocabulary", "weight": 0.4},
]


def run_of(folder: Path, losses: Sequence[Mapping[str, Any]], **given: Any) -> Any:
    """A trainer of these losses, with two teachers where they name them."""
    teachers = tiny.two_teachers() if any("teacher" in one for one in losses) else None
    return tiny.trainer(folder, teacher=teachers, losses=list(losses), **given)


def moves(made: Any) -> dict[str, Tensor]:
    """By how much a run moves each weight."""
    before = {name: one.detach().clone() for name, one in made.model.named_parameters()}
    made.train()
    return {name: one.detach() - before[name] for name, one in made.model.named_parameters()}


def of_student(moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: one for name, one in moved.items() if name.startswith("student.")}


# ---- Weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("losses", [OF_ONE, OF_TWO], ids=["one teacher", "two teachers"])
def test_a_sum_moves_the_student_by_the_sum_of_what_its_losses_move(
    losses: list[dict[str, Any]], tmp_path: Path
) -> None:
    """One step of SGD; and what a loss has built by as much as that loss alone.

    Within what float32 loses: a Llama's norms are computed in it, backwards too, whatever its weights have.
    """
    together = moves(run_of(tmp_path, losses, max_steps=1))
    alone = [moves(run_of(tmp_path, [one], max_steps=1)) for one in losses]
    expected = {name: torch.stack([one[name] for one in alone]).sum(0) for name in of_student(together)}
    assert_same(of_student(together), expected, relative=1e-5)
    built = {
        name.replace("built.0", f"built.{index}"): value
        for index, one in enumerate(alone)
        for name, value in one.items()
        if "built" in name
    }
    assert_same({name: one for name, one in together.items() if "built" in name}, built, relative=1e-9)


def test_an_objective_moves_as_its_entries_do(tmp_path: Path) -> None:
    entries = [{"loss": "cross_entropy", "weight": 0.7}, {"loss": "dual_space", "weight": 0.3, **UNGATED}]
    found = moves(run_of(tmp_path, entries))
    assert_same(found, moves(tiny.trainer(tmp_path, alpha=0.3)), relative=1e-12)


def test_with_two_teachers_four_rows_at_once_are_four_one_after_the_other(tmp_path: Path) -> None:
    found = [
        moves(
            run_of(
                tmp_path,
                OF_TWO,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=4 // size,
            )
        )
        for size in (4, 1)
    ]
    assert_same(found[1], found[0], relative=1e-10)


def test_all_losses_there_are_train_together(tmp_path: Path) -> None:
    named = {"cross_model_attention": "other", **dict.fromkeys(ONE_VOCABULARY, "near")}
    losses = [
        CROSS_ENTROPY,
        *(
            {"loss": name, "weight": 0.1, "teacher": named.get(name, "big")}
            for name in LOSSES
            if name != "cross_entropy"
        ),
    ]
    near = tiny.llama(len(tiny.student_tokenizer()), 12, seed=4)
    teachers = {**tiny.two_teachers(), "near": near}
    made = tiny.trainer(tmp_path, teacher=teachers, losses=losses, optim="adamw_torch", learning_rate=0.001)
    moved = moves(made)
    assert all(bool(one.isfinite().all() and one.any()) for one in of_student(moved).values())
    assert len(tiny.steps_logged(made)) == 3
    listened = {str(one.get("teacher", "cross_entropy")) for one in losses}
    assert {name.partition("/")[0] for name in made.terms} == listened


def test_a_teacher_to_whom_no_loss_listens_never_runs(tmp_path: Path) -> None:
    made = run_of(tmp_path, OF_TWO[:2])

    def refuse(*_: Any) -> None:
        raise AssertionError("the teacher ran")

    made.teachers["other"].get_input_embeddings().register_forward_hook(refuse)
    made.train()
    assert {name.partition("/")[0] for name in made.terms} == {"cross_entropy", "big"}
    assert all(line["other/pairs"] > 0 for line in tiny.steps_logged(made))


def test_a_batch_in_which_one_teacher_has_no_pair_trains_on(tmp_path: Path) -> None:
    """Cut behind the first token: ` Paris` of the student is ` Paris` of one teacher, ` Par` of the other."""
    rows = [{"prompt": "The", "completion": " Paris"}, {"prompt": "A", "completion": " Paris"}]
    made = run_of(tmp_path, OF_TWO, rows=rows, max_response_length=1, max_steps=1)
    moved = moves(made)
    (line,) = tiny.steps_logged(made)
    assert (line["big/pairs"], line["other/pairs"], line["labels"]) == (2, 0, 2)
    assert line["other/t2s_kd"] == line["other/s2t_kd"] == line["other/shared_kd"] == 0
    assert line["big/s2t_kd"] > 0
    expected = moves(run_of(tmp_path, OF_TWO[:2], rows=rows, max_response_length=1, max_steps=1))
    assert_same(of_student(moved), of_student(expected), relative=1e-5)


# ---- Logs ------------------------------------------------------------------------------------------------


def test_logs_are_by_the_names_of_the_teachers_and_the_loss_is_their_weighted_sum(tmp_path: Path) -> None:
    made = run_of(tmp_path, OF_TWO)
    made.train()
    assert made.terms == [
        "cross_entropy",
        *(f"big/{name}" for name in ("t2s_ce", "t2s_kd", "s2t_kd")),
        *(f"other/{name}" for name in ("t2s_kd", "s2t_kd", "shared_kd")),
    ]
    for line in tiny.steps_logged(made):
        of = {name: line[name] for name in made.terms}
        big = of["big/t2s_ce"] + of["big/t2s_kd"] + of["big/s2t_kd"]
        other = 0.2 * (of["other/t2s_kd"] + 0.25 * of["other/s2t_kd"]) + 0.4 * of["other/shared_kd"]
        assert line["loss"] == pytest.approx(0.5 * of["cross_entropy"] + 0.3 * big + other, rel=1e-6)
        for name in ("pairs", "ratio", "coverage_teacher", "coverage_student", "student_tokens"):
            assert {f"big/{name}", f"other/{name}"} <= line.keys()
            assert name not in line
        assert line["big/pairs"] != line["other/pairs"]


def test_what_is_logged_of_each_teacher_is_what_is_logged_of_it_alone(tmp_path: Path) -> None:
    rate = {"learning_rate": 0.0, "projector_learning_rate": 0.0}
    made = [run_of(tmp_path, losses, **rate) for losses in (OF_TWO, OF_TWO[1:2], OF_TWO[2:])]
    for one in made:
        one.train()
    both, *alone = (tiny.steps_logged(one) for one in made)
    for index, line in enumerate(both):
        for name, of in (("big", alone[0]), ("other", alone[1])):
            mine = {key: value for key, value in line.items() if key.startswith(f"{name}/")}
            assert len(mine) > 8
            assert mine == {key: pytest.approx(of[index][key], rel=1e-9) for key in mine}


def test_a_loss_that_is_no_number_is_named_with_its_teacher(tmp_path: Path) -> None:
    made = run_of(tmp_path, OF_TWO)
    with torch.no_grad():
        made.model.objective.built["2"].student_to_teacher.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"^step 0: other/s2t_kd is not finite"):
        made.train()


# ---- Checkpoints -----------------------------------------------------------------------------------------

SAVED = {
    "save_strategy": "steps",
    "save_steps": 3,
    "max_steps": 6,
    "learning_rate": 0.01,
    "optim": "adamw_torch",
}


@pytest.mark.parametrize("losses", [OF_ONE, OF_TWO], ids=["one teacher", "two teachers"])
def test_a_resumed_run_of_several_losses_is_the_uninterrupted_one(
    losses: list[dict[str, Any]], tmp_path: Path
) -> None:
    whole = run_of(tmp_path, losses, **SAVED)
    whole.train()
    resumed = run_of(tmp_path, losses, **SAVED)
    with torch.no_grad():  # what it begins with is not what it goes on with
        for parameter in resumed.model.objective.parameters():
            parameter.add_(1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(resumed.model.state_dict(), whole.model.state_dict(), relative=1e-12)
    assert [line["loss"] for line in tiny.steps_logged(resumed)] == [
        line["loss"] for line in tiny.steps_logged(whole)
    ]


def test_the_file_numbers_what_several_losses_have_built_and_names_the_teachers(tmp_path: Path) -> None:
    made = run_of(tmp_path, OF_TWO)
    made.save_model()
    saved = load_file(tmp_path / PROJECTORS_FILE)
    assert {name: tuple(one.shape) for name, one in saved.items()} == {
        "1.teacher_to_student": (24, 16),
        "1.student_to_teacher": (16, 24),
        "2.teacher_to_student": (20, 16),
        "2.student_to_teacher": (16, 20),
    }
    for name, one in saved.items():
        assert torch.equal(one, made.model.objective.built.state_dict()[name]), name
    with safe_open(tmp_path / PROJECTORS_FILE, "pt") as file:
        about = file.metadata()
    hashes = {name: one.side.vocabulary.content_hash for name, one in made.data_collator.teachers.items()}
    assert about["teacher_vocabulary"] == f"big={hashes['big']} other={hashes['other']}"


TRAINED = "objective and the matching of that run, or start anew$"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (OF_TWO, OF_TWO[:2], rf"differ in 1\.student.*, 2\.teacher_to_student, student_to.*{TRAINED}"),
        (OF_TWO[:2], OF_TWO, rf"differ in 1\.student.*, 2\.teacher_to_student, student_to.*{TRAINED}"),
        (OF_TWO, [OF_TWO[0], OF_TWO[3], *OF_TWO[1:3]], rf"differ in 1\.student.*, 3\.teacher_to.*{TRAINED}"),
        (
            [OF_TWO[0], OF_TWO[1]],
            [OF_TWO[0], {"loss": "cross_model_attention", "teacher": "big"}],
            rf"differ in projectors\.query\.bias, .*, student_to_teacher, teacher_to_student: .*{TRAINED}",
        ),
        (
            [OF_TWO[0], {"loss": "shared_vocabulary", "teacher": "big"}],
            OF_TWO,
            rf"{PROJECTORS_FILE} is missing: the run to resume had no projectors",
        ),
    ],
    ids=["fewer", "more", "in another order", "another", "none before"],
)
def test_resuming_with_other_losses_is_refused_by_name(
    before: list[dict[str, Any]], after: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    usual: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    run_of(tmp_path, before, **usual).train()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_of(tmp_path, after, **usual).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# ---- Refusals --------------------------------------------------------------------------------------------


def test_a_loss_that_listens_to_nobody_who_is_there_is_refused(tmp_path: Path) -> None:
    missing = [{"loss": "dual_space", "teacher": "large"}]
    with pytest.raises(
        ValueError, match=r"^DualSpace listens to the teacher 'large', and there is 'big', 'other': name one"
    ):
        run_of(tmp_path, missing)
    with pytest.raises(
        ValueError, match=r"^DualSpace listens to the teacher 'teacher', and there is 'big', "
    ):
        tiny.trainer(tmp_path, teacher=tiny.two_teachers())
    with pytest.raises(
        ValueError, match=r"^SharedVocabulary listens to the teacher 'big', and .* 'teacher': "
    ):
        tiny.trainer(tmp_path, losses=[{"loss": "shared_vocabulary", "teacher": "big"}])


@pytest.mark.parametrize(
    "given", [{"big": tiny.teacher_tokenizer()}, tiny.teacher_tokenizer()], ids=["one", "bare"]
)
def test_a_teacher_without_a_tokenizer_of_its_own_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^the teacher '(big|other)' has no tokenizer: .*teacher_processing_class"
    ):
        tiny.trainer(
            tmp_path,
            teacher=tiny.two_teachers(),
            losses=OF_TWO,
            more={"teacher_processing_class": given},
        )


def test_two_vocabularies_of_one_size_are_not_compared_id_by_id(tmp_path: Path) -> None:
    """Nor is one that has been padded to the size of the other."""
    size = len(tiny.student_tokenizer())
    teachers = {**tiny.two_teachers(), "near": tiny.llama(size, 12)}
    losses = [CROSS_ENTROPY, {"loss": "logits", "teacher": "near"}]
    assert tiny.trainer(tmp_path, teacher=teachers, losses=losses).model.objective.needs["near"].pairs
    teachers["big"] = tiny.llama(size, 12)
    losses[1] = {"loss": "logits", "teacher": "big"}
    message = rf"the student's vocabulary of {size} is not that of the teacher 'big': take SharedVocabulary; "
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, teacher=teachers, losses=losses)
    losses[1] = {"loss": "logits", "teacher": "other"}
    message = rf"the student has {size} and the teacher 'other' {len(tiny.other_tokenizer())}: take Shared"
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, teacher=teachers, losses=losses)


def test_faults_of_one_of_two_teachers_name_it(tmp_path: Path) -> None:
    teachers = tiny.two_teachers()
    teachers["other"] = tiny.llama(len(tiny.other_tokenizer()) - 1, 20)
    with pytest.raises(ValueError, match=r"^the teacher 'other''s tokenizer: "):
        tiny.trainer(tmp_path, teacher=teachers, losses=OF_TWO)
