"""A student of PEFT: a step with adapters is that with merged weights; what is saved opens."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoModelForCausalLM

import tiny
from conftest import IN_CI
from dskd.nn.heads import Head
from dskd.train.adapters import lora_config
from dskd.train.model import hidden_states
from dskd.train.script import main, parse
from tiny import ROWS, assert_same, step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# Without it these tests are skipped; under `CI=true` they fail.
peft: Any = importlib.import_module("peft") if IN_CI else pytest.importorskip("peft")

# What PEFT says of transformers, and of a head that is tied: that merging would change the embeddings.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tied.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]

BODY = {"target_modules": ["q_proj", "down_proj"]}
HEAD = {"target_modules": ["q_proj", "lm_head"]}
EMBEDDINGS = {"target_modules": ["q_proj", "embed_tokens"]}
COPY = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
COPIES = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}
TOKENS = {
    "target_modules": ["q_proj"],
    "trainable_token_indices": [1, 7, tiny.student_tokenizer().bos_token_id],
}
PLACES = [BODY, HEAD, EMBEDDINGS, COPY, COPIES, TOKENS]
"""Where adapters are: in the body alone, on an end of the model, in copies of its ends, in a few rows."""


def size() -> int:
    return len(tiny.student_tokenizer())


def plain_student(**options: Any) -> Any:
    return tiny.llama(size(), tiny.HIDDEN["student"], seed=1, **options)


def lora(**options: Any) -> Any:
    """Of which no product is 0, other than PEFT begins with."""
    return lora_config({"r": 3, "alpha": 5, "init_lora_weights": False, **options})


def adapted(config: Any, **options: Any) -> Any:
    torch.manual_seed(5)
    return peft.get_peft_model(plain_student(**options), config)


def trainer(folder: Path, config: Any, *, student: Any = None, **given: Any) -> Any:
    torch.manual_seed(5)
    return tiny.trainer(folder, student=student or plain_student(), more={"peft_config": config}, **given)


def logits(model: Any) -> Tensor:
    """Of the model as it is called, by its own layers."""
    ids = torch.arange(12)[None] * 7 % size()
    with torch.no_grad():
        said: Tensor = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return said


def as_near(found: Tensor, expected: Tensor) -> None:
    """Up to the order of sums of some dozens of products."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


# ---- One step --------------------------------------------------------------------------------------------


def merged_by_hand(student: Any) -> Any:
    """The plain student with `W + scaling B A`, and what each LoRA was."""
    plain, layers = plain_student(), {}
    weights = dict(plain.named_parameters())
    for name, layer in student.get_base_model().named_modules():
        if hasattr(layer, "lora_A") and "default" in layer.lora_A:
            layers[name] = layer
            product = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            weights[f"{name}.weight"].data += 5 / 3 * product.detach()
        elif hasattr(layer, "lora_embedding_A") and "default" in layer.lora_embedding_A:
            layers[name] = layer
            product = layer.lora_embedding_B["default"] @ layer.lora_embedding_A["default"]
            weights[f"{name}.weight"].data += 5 / 3 * product.detach().T
    return plain, layers


def without_dropout(made: Any) -> Any:
    """Of the losses; an adapter has none here."""
    for module in made.model.objective.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return made


@pytest.mark.parametrize("objective", ["dual_space", "shared_vocabulary", "cross_model_attention"])
@pytest.mark.parametrize("places", [BODY, HEAD, EMBEDDINGS], ids=str)
def test_a_step_is_that_with_merged_weights(places: dict[str, Any], objective: str, tmp_path: Path) -> None:
    """dA = scaling B^T dW and dB = scaling dW A^T, by hand."""
    with_adapters = without_dropout(trainer(tmp_path / "a", lora(**places), objective=objective))
    plain, layers = merged_by_hand(with_adapters.student)
    without = without_dropout(tiny.trainer(tmp_path / "b", student=plain, objective=objective))
    without.model.objective.load_state_dict(with_adapters.model.objective.state_dict())
    found, of_adapters = step(with_adapters, tiny.batch_of(with_adapters, ROWS[:4]))
    expected, of_weights = step(without, tiny.batch_of(without, ROWS[:4]))
    assert found == pytest.approx(expected, rel=1e-10)

    gradients: dict[str, Tensor | None] = {}
    for name, layer in layers.items():
        weight = of_weights[f"student.{name}.weight"]
        assert weight is not None
        at = f"student.base_model.model.{name}."
        if "default" in layer.lora_A:
            gradients[f"{at}lora_A.default.weight"] = 5 / 3 * layer.lora_B["default"].weight.T @ weight
            gradients[f"{at}lora_B.default.weight"] = 5 / 3 * weight @ layer.lora_A["default"].weight.T
        else:
            gradients[f"{at}lora_embedding_A.default"] = (
                5 / 3 * layer.lora_embedding_B["default"].T @ weight.T
            )
            gradients[f"{at}lora_embedding_B.default"] = (
                5 / 3 * weight.T @ layer.lora_embedding_A["default"].T
            )
    assert_same(
        {name: one for name, one in of_adapters.items() if name.startswith("student.")},
        {name: None if one is None else one.detach() for name, one in gradients.items()},
        relative=1e-9,
    )


