"""`dskd-train`: what its options are read from, what it refuses, and what a whole run leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from dskd.nn import LOSSES, CrossEntropy, CrossModelAttention, DualSpace, SharedVocabulary, Weighted
from dskd.nn.losses.options import options_of
from dskd.train import DistillationConfig
from dskd.train.script import main, parse
from tiny import ROWS

if TYPE_CHECKING:
    from pathlib import Path

    from dskd.nn import Loss
    from dskd.train.config import ScriptArguments

LINES = "teacher: T\nstudent: S\ntrain_data: x.jsonl\nuse_cpu: true\noutput_dir: out\n"
NAMED = {"teacher": "T", "student": "S", "train_data": "rows.jsonl", "use_cpu": True, "report_to": "none"}


def written(folder: Path, options: dict[str, Any] | str, name: str = "run.yaml") -> list[str]:
    """The arguments that name a file with these options."""
    path = folder / name
    if isinstance(options, str):
        path.write_text(options, encoding="utf-8")
    else:
        path.write_text(
            json.dumps(options) if name.endswith("json") else yaml.safe_dump(options), encoding="utf-8"
        )
    return ["--config", str(path)]


def on_the_line(options: dict[str, Any]) -> list[str]:
    return [item for name, value in options.items() for item in (f"--{name}", str(value))]


def parsed(
    folder: Path, options: dict[str, Any] | str, *more: str, name: str = "run.yaml"
) -> tuple[ScriptArguments, DistillationConfig]:
    if isinstance(options, dict):
        options = {**NAMED, "output_dir": str(folder), **options}
    return parse([*written(folder, options, name), *more])


def objective_of(config: DistillationConfig) -> Loss:
    """The loss beside the cross-entropy."""
    of_cross_entropy, of_objective = config.weighted()
    assert of_cross_entropy.loss == CrossEntropy()
    return of_objective.loss


# ---- Options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_a_file_holds_options_of_every_kind(name: str, tmp_path: Path) -> None:
    script, config = parsed(
        tmp_path,
        {
            "learning_rate": 3e-4,
            "max_steps": 7,
            "objective": "shared_vocabulary",
            "temperature": 2,
            "alpha": 0,
            "bf16": False,
            "gradient_accumulation_steps": 2,
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": 0.0001, "num_cycles": 2},
            "student_layers": [0, 2, 5],
            "teacher_roles": {"<|endoftext|>": ["eos", "bos"]},
            "eval_data": None,
        },
        name=name,
    )
    assert (script.teacher, script.student, script.train_data) == ("T", "S", "rows.jsonl")
    assert script.student_layers == [0, 2, 5]
    assert script.eval_data is None
    assert script.student_tokenizer is None
    assert (config.learning_rate, config.max_steps, config.alpha) == (3e-4, 7, 0)
    assert (config.objective, config.bf16, config.use_cpu) == ("shared_vocabulary", False, True)
    assert objective_of(config) == SharedVocabulary(temperature=2.0)
    assert config.gradient_accumulation_steps == 2
    assert config.lr_scheduler_kwargs == {"min_lr": 0.0001, "num_cycles": 2}
    assert config.output_dir == str(tmp_path)


def test_the_options_of_dual_space_reach_the_loss(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "t2s_target": "distribution",
        "target": "exact",
        "columns": "overlap",
        "s2t_columns": "overlap",
        "s2t_weight": 0.75,
        "gate": "gold",
        "spaces": "student",
        "divergence": "js",
        "mix": 0.3,
        "temperature": 2.0,
        "centre": False,
        "refresh_every": 7,
    }
    config = parsed(tmp_path, given, "--teacher_to_student", "solved")[1]
    assert objective_of(config) == DualSpace(**given, teacher_to_student="solved")
    assert objective_of(parsed(tmp_path, {})[1]) == DualSpace()


@pytest.mark.parametrize("where", ["file", "line", "options in a file", "options on the line"])
def test_options_are_read_the_same_wherever_they_stand(where: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"temperature": 2, "gate": "none", "added": "prediction", "kq_rate": 1e-7}
    objective = {"objective": "cross_model_attention"}
    config = {
        "file": lambda: parsed(tmp_path, {**objective, **given}),
        "line": lambda: parsed(tmp_path, objective, *on_the_line(given)),
        "options in a file": lambda: parsed(tmp_path, {**objective, "loss_options": given}),
        "options on the line": lambda: parsed(tmp_path, objective, "--loss_options", json.dumps(given)),
    }[where]()[1]
    assert objective_of(config) == CrossModelAttention(
        temperature=2.0, gate=None, added="prediction", kq_rate=1e-7
    )


def test_an_option_of_its_own_name_beats_the_same_among_the_options(tmp_path: Path) -> None:
    given = {"loss_options": {"temperature": 3.0, "mix": 0.3, "divergence": "js"}, "temperature": 2.0}
    config = parsed(tmp_path, given, "--mix=0.4")[1]
    assert objective_of(config) == DualSpace(temperature=2.0, mix=0.4, divergence="js")


@pytest.mark.parametrize("spelled", ["1e-7", "1.0e-07", "0.0000001", "'1e-7'"])
def test_a_number_of_a_loss_may_be_spelled_as_people_do(spelled: str, tmp_path: Path) -> None:
    flat = parsed(tmp_path, f"{LINES}s2t_weight: {spelled}\n")[1]
    listed = parsed(
        tmp_path, f"{LINES}losses:\n- loss: dual_space\n  s2t_weight: {spelled}\n  weight: {spelled}\n"
    )
    assert objective_of(flat) == DualSpace(s2t_weight=1e-7)
    assert listed[1].weighted() == [Weighted(DualSpace(s2t_weight=1e-7), 1e-7)]


@pytest.mark.parametrize("spelled", ["none", "None", "'none'"])
def test_none_switches_off(spelled: str, tmp_path: Path) -> None:
    flat = parsed(tmp_path, f"{LINES}objective: cross_model_attention\ngate: {spelled}\n")[1]
    entry = f"losses: [{{loss: cross_model_attention, gate: {spelled}}}]\n"
    assert objective_of(flat) == CrossModelAttention(gate=None)
    assert parsed(tmp_path, LINES + entry)[1].weighted() == [Weighted(CrossModelAttention(gate=None))]


PRESETS = [(name, preset) for name, kind in LOSSES.items() for preset in kind.presets]


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_a_preset_has_the_options_of_the_publication_beside_those_that_are_given(
    name: str, preset: str, tmp_path: Path
) -> None:
    given = {"objective": name, "preset": preset, "temperature": 2.0}
    options = {**LOSSES[name].presets[preset], "temperature": 2.0}
    assert objective_of(parsed(tmp_path, given)[1]) == LOSSES[name](**options)


@pytest.mark.parametrize(
    "given",
    [
        {"gate": "gold"},
        {"target": "projected"},
        {"centre": False},
        {"refresh_every": 2},
    ],
    ids=str,
)
def test_what_a_preset_says_itself_is_refused_beside_it(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"^{next(iter(given))} beside preset='dskd_v2', which has its own: leave one out"
    ):
        parsed(tmp_path, {"preset": "dskd_v2", **given})


def test_a_projector_that_nobody_asks_for_is_not_to_be_solved(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^teacher_to_student='solved' .* there is none: set target='projected'"
    ):
        parsed(tmp_path, {"teacher_to_student": "solved"})
    with pytest.raises(ValueError, match=r"^teacher_to_student='solved' .*spaces='teacher', there is none"):
        parsed(tmp_path, {"teacher_to_student": "solved", "target": "projected", "spaces": "teacher"})
    given: dict[str, Any] = {"teacher_to_student": "solved", "target": "projected"}
    assert objective_of(parsed(tmp_path, given)[1]) == DualSpace(**given)


# ---- Several losses --------------------------------------------------------------------------------------

SUM: list[dict[str, Any]] = [
    {"loss": "cross_entropy", "weight": 0.25},
    {"loss": "dual_space", "weight": 0.5, "teacher": "big", "preset": "dskd_v2", "temperature": 2.0},
    {"loss": "shared_vocabulary", "teacher": "near"},
]
WEIGHTED = [
    Weighted(CrossEntropy(), 0.25),
    Weighted(DualSpace(**DualSpace.presets["dskd_v2"], temperature=2.0), 0.5, "big"),
    Weighted(SharedVocabulary(), 1.0, "near"),
]


@pytest.mark.parametrize("where", ["python", "text in python", "yaml", "json", "line"])
def test_losses_are_read_the_same_wherever_they_stand(where: str, tmp_path: Path) -> None:
    config = {
        "python": lambda: tiny.options(tmp_path, losses=SUM),
        "text in python": lambda: tiny.options(tmp_path, losses=json.dumps(SUM)),
        "yaml": lambda: parsed(tmp_path, {"losses": SUM})[1],
        "json": lambda: parsed(tmp_path, {"losses": SUM}, name="run.json")[1],
        "line": lambda: parsed(tmp_path, {}, "--losses", json.dumps(SUM))[1],
    }[where]()
    assert config.weighted() == WEIGHTED


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_an_objective_is_cross_entropy_and_one_entry(name: str, tmp_path: Path) -> None:
    short = parsed(tmp_path, {"objective": name, "alpha": 0.25})[1]
    entries = [{"loss": "cross_entropy", "weight": 0.75}, {"loss": name, "weight": 0.25}]
    assert short.weighted() == parsed(tmp_path, {"losses": entries})[1].weighted()
    assert short.weighted() == [Weighted(CrossEntropy(), 0.75), Weighted(LOSSES[name](), 0.25)]


def test_sft_is_cross_entropy_alone_whatever_alpha_is(tmp_path: Path) -> None:
    config = parsed(tmp_path, {"objective": "sft", "alpha": 0.9})[1]
    assert config.weighted() == [Weighted(CrossEntropy())]


DUAL = {"loss": "dual_space"}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"losses": SUM, "objective": "sft"}, "objective='sft' beside losses, which say all: leave one out"),
    ({"losses": SUM, "alpha": 0.3}, "alpha=0.3 beside losses, which say all: leave one out"),
    (
        {"losses": SUM, "temperature": 2.0, "mix": 0.1},
        "(temperature, mix|mix, temperature) beside losses: options",
    ),
    ({"losses": SUM, "loss_options": {"mix": 0.1}}, "mix beside losses: options stand in their entries"),
    ({"losses": SUM, "preset": "dskd_v2"}, "preset beside losses: options stand in their entries"),
    ({"losses": []}, r"losses is a list, and each of it a table: \[{"),
    ({"losses": DUAL}, r"losses is a list, and each of it a table: \[{"),
    ({"losses": ["dual_space"]}, r"losses is a list, and each of it a table: \[{"),
    (
        {"losses": [DUAL, {"weight": 1.0}]},
        r"losses, entry 1 \(from 0\) has no loss: NAME; there is .*dual_space",
    ),
    ({"losses": [{"loss": "dual"}]}, "there is no loss 'dual'; there is .*dual_space"),
    ({"losses": [{**DUAL, "wieght": 1.0}]}, "dual_space has no option wieght; it has divergence"),
    (
        {"losses": [{**DUAL, "preset": "dskd_v3"}]},
        "preset='dskd_v3' is none of dual_space; it has dskd_ungated",
    ),
    (
        {"losses": [{"loss": "cross_entropy", "preset": "x"}]},
        "preset='x' is none of cross_entropy; it has none",
    ),
    ({"losses": [{"loss": "cross_entropy", "mix": 1}]}, "cross_entropy has no option mix; it has none"),
    (
        {"losses": [{**DUAL, "preset": "dskd_v2", "gate": "gold"}]},
        "gate beside preset='dskd_v2', which has its own",
    ),
    (
        {"losses": [DUAL, {**DUAL, "weight": "hot"}]},
        r"losses, entry 1 \(from 0\): weight='hot'; it is a number",
    ),
    ({"losses": [{**DUAL, "weight": True}]}, r"losses, entry 0 \(from 0\): weight=True; it is a number"),
    (
        {"losses": [{**DUAL, "weight": -1}]},
        r"losses, entry 0 \(from 0\): weight=-1; it is a number from 0 on",
    ),
    ({"losses": [{**DUAL, "temperature": "hot"}]}, "dual_space: temperature='hot'; it is a number$"),
    ({"losses": [{**DUAL, "temperature": None}]}, "dual_space: temperature is not given; leave it out"),
    ({"objective": "dual"}, "there is no loss 'dual'; there is .*dual_space"),
    ({"temperature": "hot"}, "dual_space: temperature='hot'; it is a number$"),
    ({"refresh_every": 1.5}, "dual_space: refresh_every=1.5; it is a whole number$"),
    ({"refresh_every": True}, "dual_space: refresh_every=True; it is a whole number$"),
    ({"bias": 1}, "dual_space: bias=1; it is true or false$"),
    ({"mix": "half"}, "dual_space: mix='half'; it is a number, or none$"),
    ({"objective": "uld", "largest": 2.5}, r"uld: largest=2\.5; it is a whole number, or none$"),
    ({"gate": "open"}, "dual_space: gate='open'; it is one of (prediction, gold|gold, prediction), none"),
    ({"preset": "dskd_v3"}, "preset='dskd_v3' is none of dual_space; it has dskd_ungated, dskd_v1"),
    ({"matching": "transport"}, "dual_space has no option matching; it has divergence"),
    (
        {"objective": "shared_vocabulary", "gate": "gold"},
        "shared_vocabulary has no option gate; it has diver",
    ),
    ({"objective": "sft", "temperature": 2.0}, "objective='sft' has no option temperature"),
    ({"objective": "sft", "preset": "dskd_v1"}, "objective='sft' has no option preset"),
    ({"loss_options": ["mix"]}, "loss_options='mix' is no JSON"),
]


@pytest.mark.parametrize(("given", "message"), REFUSED, ids=str)
def test_what_a_file_says_wrong_of_losses_is_refused(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parsed(tmp_path, given)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--losses", "dual_space"], "losses='dual_space' is no JSON: "),
        (["--losses", '{"loss": "dual_space"}'], "losses is a list, and each of it a table"),
        (["--loss_options", "mix: 1"], "loss_options='mix: 1' is no JSON: "),
        (["--loss_options", "mix: 1", "--temperature", "2"], "loss_options='mix: 1' is no JSON: "),
        (["--loss_options", "[1]", "--temperature", "2"], r"loss_options='\[1\]' is no table of options"),
        (["--temperature", "hot"], "dual_space: temperature='hot'; it is a number$"),
        (["--matching", "transport"], "dual_space has no option matching"),
    ],
    ids=str,
)
def test_what_the_line_says_wrong_of_losses_is_refused(line: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parsed(tmp_path, {}, *line)


def test_the_help_has_every_option_of_every_loss(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, kind in LOSSES.items():
        assert name in said
        for option in options_of(kind):
            assert f"--{option} " in said, option
        for preset in kind.presets:
            assert preset in said, preset


def test_the_help_of_objective_says_how_losses_call_the_cross_entropy() -> None:
    """And that of losses names all that an entry may be."""
    said = {
        name: one.metadata.get("help", "") for name, one in DistillationConfig.__dataclass_fields__.items()
    }
    assert "cross-entropy is cross_entropy" in said["objective"]
    assert f"loss (one of {', '.join(LOSSES)})" in said["losses"]


# ---- Files and lines -------------------------------------------------------------------------------------


def test_roles_are_the_same_from_the_file_and_the_line(tmp_path: Path) -> None:
    roles = {"<|endoftext|>": ["eos", "bos"]}
    from_file = parsed(tmp_path, {"teacher_roles": roles})[0]
    from_line = parsed(tmp_path, {}, "--teacher_roles", json.dumps(roles))[0]
    assert from_file == from_line
    assert from_file != parsed(tmp_path, {})[0]


@pytest.mark.parametrize("spelled", ["1e-3", "1.0e-3", "0.001", "'1e-3'"])
def test_a_number_may_be_spelled_as_people_do(spelled: str, tmp_path: Path) -> None:
    config = parsed(tmp_path, f"{LINES}learning_rate: {spelled}\nprojector_learning_rate: {spelled}\n")[1]
    assert config.learning_rate == config.projector_learning_rate == 1e-3


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_a_number_inside_a_dict_may_be_too(name: str, tmp_path: Path) -> None:
    options = {**NAMED, "output_dir": "out", "lr_scheduler_kwargs": {"min_lr": 1e-7}}
    config = parsed(tmp_path, json.dumps(options), name=name)[1]
    assert config.lr_scheduler_kwargs == {"min_lr": 1e-7}


@pytest.mark.parametrize(
    ("spelled", "value"), [("true", True), ("false", False), ("yes", True), ("no", False), ("'true'", True)]
)
def test_booleans(spelled: str, value: bool, tmp_path: Path) -> None:
    config = parsed(
        tmp_path,
        f"{LINES}group_by_length: {spelled}\nload_best_model_at_end: false\n".replace(
            "group_by_length", "logging_first_step"
        ),
    )[1]
    assert config.logging_first_step is value


def test_null_is_the_default(tmp_path: Path) -> None:
    script, config = parsed(tmp_path, f"{LINES}gate: null\nlosses: ~\neval_data: ~\nstudent_layers:\n")
    assert (config.losses, script.eval_data, script.student_layers) == (None, None, None)
    assert objective_of(config) == DualSpace()


def test_the_command_line_beats_the_file_wherever_it_stands(tmp_path: Path) -> None:
    options = {
        "alpha": 0.3,
        "learning_rate": 1e-3,
        "student_layers": [0, 1],
        "logging_first_step": True,
        "max_steps": 3,
    }
    line = ["--alpha", "0.9", "--student_layers", "4", "--logging_first_step", "False", "--teacher=other"]
    file = written(tmp_path, {**NAMED, "output_dir": str(tmp_path), **options})
    for arguments in ([*file, *line], [*line, *file], [*line[:2], f"--config={file[1]}", *line[2:]]):
        script, config = parse(arguments)
        assert (config.alpha, script.student_layers, config.logging_first_step) == (0.9, [4], False)
        assert script.teacher == "other"
        assert (config.learning_rate, config.max_steps, script.student) == (1e-3, 3, "S")


def test_without_a_file_the_line_says_all(tmp_path: Path) -> None:
    script, config = parse(on_the_line({**NAMED, "output_dir": tmp_path, "alpha": "0.25"}))
    assert (script.teacher, script.student, config.alpha) == ("T", "S", 0.25)


@pytest.mark.parametrize("name", ["run.yaml", "run.json"])
def test_unknown_keys_of_the_file_are_named(name: str, tmp_path: Path) -> None:
    message = rf"^{tmp_path / name}: there is no option alfa, learning-rates; dskd-train --help lists them$"
    with pytest.raises(ValueError, match=message):
        parsed(tmp_path, {"alfa": 1, "learning-rates": 2}, name=name)


@pytest.mark.parametrize("key", ["config", "help", 1])
def test_keys_that_mean_nothing_in_a_file_are_unknown(key: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"there is no option {key}"):
        parsed(tmp_path, {key: "x"})


@pytest.mark.parametrize("unknown", [["--alfa", "1"], ["--alfa=1"], ["stray"]], ids=str)
def test_an_unknown_option_on_the_line_is_an_error_that_names_it(
    unknown: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ValueError, SystemExit)) as raised:
        parsed(tmp_path, {}, *unknown)
    assert unknown[0] in str(raised.value) + capsys.readouterr().err


@pytest.mark.parametrize("text", ["- alpha\n- 1\n", "just words", "", "7"], ids=repr)
def test_a_file_that_is_no_table_is_an_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/run.yaml is no table of options: NAME: VALUE a line$"
    ):
        parsed(tmp_path, text)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        parse(["--config", str(tmp_path / "nowhere.yaml")])


@pytest.mark.parametrize("name", ["teacher", "student", "train_data"])
def test_what_must_be_named_is_asked_for(name: str, tmp_path: Path) -> None:
    options = {key: value for key, value in NAMED.items() if key != name}
    with pytest.raises(
        ValueError, match=rf"^{name} is not given: --{name}, or a line {name}: in the file of --config$"
    ):
        parse([*written(tmp_path, {**options, "output_dir": str(tmp_path)})])


@pytest.mark.parametrize("name", ["teacher_roles", "student_roles"])
def test_roles_that_are_no_json_are_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{name}=.*<eos>.* is no JSON: "):
        parsed(tmp_path, {}, f"--{name}", "<eos>: eos")


def test_a_value_that_an_option_cannot_have_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ValueError, SystemExit)) as raised:
        parsed(tmp_path, {"max_steps": "many"})
    assert "max_steps" in str(raised.value) + capsys.readouterr().err


TWO = {"teacher": "", "teachers": {"big": "B", "near": "N"}}


def test_several_teachers_have_names_and_roles_by_them(tmp_path: Path) -> None:
    roles = {"near": {"<|endoftext|>": ["eos"]}}
    from_file = parsed(tmp_path, {**TWO, "teacher_roles": roles})[0]
    from_line = parsed(
        tmp_path,
        {"teacher": ""},
        "--teachers",
        json.dumps(TWO["teachers"]),
        "--teacher_roles",
        json.dumps(roles),
    )[0]
    for script in (from_file, from_line):
        assert script.models_of_teachers == {"big": "B", "near": "N"}
        assert script.roles_of_teachers == {"near": {"<|endoftext|>": {"eos"}}}
    alone = parsed(tmp_path, {"teacher_roles": roles["near"]})[0]
    assert alone.models_of_teachers == {"teacher": "T"}
    assert alone.roles_of_teachers == {"teacher": {"<|endoftext|>": {"eos"}}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teachers": {"big": "B"}}, "teacher and teachers are both given: leave one out"),
        ({**TWO, "teachers": {"big": "B", "near": ""}}, "teacher is not given"),
        ({**TWO, "teachers": ["B"]}, "teachers='B' is no JSON"),
        ({**TWO, "teacher_roles": {"large": {}}}, "teacher_roles of large, which is none of teachers"),
    ],
    ids=str,
)
def test_teachers_that_are_said_wrong_are_refused(
    given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parsed(tmp_path, given)


# ---- Runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models with their tokenizers, a tokenizer alone, and rows."""
    root = tmp_path_factory.mktemp("models")
    for name, tokenizer, hidden, layers in (
        ("teacher", tiny.teacher_tokenizer(), 24, 2),
        ("other", tiny.other_tokenizer(), 20, 2),
        ("student", tiny.student_tokenizer(), 16, 2),
        ("large", tiny.teacher_tokenizer(), 16, 4),
    ):
        model = tiny.llama(
            len(tokenizer), hidden, num_hidden_layers=layers, eos_token_id=tokenizer.eos_token_id
        )
        model.float().save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    tiny.student_tokenizer().save_pretrained(root / "tokenizer")
    for name, rows in (("train", ROWS), ("eval", ROWS[:3])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {
        name: root / name
        for name in ("teacher", "other", "student", "large", "tokenizer", "train.jsonl", "eval.jsonl")
    }


def run_options(folders: dict[str, Path], output: Path, **given: Any) -> dict[str, Any]:
    return {
        "teacher": str(folders["teacher"]),
        "student": str(folders["student"]),
        "train_data": str(folders["train.jsonl"]),
        "output_dir": str(output),
        "use_cpu": True,
        "report_to": "none",
        "max_steps": 4,
        "logging_steps": 1,
        "save_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": "1e-2",
        "dataloader_pin_memory": False,
        **given,
    }


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_whole_run_leaves_a_student_its_metrics_and_a_curve(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Cut to two layers of four, given another tokenizer, distilled, evaluated, saved."""
    output = tmp_path / "run"
    options = run_options(
        folders,
        output,
        student=str(folders["large"]),
        student_layers=[0, 3],
        student_tokenizer=str(folders["tokenizer"]),
        eval_data=str(folders["eval.jsonl"]),
        eval_strategy="steps",
        eval_steps=2,
    )
    command = [sys.executable, "-m", "dskd", "train", *written(tmp_path, options), "--max_steps", "3"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(tmp_path))
    assert found.returncode == 0, found.stderr[-3000:]
    said = found.stdout.splitlines()[-3:]
    assert [line.split(maxsplit=1) for line in said] == [
        ["student", str(output)],
        ["metrics", str(output / "metrics.jsonl")],
        ["curve", str(output / "loss.png")],
    ]

    logged = [line for line in lines_of(output / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in logged] == [1, 2, 3]
    for line in logged:
        terms = line["t2s_kd"] + 0.25 * line["s2t_kd"]
        assert line["loss"] == pytest.approx(0.5 * line["cross_entropy"] + 0.5 * terms, rel=1e-4)
        assert 0 < line["ratio"] < 1
        assert (line["coverage_teacher"], line["coverage_student"]) == (1, 1)
    evaluated = [line for line in lines_of(output / "metrics.jsonl") if "eval_bits_per_byte" in line]
    assert sorted({line["step"] for line in evaluated}) == [2, 3]
    assert all(0 < line["eval_bits_per_byte"] < 10 for line in evaluated)

    picture = (output / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 5000
    projectors = load_file(output / "projectors.safetensors")
    assert {name: tuple(one.shape) for name, one in projectors.items()} == {
        "teacher_to_student": (24, 16),
        "student_to_teacher": (16, 24),
    }

    student, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    assert student.config.num_hidden_layers == 2
    assert student.config.vocab_size == len(tiny.student_tokenizer())
    assert tokenizer("Hello Paris")["input_ids"] == tiny.student_tokenizer()("Hello Paris")["input_ids"]
    ids = torch.tensor([tokenizer("Hello Paris")["input_ids"]])
    assert student(ids).logits.isfinite().all()


def test_a_run_goes_on_where_it_was_stopped_and_the_metrics_with_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Once through, and once to the second of four steps and on."""
    for name, line in (("whole", []), ("halves", ["--max_steps", "2"])):
        main([*written(tmp_path, run_options(folders, tmp_path / name, lr_scheduler_type="constant")), *line])
    goes_on = ["--resume_from_checkpoint", str(tmp_path / "halves" / "checkpoint-2")]
    main(
        [
            *written(tmp_path, run_options(folders, tmp_path / "halves", lr_scheduler_type="constant")),
            *goes_on,
        ]
    )
    losses = [
        [
            (line["step"], line["loss"])
            for line in lines_of(tmp_path / name / "metrics.jsonl")
            if "loss" in line
        ]
        for name in ("whole", "halves")
    ]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halves")]
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())


def test_a_run_of_two_teachers_logs_each_by_its_name_and_goes_on_where_it_was_stopped(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    losses = [
        {"loss": "cross_entropy", "weight": 0.5},
        {"loss": "dual_space", "weight": 0.3, "teacher": "big"},
        {"loss": "dual_space", "weight": 0.2, "teacher": "other", "preset": "dskd_v2"},
        {"loss": "shared_vocabulary", "weight": 0.1, "teacher": "other"},
    ]
    output = tmp_path / "run"
    teachers = {"big": str(folders["teacher"]), "other": str(folders["other"])}
    options = run_options(folders, output, teachers=teachers, losses=losses, lr_scheduler_type="constant")
    del options["teacher"]
    main([*written(tmp_path, options), "--max_steps", "2"])
    main([*written(tmp_path, options), "--resume_from_checkpoint", str(output / "checkpoint-2")])
    logged = [line for line in lines_of(output / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in logged] == [1, 2, 3, 4]
    for line in logged:
        assert {"big/t2s_kd", "big/s2t_kd", "other/t2s_ce", "other/shared_kd"} <= line.keys()
        assert line["big/pairs"] != line["other/pairs"]
        assert all(0 <= line[f"{name}/ratio"] < 1 for name in teachers)
        assert not {"t2s_kd", "pairs", "ratio"} & line.keys()
    assert all(any(line[f"{name}/ratio"] for line in logged) for name in teachers)
    saved = load_file(output / "projectors.safetensors")
    assert {name: tuple(one.shape) for name, one in saved.items()} == {
        "1.teacher_to_student": (24, 16),
        "1.student_to_teacher": (16, 24),
        "2.teacher_to_student": (20, 16),
        "2.student_to_teacher": (16, 20),
    }
    with safe_open(output / "projectors.safetensors", "pt") as file:
        about = file.metadata()
    assert [part.partition("=")[0] for part in about["teacher_vocabulary"].split()] == ["big", "other"]


def test_a_teacher_that_losses_name_and_that_is_not_there_is_one_line(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    losses = [{"loss": "dual_space", "teacher": "big"}]
    said = error_of(written(tmp_path, run_options(folders, tmp_path / "run", losses=losses)))
    assert said.startswith(
        "DualSpace listens to the teacher 'big', and there is 'teacher': name one of these"
    )


@pytest.mark.parametrize("objective", ["shared_vocabulary", "sft"])
def test_without_dual_space_a_run_leaves_no_projectors(
    objective: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    main(written(tmp_path, run_options(folders, tmp_path / "run", objective=objective, max_steps=1)))
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "metrics.jsonl", "loss.png", "config.json", "tokenizer.json"} <= left
    assert "projectors.safetensors" not in left


def error_of(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert isinstance(raised.value.code, str)
    assert raised.value.code.startswith("dskd-train: ")
    assert "\n" not in raised.value.code
    return raised.value.code.removeprefix("dskd-train: ")


def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_is(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    output.mkdir()
    (output / "notes.txt").write_text("mine", encoding="utf-8")
    said = error_of(written(tmp_path, run_options(folders, output)))
    assert said.startswith(f"{output} is not empty; give another --output_dir, remove it, or ")
    assert [(path.name, path.read_text(encoding="utf-8")) for path in output.iterdir()] == [
        ("notes.txt", "mine")
    ]


@pytest.mark.parametrize("name", ["teacher", "student", "student_tokenizer", "train_data", "eval_data"])
def test_what_is_not_there_is_one_line_that_names_it(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    missing = str(tmp_path / ("nowhere.jsonl" if name.endswith("data") else "nowhere"))
    with pytest.raises(SystemExit) as raised:
        main(written(tmp_path, run_options(folders, tmp_path / "run", **{name: missing})))
    assert str(raised.value.code).startswith("dskd-train: ")
    assert missing in str(raised.value.code)
    assert not (tmp_path / "run").exists()


def test_a_malformed_row_is_one_line_that_names_it(folders: dict[str, Path], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": ""}\n', encoding="utf-8")
    options = run_options(folders, tmp_path / "run", train_data=str(rows))
    assert error_of(written(tmp_path, options)).startswith(f"{rows}, line 1: the completion is empty")


def test_the_installed_command_says_errors_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (installed,) = entry_points(group="console_scripts", name="dskd-train")
    monkeypatch.setattr(sys, "argv", ["dskd-train", "--output_dir", str(tmp_path / "run")])
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # how this process ends is not its affair
    with pytest.raises(SystemExit) as raised:
        installed.load()()
    assert raised.value.code == (
        "dskd-train: teacher is not given: --teacher, or a line teacher: in the file of --config"
    )
    assert not (tmp_path / "run").exists()
