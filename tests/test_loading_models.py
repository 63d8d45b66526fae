"""Models by their names and wherever they are, bodies that hide, ids without a row; what callbacks reach."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import LlamaForCausalLM, LlamaModel, TrainerCallback

import tiny
from dskd import Vocabulary
from dskd.nn.heads import Head
from dskd.train import DistillationTrainer
from dskd.train.loading import load_student, load_teacher
from dskd.train.model import body_of, hidden_states
from tiny import ROWS, step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a teacher and a student, with their tokenizers."""
    root = tmp_path_factory.mktemp("models")
    for name, tokenizer in (("teacher", tiny.teacher_tokenizer()), ("student", tiny.student_tokenizer())):
        tiny.llama(len(tokenizer), tiny.HIDDEN[name]).bfloat16().save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: str(root / name) for name in ("teacher", "student")}


def by_name(names: Mapping[str, str | Path], folder: Path, **given: Any) -> Any:
    """A trainer of models by their names, without their tokenizers."""
    return DistillationTrainer(
        names["student"], names["teacher"], tiny.options(folder, **given), train_dataset=list(ROWS)
    )


def trainer_with(folder: Path, name: str, value: Any) -> Any:
    """A trainer of tiny models but for one of its arguments."""
    given: dict[str, Any] = {name: value}
    return tiny.trainer(folder, **given)


# ---- By name ---------------------------------------------------------------------------------------------


def test_models_are_given_by_name_and_bring_their_tokenizers(names: dict[str, str], tmp_path: Path) -> None:
    made = by_name(names, tmp_path)
    assert (made.student.dtype, tiny.teacher_of(made).dtype) == (torch.float32, torch.float32)
    assert made.train().training_loss > 0


def test_several_teachers_are_given_by_name(names: dict[str, str], tmp_path: Path) -> None:
    losses = [{"loss": "dual_space", "teacher": "big"}, {"loss": "shared_vocabulary", "teacher": "other"}]
    made = DistillationTrainer(
        names["student"],
        {"big": names["teacher"], "other": names["teacher"]},
        tiny.options(tmp_path, losses=losses, teacher_model_init_kwargs={"other": {"dtype": "bfloat16"}}),
        train_dataset=list(ROWS),
    )
    assert {name: one.dtype for name, one in made.teachers.items()} == {
        "big": torch.float32,
        "other": torch.bfloat16,
    }
    assert made.train().training_loss > 0


def test_models_are_loaded_with_what_the_options_say(names: dict[str, str], tmp_path: Path) -> None:
    made = by_name(
        names,
        tmp_path,
        model_init_kwargs={"attn_implementation": "eager"},
        teacher_model_init_kwargs='{"dtype": "bfloat16"}',
    )
    assert made.student.config._attn_implementation == "eager"  # noqa: SLF001 - where transformers says it
    assert tiny.teacher_of(made).dtype == torch.bfloat16


def test_a_path_is_a_name(names: dict[str, str], tmp_path: Path) -> None:
    made = by_name({name: Path(one) for name, one in names.items()}, tmp_path, max_steps=1)
    assert made.train().training_loss > 0


def test_options_of_loading_may_hold_what_is_no_json(tmp_path: Path) -> None:
    """A run writes its options into reports."""
    made: Any = tiny.options(tmp_path, model_init_kwargs={"dtype": torch.bfloat16})
    assert "bfloat16" in made.to_json_string()