def test_autocast_does_not_round_the_adapter_of_a_head() -> None:
    student = adapted(lora(**HEAD)).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = Head.of(student).weight
    assert torch.equal(found, Head.of(student).weight)


def test_a_copy_of_the_head_is_trained_as_the_head_would_be(tmp_path: Path) -> None:
    made = trainer(tmp_path / "a", lora(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    plain, _ = merged_by_hand(made.student)
    whole = tiny.trainer(tmp_path / "b", student=plain)
    _, found = step(made, tiny.batch_of(made, ROWS[:4]))
    _, expected = step(whole, tiny.batch_of(whole, ROWS[:4]))
    name = "student.base_model.model.lm_head.modules_to_save.default.weight"
    assert_same({"head": found[name]}, {"head": expected["student.lm_head.weight"]}, relative=1e-9)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_what_is_trained_of_a_head_moves_and_is_what_losses_read(
    places: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    made = trainer(tmp_path, lora(**places), student=plain_student(tie_word_embeddings=tied))
    before = {name: one.detach().clone() for name, one in made.student.named_parameters()}
    made.train()
    moved = {name for name, one in made.student.named_parameters() if not torch.equal(one, before[name])}
    assert moved == {name for name, one in made.student.named_parameters() if one.requires_grad}
    ids = torch.arange(12)[None] * 7 % size()
    with torch.no_grad():
        states = hidden_states(made.student.eval(), ids, torch.ones_like(ids))[0]
        as_near(Head.of(made.student).logits(states), logits(made.student))


KINDS = ["IA3Config", "LoHaConfig", "LoKrConfig", "OFTConfig", "VeraConfig", "LNTuningConfig"]


@pytest.mark.filterwarnings("ignore:Unsupported layer type .*RMSNorm:UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_other_kinds_are_read_through_and_trained(kind: str, tmp_path: Path) -> None:
    places: dict[str, Any] = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
    if kind == "IA3Config":
        places["feedforward_modules"] = ["down_proj"]
    elif kind == "LNTuningConfig":
        places = {"target_modules": ["input_layernorm", "norm"]}
    elif kind == "OFTConfig":
        places |= {"oft_block_size": 4}
    made = trainer(tmp_path, getattr(peft, kind)(task_type="CAUSAL_LM", **places), max_steps=2)
    before = logits(made.student)
    made.train()
    assert not torch.equal(logits(made.student), before)
    ids = torch.arange(12)[None] * 7 % size()
    with torch.no_grad():
        states = hidden_states(made.student.eval(), ids, torch.ones_like(ids))[0]
        as_near(Head.of(made.student).logits(states), logits(made.student))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        how = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}} if checkpointing else {}
        made = trainer(tmp_path, lora(**BODY), gradient_checkpointing=checkpointing, **how)
        made.train()
        moved = {name: one for name, one in made.model.named_parameters() if one.requires_grad}
        found.append({name: one.detach() for name, one in moved.items()})
    assert_same(found[1], found[0], relative=1e-10)


# ---- What is refused -------------------------------------------------------------------------------------


def injected() -> Any:
    student = plain_student()
    peft.inject_adapter_in_model(lora(**BODY), student)
    return student


REFUSED: dict[str, tuple[Any, str]] = {
    "DoRA on the head": (
        lambda: adapted(lora(**HEAD, use_dora=True)),
        r"head trains lora_magnitude_vector.*modules_to_save=\['lm_head'\]",
    ),
    "dropout on the head": (
        lambda: adapted(lora(**HEAD, dropout=0.1)),
        r"adapter on the student's head has dropout.*modules_to_save=\['lm_head'\]",
    ),
    "IA3 on the head": (
        lambda: adapted(
            peft.IA3Config(task_type="CAUSAL_LM", target_modules=["lm_head"], feedforward_modules=[])
        ),
        r"head trains ia3_l.default",
    ),
    "a prompt": (
        lambda: adapted(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        r"the adapter 'default' of the student is PROMPT_TUNING.*there is LORA",
    ),
    "ranks that are dealt out": (
        lambda: adapted(peft.AdaLoraConfig(task_type="CAUSAL_LM", total_step=9, **BODY)),
        r"the adapter 'default' of the student is ADALORA",
    ),
    "adapters in a model that does not know": (
        injected,
        r"LlamaForCausalLM has adapters that it would not be saved with.*get_peft_model\(model, config\)",
    ),
    "nothing trained": (
        lambda: adapted(lora(**BODY)).requires_grad_(requires_grad=False),
        r"nothing of the student is trained.*is_trainable=True",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_that_would_not_be_trained_or_saved_are_refused(case: str, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tiny.trainer(tmp_path, student=make())


def test_dropout_on_a_teachers_head_is_not_refused(tmp_path: Path) -> None:
    teacher = tiny.llama(len(tiny.teacher_tokenizer()), 24, seed=2)
    put_on = peft.get_peft_model(teacher, lora(**HEAD, dropout=0.1))
    assert tiny.trainer(tmp_path, teacher=put_on).train().training_loss > 0


@pytest.mark.parametrize("student", [lambda: adapted(lora(**BODY)), injected], ids=["PeftModel", "injected"])
def test_adapters_on_a_student_that_has_some_are_refused(student: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"PeftModel already: leave one out|would not be saved with"):
        trainer(tmp_path, lora(**BODY), student=student())


def test_a_quantised_student_without_adapters_is_refused(tmp_path: Path) -> None:
    student = plain_student()
    student.is_quantized = True
    with pytest.raises(ValueError, match="quantised, and so trained by adapters alone: give peft_config"):
        tiny.trainer(tmp_path, student=student)


def test_an_option_that_lora_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="lora has no option rank, scale; there is r, alpha"):
        lora_config({"rank": 4, "scale": 2})


def test_an_option_by_both_of_its_names_is_refused() -> None:
    with pytest.raises(ValueError, match="by both of its names: alpha, lora_alpha"):
        lora_config({"alpha": 4, "lora_alpha": 2})


def test_without_peft_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"adapters need PEFT: pip install 'dskd\[peft\]'"):
        lora_config({"r": 4})


# ---- What is saved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("places", PLACES, ids=str)
def test_what_is_saved_opens_with_peft_alone_and_merged_with_transformers_alone(
    places: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    student = plain_student(tie_word_embeddings=tied)
    made = trainer(tmp_path / "run", lora(**places), student=student, save_strategy="steps", save_steps=3)
    made.train()
    expected = logits(made.student)
    for folder in ("run/checkpoint-3", "adapters"):
        made.save_model(str(tmp_path / "adapters"))
        base = plain_student(tie_word_embeddings=tied)
        opened = peft.PeftModel.from_pretrained(base, tmp_path / folder)
        as_near(logits(opened), expected)
    made.merge_adapters()
    made.save_model(str(tmp_path / "plain"))
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float64)
    as_near(logits(plain), expected)
    # As other libraries, which look at the configuration alone, would open it.
    is_tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert plain.config.tie_word_embeddings == is_tied == (tied and places in (BODY, TOKENS))


def test_of_a_student_with_adapters_only_these_are_saved(tmp_path: Path) -> None:
    made = trainer(tmp_path, lora(**BODY))
    made.train()
    made.save_model()
    saved = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "projectors.safetensors"} <= saved
    assert not {"config.json", "model.safetensors"} & saved


def test_a_run_with_adapters_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "save_strategy": "steps",
        "save_steps": 2,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
    }
    whole = trainer(tmp_path / "whole", lora(**COPY), max_steps=4, **how)
    whole.train()
    halves = trainer(tmp_path / "halves", lora(**COPY), max_steps=2, **how)
    halves.train()
    torch.manual_seed(9)  # other adapters to begin with
    rest = tiny.trainer(
        tmp_path / "halves",
        student=plain_student(),
        more={"peft_config": lora(**COPY)},
        max_steps=4,
        **how,
    )
    rest.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-2"))
    found, expected = (dict(one.model.named_parameters()) for one in (rest, whole))
    assert all(torch.equal(one, found[name]) for name, one in expected.items())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (BODY, r"the adapter 'default' of this run differ in .*lm_head.*resume with the lora options"),
        (None, r"holds no adapters \(adapter_config.json\), and the student has some"),
    ],
    ids=["other places", "none"],
)
def test_a_checkpoint_of_other_adapters_is_refused(
    other: Mapping[str, Any] | None, message: str, tmp_path: Path
) -> None:
    how: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    made = (
        tiny.trainer(tmp_path, student=plain_student(), **how)
        if other is None
        else trainer(tmp_path, lora(**other), **how)
    )
    made.train()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trainer(tmp_path, lora(**HEAD), **how).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (plain_student, "merge: the student has no adapters"),
        (lambda: quantised(adapted(lora(**BODY))), "merge: the student is quantised"),
    ],
    ids=["plain", "quantised"],
)
def test_merging_what_cannot_be_is_refused_before_anything_is_trained(
    student: Any, message: str, tmp_path: Path
) -> None:
    made = tiny.trainer(tmp_path, student=student())
    with pytest.raises(ValueError, match=message):
        made.refuse_merging()


