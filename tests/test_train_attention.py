"""The trainer with cross-model attention: every part is trained, counted by its own N, saved and resumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny
from dskd.nn import Batch, Head, States, Teacher, TeacherModel, VocabularyMaps
from dskd.train.trainer import PROJECTORS_FILE
from tiny import BESIDE, ROWS, built_by, sides_of, step, teacher_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

MATCHINGS = ["none", "adversarial", "transport", "frozen"]
NETWORKS = {
    "none": [],
    "adversarial": ["discriminator"],
    "transport": ["critic", "forth", "back"],
    "frozen": ["discriminator"],
}
PROJECTORS = {
    "projectors.query.weight": (48, 32),
    "projectors.query.bias": (48,),
    "projectors.teacher_to_student.weight": (16, 24),
    "projectors.teacher_to_student.bias": (16,),
    "projectors.student_to_teacher.weight": (24, 16),
    "projectors.student_to_teacher.bias": (24,),
}


def attending(folder: Path, **given: Any) -> Any:
    torch.manual_seed(3)
    return tiny.trainer(folder, objective="cross_model_attention", **given)


def without_dropout(made: Any) -> Any:
    """What is dropped is drawn for every micro-batch: two ways through the rows would differ by it."""
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return made


def assert_same(
    found: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None], relative: float
) -> None:
    """Each by its own size, as the parts differ a lot."""
    assert found.keys() == expected.keys()
    assert len(found) > 0
    for name, one in expected.items():
        other = found[name]
        assert one is not None, name
        assert other is not None, name
        gap = float((other - one).norm())
        assert gap <= relative * max(float(one.norm()), 1e-3), (name, gap)


# ---- One step --------------------------------------------------------------------------------------------


def row_by_row(made: Any, rows: Sequence[Mapping[str, Any]]) -> Batch:
    """Of whole models: every token of a response that something stands before."""
    found = {}
    for name, side, model in zip(
        ("teacher_labels", "labels"), sides_of(made), (teacher_of(made), made.student), strict=True
    ):
        row, hidden, inputs, labels = [], [], [], []
        for index, one in enumerate(rows):
            reading = tiny.read(side, one)
            states = model.model(input_ids=torch.tensor([reading.ids])).last_hidden_state[0]
            for column in reading.columns:
                row.append(index)
                hidden.append(states[column - 1])
                inputs.append(reading.ids[column - 1])
                labels.append(reading.ids[column])
        dead = [
            side.vocabulary.token_bytes(token) is None and token not in side.vocabulary.roles
            for token in range(model.lm_head.weight.shape[0])
        ]
        found[name] = States(
            torch.stack(hidden),
            torch.tensor(labels),
            Head(model.lm_head.weight, unreachable=torch.tensor(dead) if any(dead) else None),
            row=torch.tensor(row),
            inputs=torch.tensor(inputs),
            embeddings=model.model.embed_tokens.weight,
            name=name,
        )
    of_teacher = found["teacher_labels"]
    nothing = VocabularyMaps(to_student=torch.full((of_teacher.head.weight.shape[0],), -1))
    spoken = Teacher(TeacherModel(of_teacher.head, nothing, of_teacher.embeddings), states=of_teacher)
    return Batch(found["labels"], {"teacher": spoken})


@pytest.mark.parametrize(
    "given",
    [{}, {"added": "none", "gate": "none"}, {"preset": "dskd_v1", "alpha": 0.3}, {"preset": "dskd_v2"}],
    ids=str,
)
def test_one_step_is_the_definition_over_whole_models(given: dict[str, Any], tmp_path: Path) -> None:
    made = attending(tmp_path, **given)
    loss, gradients = step(made, tiny.batch_of(made, ROWS))
    batch = row_by_row(made, ROWS)
    counts = batch.counts()
    assert counts["labels"] != counts["teacher_labels"]
    made.model.zero_grad()
    made.model.objective.fused = False
    expected = made.model.objective(batch)
    expected.loss.backward()
    assert loss == pytest.approx(expected.loss.item(), rel=1e-9)
    assert_same(gradients, {name: one.grad for name, one in made.model.named_parameters()}, 1e-7)


@pytest.mark.parametrize(
    "given", [*({"matching": one} for one in MATCHINGS if one != "frozen"), {"preset": "dskd_v1"}], ids=str
)
def test_four_micro_batches_of_a_row_are_one_of_four_rows(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same scales, which are of a micro-batch; transport compares all of one, so equal rows.

    What is frozen has a mean of the micro-batch, as published.
    """
    monkeypatch.setattr("dskd.nn.losses.attention._spread", lambda _: torch.tensor(0.7))
    made = without_dropout(attending(tmp_path, **given))
    rows = [ROWS[5]] * 4 if given.get("matching") == "transport" else ROWS[:4]
    one, whole = step(made, tiny.batch_of(made, rows))
    four, parts = step(made, *(tiny.batch_of(made, [row]) for row in rows))
    assert four == pytest.approx(one, rel=1e-9)
    assert_same(parts, whole, 1e-7)