def test_options_of_loading_beside_a_loaded_model_are_refused(tmp_path: Path) -> None:
    for name in ("model_init_kwargs", "teacher_model_init_kwargs"):
        with pytest.raises(ValueError, match=rf"^{name} beside a model that is loaded already"):
            trainer_with(tmp_path, name, {"dtype": "bfloat16"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_remote_code": True}, "model_init_kwargs: trust_remote_code is no option"),
        ({"torch_dtype": "float32"}, "model_init_kwargs: torch_dtype is dtype"),
        ({"dtype": "bf16"}, "model_init_kwargs: dtype='bf16'; it is auto, float32, bfloat16"),
        ({"flavour": "mild"}, "student with .*flavour"),
    ],
    ids=str,
)
def test_an_option_of_loading_that_is_none_is_refused(
    options: dict[str, Any], message: str, names: dict[str, str]
) -> None:
    with pytest.raises(ValueError, match=message):
        load_student(names["student"], options)


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is asked, either: who is says yes here."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = tmp_path / "model"
    folder.mkdir()
    about = {"model_type": "own", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "code.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    with pytest.raises(ValueError, match=r"custom code|trust_remote_code"):
        load_student(str(folder))


def test_a_teacher_is_loaded_as_it_was_saved_for_an_accelerator(names: dict[str, str]) -> None:
    assert load_teacher(names["teacher"], torch.device("cuda")).dtype == torch.bfloat16


# ---- Where they are --------------------------------------------------------------------------------------


def not_to_be_moved(model: Any) -> Any:
    def to(*_: Any) -> Any:
        raise AssertionError("it was moved")

    model.to = to
    return model


@pytest.mark.parametrize(
    "mark", [{"hf_device_map": {"": "cpu"}}, {"is_quantized": True}], ids=["mapped", "quantised"]
)
def test_a_teacher_that_was_placed_is_not_moved(mark: dict[str, Any], tmp_path: Path) -> None:
    teacher = tiny.llama(len(tiny.teacher_tokenizer()), 24, seed=2)
    for name, value in mark.items():
        setattr(teacher, name, value)
    made: Any = DistillationTrainer(
        tiny.llama(len(tiny.student_tokenizer()), 16, seed=1),
        not_to_be_moved(teacher),
        tiny.options(tmp_path),
        processing_class=tiny.student_tokenizer(),
        teacher_processing_class=tiny.teacher_tokenizer(),
        train_dataset=list(ROWS),
    )
    made.model.double()
    assert made.train().training_loss > 0


def test_a_teacher_is_loaded_by_a_device_map(names: dict[str, str], tmp_path: Path) -> None:
    made = by_name(names, tmp_path, teacher_model_init_kwargs={"device_map": {"": "cpu"}})
    assert made.train().training_loss > 0


def test_a_teacher_on_another_device_is_read_where_the_student_is() -> None:
    """On tensors that have a device and no values, where two devices in one operation are an error."""
    config, ids = tiny.llama(30, 8).config, torch.arange(4)[None]
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            teacher = LlamaForCausalLM(config)
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            teacher.model(input_ids=ids)
        states = hidden_states(teacher, ids, torch.ones_like(ids))
        head = Head.of(teacher)
        said = head.to("cpu").logits(states[0])
    assert (head.weight.device.type, states.device.type, said.device.type) == ("cuda", "cpu", "cpu")


def test_a_head_that_is_not_there_is_refused(tmp_path: Path) -> None:
    teacher = tiny.llama(len(tiny.teacher_tokenizer()), 24, seed=2)
    teacher.hf_device_map = {"": "disk"}
    teacher.lm_head.to("meta")
    with pytest.raises(ValueError, match=r"the head of LlamaForCausalLM is offloaded \(device_map\)"):
        tiny.trainer(tmp_path, teacher=teacher)


def test_a_quantised_head_is_refused(tmp_path: Path) -> None:
    teacher = tiny.llama(len(tiny.teacher_tokenizer()), 24, seed=2)
    teacher.lm_head.weight = nn.Parameter(torch.zeros(3, 5, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(
        ValueError, match=r"^the teacher: the head of .* is quantised \(torch.uint8\): leave it out"
    ):
        tiny.trainer(tmp_path, teacher=teacher)


def test_a_student_in_parts_is_refused(tmp_path: Path) -> None:
    student = tiny.llama(len(tiny.student_tokenizer()), 16)
    student.hf_device_map = {"model": "cpu", "lm_head": "disk"}
    with pytest.raises(ValueError, match="the student's device_map has cpu, disk, and it is trained on cpu"):
        tiny.trainer(tmp_path, student=student)


# ---- Bodies and heads ------------------------------------------------------------------------------------


def llama4(vocabulary: int, hidden: int) -> Any:
    """Of a class that says its body is `language_model`, and has none of that name."""
    config = transformers.Llama4TextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        intermediate_size_mlp=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=hidden // 2,
        num_local_experts=1,
        interleave_moe_layer_step=2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return transformers.Llama4ForCausalLM(config).double()


def test_a_model_whose_class_hides_its_body_is_read(tmp_path: Path) -> None:
    student = llama4(len(tiny.student_tokenizer()), 16)
    assert student.base_model is student
    assert body_of(student) is student.model
    made = tiny.trainer(tmp_path, student=student, max_steps=1)
    before = student.model.layers[0].self_attn.q_proj.weight.detach().clone()
    made.train()
    assert not torch.equal(student.model.layers[0].self_attn.q_proj.weight, before)


def test_a_model_whose_body_cannot_be_told_is_refused(tmp_path: Path) -> None:
    student = llama4(len(tiny.student_tokenizer()), 16)
    student.twin = nn.ModuleList([student.model.embed_tokens])
    with pytest.raises(ValueError, match=r"Llama4ForCausalLM hides its body: .* 2 of its parts hold"):
        tiny.trainer(tmp_path, student=student)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_model_without_a_head_is_refused_with_its_side(side: str, tmp_path: Path) -> None:
    model = LlamaModel(tiny.llama(400, 16).config).double()
    with pytest.raises(ValueError, match=rf"^the {side}: LlamaModel has no linear head; give a causal"):
        trainer_with(tmp_path, side, model)


def test_a_head_moves_with_all_that_it_is() -> None:
    head = Head(torch.zeros(3, 2), torch.zeros(3), 2.0, 5.0, torch.tensor([False, True, False])).to("meta")
    assert head.bias is not None
    assert head.unreachable is not None
    assert {one.device.type for one in (head.weight, head.bias, head.unreachable)} == {"meta"}
    assert (head.scale, head.softcap) == (2.0, 5.0)


# ---- Ids that a tokenizer defines and its model has no row for -------------------------------------------

IMAGE = "<image_soft_token>"


def with_more(tokenizer: Any) -> Any:
    """A tokenizer with an id more, which no plain text makes."""
    more = copy.deepcopy(tokenizer)
    more.add_special_tokens({"additional_special_tokens": [IMAGE]})
    assert len(more) == len(tokenizer) + 1
    return more


def of_more(folder: Path, side: str, rows: Any = ROWS, **given: Any) -> Any:
    """A trainer of which one side's tokenizer has an id more than its model."""
    name = "processing_class" if side == "student" else "teacher_processing_class"
    more = {name: with_more(getattr(tiny, f"{side}_tokenizer")())}
    return tiny.trainer(folder, rows=rows, more=more, **given)


@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize(
    "objective", ["dual_space", "shared_vocabulary", "cross_model_attention", "uld", "alm"]
)
def test_an_id_that_no_row_has_changes_nothing(side: str, objective: str, tmp_path: Path) -> None:
    made = of_more(tmp_path / "more", side, objective=objective)
    usual = tiny.trainer(tmp_path / "usual", objective=objective)
    losses = []
    for one in (made, usual):
        torch.manual_seed(3)
        one.model.objective.load_state_dict(usual.model.objective.state_dict())
        losses.append(step(one, tiny.batch_of(one, ROWS[:4]))[0])
    assert losses[0] == losses[1]
    made.train()


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_row_that_has_it_is_refused_with_the_id(side: str, tmp_path: Path) -> None:
    size = len(getattr(tiny, f"{side}_tokenizer")())
    asked, said = f"See {IMAGE}", {"role": "assistant", "content": "Paris"}
    rows = [{"prompt": [{"role": "user", "content": asked}], "completion": [said]}]
    message = rf"it has the id {size} at position \d+, and the model has ids 0 to {size - 1}: .*See {IMAGE}"
    with pytest.raises(ValueError, match=message):
        of_more(tmp_path, side, rows)


def test_a_vocabulary_is_cut_where_that_is_asked_for() -> None:
    tokenizer = with_more(tiny.student_tokenizer())
    tokenizer.pad_token = IMAGE  # a role that goes with it
    size = len(tokenizer) - 1
    assert Vocabulary.from_tokenizer(tokenizer, size=size, cut=True) == Vocabulary.from_tokenizer(
        tiny.student_tokenizer()
    )
    with pytest.raises(ValueError, match=f"size={size} is smaller than the tokenizer"):
        Vocabulary.from_tokenizer(tokenizer, size=size)


def test_a_vocabulary_that_may_be_cut_may_be_padded() -> None:
    tokenizer = tiny.student_tokenizer()
    padded = [Vocabulary.from_tokenizer(tokenizer, size=len(tokenizer) + 3, cut=cut) for cut in (False, True)]
    assert padded[0] == padded[1]


# ---- What callbacks and users reach ----------------------------------------------------------------------


def test_a_callback_generates_with_the_model_that_it_is_given(tmp_path: Path) -> None:
    found: list[Tensor] = []

    class Asks(TrainerCallback):
        def on_step_end(self, *_: Any, **given: Any) -> None:
            model = given["model"]
            ids = torch.tensor([[376, 20]], device=model.device)
            found.append(model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0))

    made = tiny.trainer(tmp_path, more={"callbacks": [Asks()]}, max_steps=1)
    made.train()
    ids = torch.tensor([[376, 20]])
    expected = made.student.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert torch.equal(found[0], expected)


def test_predict_says_the_likeliest_ids_and_the_labels_row_by_row(tmp_path: Path) -> None:
    made = tiny.trainer(tmp_path, per_device_eval_batch_size=3)
    found = made.predict(ROWS)
    student = made.student.eval()
    for row, ids, labels in zip(ROWS, found.predictions, found.label_ids, strict=True):
        reading = tiny.read(tiny.sides_of(made)[1], row)
        said = student(torch.tensor([reading.ids])).logits[0].argmax(-1).tolist()
        columns = [column for column in range(len(labels)) if labels[column] != -100]
        assert columns == reading.columns
        assert [labels[column] for column in columns] == [reading.ids[column] for column in columns]
        assert [ids[column] for column in columns] == [said[column - 1] for column in columns]
        assert [column for column in range(len(ids)) if ids[column] != -100] == columns


def test_predict_says_what_evaluate_says_and_tells_callbacks(tmp_path: Path) -> None:
    told: list[Any] = []

    class Hears(TrainerCallback):
        def on_predict(self, *_: Any, **given: Any) -> None:
            told.append(given["metrics"])

    made = tiny.trainer(tmp_path, more={"callbacks": [Hears()]})
    metrics = made.predict(ROWS, metric_key_prefix="held").metrics
    evaluated = made.evaluate(ROWS)
    names = ("bits_per_byte", "end_of_turn_bits", "rows", "bytes")
    assert metrics == {f"held_{name}": evaluated[f"eval_{name}"] for name in names}
    assert told == [metrics]