def quantised(student: Any) -> Any:
    """It says so; its weights are as they were."""
    student.get_base_model().is_quantized = True
    return student


# ---- dskd-train ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher, a student, and rows."""
    root = tmp_path_factory.mktemp("models")
    for name, tokenizer in (("teacher", tiny.teacher_tokenizer()), ("student", tiny.student_tokenizer())):
        tiny.llama(len(tokenizer), tiny.HIDDEN[name]).float().save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (root / "rows.jsonl").write_text(text, encoding="utf-8")
    return {name: str(root / name) for name in ("teacher", "student")} | {
        "train_data": str(root / "rows.jsonl")
    }


def written(folders: dict[str, str], folder: Path, **given: Any) -> list[str]:
    options = {
        **folders,
        "output_dir": str(folder / "run"),
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 2,
        "save_steps": 1,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "lora": {"r": 2, "alpha": 8, "target_modules": ["q_proj", "lm_head"]},
        **given,
    }
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    return ["--config", str(folder / "run.yaml")]


def by_peft(folders: dict[str, str], folder: Path) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folders["student"], dtype=torch.float32)
    return peft.PeftModel.from_pretrained(base, folder)


def test_a_run_with_lora_leaves_adapters_that_another_run_goes_on_from(
    folders: dict[str, str], tmp_path: Path
) -> None:
    main(written(folders, tmp_path / "first"))
    first = tmp_path / "first" / "run"
    trained = logits(by_peft(folders, first))
    assert not torch.equal(trained, logits(AutoModelForCausalLM.from_pretrained(folders["student"])))
    main(written({**folders, "student": str(first)}, tmp_path / "second", lora=None, learning_rate=0.0))
    assert torch.equal(logits(by_peft(folders, tmp_path / "second" / "run")), trained)