def test_a_row_of_one_side_only_is_there_for_the_cross_entropy(tmp_path: Path) -> None:
    """Behind nothing a single token has no position on the teacher's side; the student's has `<s>`."""
    made = attending(tmp_path, matching="adversarial", max_response_length=1)
    rows = [{"prompt": "", "completion": "Paris"}, ROWS[5]]
    batch = tiny.batch_of(made, rows)
    (places,) = batch.places.teachers.values()
    assert places.supervised is not None
    assert places.supervised.row.tolist() == [1]
    assert sorted(batch.places.student.row.tolist()) == [0, 1]
    noted: list[Any] = []
    made.model.register_forward_hook(lambda *given: noted.append(given[2]))
    loss, gradients = step(made, batch)
    assert torch.isfinite(torch.tensor(loss))
    assert noted[0].counts["student_positions"].item() == noted[0].counts["teacher_positions"].item() == 1
    assert all(one is not None and one.isfinite().all() for one in gradients.values())

    # No row has both: all of the distillation is a zero that reaches every parameter.
    loss, gradients = step(made, tiny.batch_of(made, rows[:1]))
    assert loss == pytest.approx(0.5 * noted[1].sums["cross_entropy"].item(), rel=1e-12)
    beside = {name: one for name, one in gradients.items() if name.startswith(BESIDE)}
    assert beside.keys() == {BESIDE + name for name, _ in built_by(made).named_parameters()}
    assert all(one is not None and not one.any() for one in beside.values())


# ---- A run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [*({"matching": one} for one in MATCHINGS), {"preset": "dskd_v1"}, {"preset": "dskd_v2"}],
    ids=str,
)
def test_a_run_trains_every_part_but_a_frozen_discriminator(given: dict[str, Any], tmp_path: Path) -> None:
    made = attending(tmp_path, optim="adamw_torch", learning_rate=0.01, **given)
    before = {name: one.detach().clone() for name, one in made.model.named_parameters()}
    made.train()
    still = {name for name, one in made.model.named_parameters() if torch.equal(one.detach(), before[name])}
    assert still == {name for name, one in made.model.named_parameters() if not one.requires_grad}
    assert bool(still) is (given.get("matching") == "frozen")
    matching = built_by(made).matching
    assert list({} if matching is None else matching.networks) == NETWORKS[given.get("matching", "none")]
    assert not any(one.requires_grad for one in teacher_of(made).parameters())


def test_it_learns_to_find_the_other_model(tmp_path: Path) -> None:
    made = attending(
        tmp_path,
        optim="adamw_torch",
        learning_rate=0.01,
        projector_learning_rate=0.03,
        max_steps=40,
        alpha=1.0,
        per_device_train_batch_size=8,
    )
    made.train()
    lines = tiny.steps_logged(made)
    assert lines[-1]["t2s_ce"] < 0.5 * lines[0]["t2s_ce"]
    assert lines[-1]["agreed"] > lines[0]["agreed"]