def test_a_merged_run_leaves_a_plain_student_and_its_adapters(
    folders: dict[str, str], tmp_path: Path
) -> None:
    loaded = {"teacher_model_init_kwargs": {"dtype": "bfloat16"}, "model_init_kwargs": {"dtype": "float32"}}
    line = ["--merge", "true", "--lora", '{"r": 4, "target_modules": ["v_proj"]}']
    main([*written(folders, tmp_path, **loaded), *line])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run", dtype=torch.float32)
    with_adapters = by_peft(folders, tmp_path / "run" / "adapters")
    assert with_adapters.peft_config["default"].r == 4
    torch.testing.assert_close(logits(plain), logits(with_adapters), rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits(plain), logits(AutoModelForCausalLM.from_pretrained(folders["student"])))


def test_a_folder_of_adapters_is_not_cut(folders: dict[str, str], tmp_path: Path) -> None:
    main(written(folders, tmp_path / "first"))
    student = str(tmp_path / "first" / "run")
    again = written({**folders, "student": student}, tmp_path, lora=None, student_layers=[0])
    with pytest.raises(SystemExit, match="student_layers beside a student that is a folder of adapters"):
        main(again)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora": {"rank": 2}}, "dskd-train: lora has no option rank"),
        ({"lora": None, "merge": True}, "dskd-train: merge without lora"),
        ({"student_layers": [0]}, "dskd-train: lora beside student_layers: .*merge: true keeps it whole"),
    ],
    ids=str,
)
def test_options_that_go_nowhere_are_one_line(
    given: dict[str, Any], message: str, folders: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        main(written(folders, tmp_path, **given))


def test_the_options_that_the_page_spells_out_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        options = {"teacher": "T", "train_data": "rows.jsonl", "use_cpu": True, **yaml.safe_load(block)}
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**options, "output_dir": str(tmp_path / "run")}), encoding="utf-8")
        script, config = parse(["--config", str(path)])
        assert script.student == options["student"]
        for name in ("model_init_kwargs", "teacher_model_init_kwargs"):
            assert getattr(config, name) == options.get(name)
        assert (script.lora, script.merge) == (options.get("lora"), options.get("merge", False))
        if isinstance(script.lora, dict):
            assert lora_config(script.lora).lora_alpha == options["lora"]["alpha"]