@pytest.mark.parametrize("matching", MATCHINGS)
def test_a_resumed_run_is_the_uninterrupted_one(matching: str, tmp_path: Path) -> None:
    usual: dict[str, Any] = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "learning_rate": 0.01,
        "optim": "adamw_torch",
        "matching": matching,
    }
    whole = attending(tmp_path, **usual)
    whole.train()
    resumed = attending(tmp_path, **usual)
    with torch.no_grad():  # what it begins with is not what it goes on with
        for parameter in built_by(resumed).parameters():
            parameter.add_(1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    found, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert_same(found, expected, 1e-10)
    assert [(line["step"], line["loss"]) for line in tiny.steps_logged(resumed)] == [
        (line["step"], line["loss"]) for line in tiny.steps_logged(whole)
    ]


# ---- Files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matching", MATCHINGS)
def test_all_that_is_trained_beside_the_student_is_in_the_file(matching: str, tmp_path: Path) -> None:
    made = attending(tmp_path, matching=matching)
    made.save_model()
    saved = load_file(tmp_path / PROJECTORS_FILE)
    of_projectors = {
        name: tuple(one.shape) for name, one in saved.items() if not name.startswith("matching.")
    }
    assert of_projectors == PROJECTORS
    networks = {name.split(".")[2] for name in saved if name.startswith("matching.networks.")}
    assert networks == set(NETWORKS[matching])
    trained = dict(built_by(made).named_parameters())
    assert saved.keys() == trained.keys()
    for name, one in saved.items():
        assert torch.equal(one, trained[name]), name
    student = load_file(tmp_path / "model.safetensors")
    assert not any("built" in name or "query" in name for name in student)


def test_resuming_with_another_tokenizer_is_an_error(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    attending(tmp_path, **usual).train()
    path = tmp_path / "checkpoint-2" / PROJECTORS_FILE
    with safe_open(path, "pt") as file:
        about = file.metadata()
    save_file(load_file(path), path, metadata={**about, "teacher_vocabulary": "0" * 64})
    with pytest.raises(ValueError, match=r"belongs to another teacher vocabulary"):
        attending(tmp_path, **usual).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("given", "differs"),
    [
        ({"matching": "transport"}, r"matching\.networks\.critic.*matching\.networks\.discriminator"),
        ({"matching": "none"}, r"matching\.networks\.discriminator"),
        (
            {"objective": "dual_space"},
            r"matching\.networks\.discriminator.* projectors\.query\.weight.* teacher",
        ),
    ],
    ids=str,
)
def test_resuming_another_objective_or_matching_is_an_error_that_names_what_differs(
    given: dict[str, Any], differs: str, tmp_path: Path
) -> None:
    usual: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    attending(tmp_path, **usual, matching="adversarial").train()
    other = tiny.trainer(tmp_path, **{**usual, "objective": "cross_model_attention", **given})
    with pytest.raises(ValueError, match=rf"and this run differ in .*{differs}.*: resume with the objective"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


# ---- The optimizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("matching", MATCHINGS)
def test_what_is_beside_the_student_has_its_own_rate_and_the_adversaries_their_own_averages(
    matching: str, tmp_path: Path
) -> None:
    made = attending(
        tmp_path,
        matching=matching,
        optim="adamw_torch",
        weight_decay=0.1,
        learning_rate=0.01,
        projector_learning_rate=0.003,
    )
    optimizer = made.create_optimizer()
    assert made.create_optimizer() is optimizer
    held = [id(one) for group in optimizer.param_groups for one in group["params"]]
    assert len(held) == len(set(held))
    trained = {name: one for name, one in made.model.named_parameters() if one.requires_grad}
    assert set(held) == {id(one) for one in trained.values()}
    assert any("discriminator" in name for name in trained) is (matching == "adversarial")
    for name, parameter in trained.items():
        (group,) = (
            group for group in optimizer.param_groups if any(one is parameter for one in group["params"])
        )
        plays = matching == "adversarial" and ("discriminator" in name or "query" in name)
        assert group["betas"] == ((0.5, 0.9) if plays else (0.9, 0.999)), name
        assert group["lr"] == (0.003 if name.startswith(BESIDE) else 0.01), name
        assert not name.startswith(BESIDE) or group["weight_decay"] == 0, name


def test_an_optimizer_without_averages_takes_a_discriminator_as_well(tmp_path: Path) -> None:
    made = attending(tmp_path, matching="adversarial", optim="sgd")
    assert not any("betas" in group for group in made.create_optimizer().param_groups)


# ---- Logs and evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("matching", MATCHINGS)
def test_every_term_is_logged_per_item_of_its_own_space(matching: str, tmp_path: Path) -> None:
    """Two steps of two micro-batches in one line: eight rows, all of them."""
    made = without_dropout(
        attending(
            tmp_path,
            matching=matching,
            gate="gold",
            kq_rate=0.5,
            learning_rate=0.0,
            projector_learning_rate=0.0,
            logging_steps=2,
            max_steps=2,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
        )
    )
    parts: list[Any] = []
    made.model.register_forward_hook(lambda *given: parts.append(given[2]))
    made.train()
    (line,) = tiny.steps_logged(made)
    teacher, student = (sum(len(tiny.read(side, row).columns) for row in ROWS) for side in sides_of(made))
    assert (line["teacher_labels"], line["labels"]) == (teacher, student)
    assert teacher != student
    of_student = ["cross_entropy", "t2s_ce", "t2s_kd", "student_positions", "agreed", "gated"]
    of_teacher = ["s2t_kd", "teacher_positions"]
    more: dict[str, tuple[list[str], list[str]]] = {
        "none": ([], []),
        "adversarial": (["kq_queries", "kq_right_queries"], ["kq_keys", "kq_right_keys"]),
        "transport": (["kq_forward"], ["kq_backward"]),
        "frozen": (["kq_queries"], ["kq_keys"]),
    }
    assert len(parts) == 4
    found = {name for part in parts for name in (*part.sums, *part.counts)}
    assert found == {*of_student, *of_teacher, *more[matching][0], *more[matching][1]}
    for name in found:
        total = sum(float({**part.sums, **part.counts}[name]) for part in parts)
        over = teacher if name in (*of_teacher, *more[matching][1]) else student
        assert line[name] == pytest.approx(total / over, rel=1e-6), name
    assert line["student_positions"] == line["teacher_positions"] == 1
    assert line["ratio"] > 0  # of the alignment, which is counted as ever


def test_evaluation_is_that_of_the_student_alone(tmp_path: Path) -> None:
    made = attending(tmp_path / "one", matching="adversarial", more={"eval_dataset": ROWS[:5]})
    other = tiny.trainer(tmp_path / "two", objective="sft", more={"eval_dataset": ROWS[:5]})
    assert made.evaluate()["eval_bits_per_byte"] == other.evaluate()["eval_bits_per_byte"]


# ---- Options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gate": "prediction"}, "cross_model_attention: gate='prediction'; it is one of gold, none"),
        ({"preset": "dskd_v2_same_vocabulary"}, "is none of .*attention; it has dskd_v1, dskd_v2"),
        ({"kq_rate": -0.1}, "kq_rate=-0.1; it is a number from 0 on"),
        ({"kq_rate": float("inf")}, "kq_rate=inf; it is a number from 0 on"),
        ({"teacher_temperature": 0.0}, "teacher_temperature=0.0; it is a number above 0"),
        ({"loss_options": {"columns": "all"}}, "cross_model_attention has no option columns; it has diver"),
        (
            {"objective": "dual_space", "loss_options": {"matching": "adversarial"}},
            "dual_space has no option matching; it has divergence, mix, temperature, s2t_divergence",
        ),
        (
            {"objective": "sft", "loss_options": {"added": "none"}},
            "objective='sft' has no option added",
        ),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.options(tmp_path, **{"objective": "cross_model_attention", **given})


def test_a_model_whose_embeddings_are_narrower_than_its_states_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny.llama(len(tiny.teacher_tokenizer()), 24, seed=2)
    narrow = torch.nn.Embedding(len(tiny.teacher_tokenizer()), 8)
    monkeypatch.setattr(teacher, "get_input_embeddings", lambda: narrow)
    with pytest.raises(ValueError, match=r"the teacher's input embeddings are 8 wide and its states 24"):
        attending(tmp_path, teacher=teacher)


def test_a_student_whose_embeddings_are_narrower_than_its_states_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tiny.llama(len(tiny.student_tokenizer()), 16, seed=2)
    narrow = torch.nn.Embedding(len(tiny.student_tokenizer()), 8)
    monkeypatch.setattr(student, "get_input_embeddings", lambda: narrow)
    with pytest.raises(ValueError, match=r"the student's input embeddings are 8 wide and its states 16"):
        attending(tmp_path, student=student)
