"""What dual-space distillation gains, option by option, on the demo's models; and why.

    python benches/study.py            # trains, prints, writes results/study.json and study.md's tables
    python benches/study.py --table    # the same tables, from the results that are there
    python benches/study.py --quick    # a few steps of some arms: whether it works

A run that was cut goes on where it was: what results/study.json has of this plan is kept until it is whole.

Every arm trains the same student from the same start on the same batches, with the teacher's hidden states
at hand: SFT, distillation on the shared vocabulary, dual space as published, and its repairs one at a time
and together. Every few steps, on held-out rows: bits per byte; and what explains them, of the projected
teacher z_ts at the pairs: how far it is from the teacher on the shared vocabulary O, that is
`KL(p_t on O, z_ts on O)`, its mass outside O, and its entropy. Each start and seed is a process on one
thread, as many at a time as there are cores. What a step takes is measured behind that, one arm after the
other, with nothing beside it.

Two starts: `cut`, nine of the teacher's layers with its embeddings carried over, whose projectors begin near
the identity; and `narrow`, with random weights and another width, whose projectors do not.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import math
import os
import queue
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import assets
import distill
from dskd import Aligner, Vocabulary
from dskd.nn import (
    CrossEntropy,
    DualSpace,
    Objective,
    Projectors,
    Reduction,
    SharedVocabulary,
    TeacherModel,
    VocabularyMaps,
    Weighted,
    divergence,
)
from dskd.train import DistillationCollator, Side, TeacherSide, held_out
from dskd.train.model import DistillationModel, head_of, hidden_states
from report import Report, machine, positive, revision, said_of, table

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    from dskd.nn import Loss, Teacher
    from dskd.train import Collated

Wanted: TypeAlias = "Mapping[tuple[str, int], Sequence[str]]"
"""Arms of starts and seeds."""

Step: TypeAlias = "tuple[Collated, Mapping[str, Teacher]]"
"""A batch, and what the teacher says there."""

STARTS = ("cut", "narrow")
REFRESH_EVERY = 5
"""Steps between two solutions of a solved projector; the published way solves at every step."""

SHARED = "shared vocabulary"
CENTRED = {"centre": True}
SOLVED = {"teacher_to_student": "solved", **CENTRED}


def _repaired(**options: Any) -> DualSpace:
    """As published, without the gate, but for these."""
    published = DualSpace(**DualSpace.presets["dskd_ungated"])
    return replace(published, **{"refresh_every": REFRESH_EVERY, **options})


ARMS: dict[str, Loss | None] = {
    "SFT": None,
    SHARED: SharedVocabulary(),
    "dual space, as published (v2)": DualSpace(**DualSpace.presets["dskd_v2"]),
    "no gate": _repaired(),
    "overlap": _repaired(columns="overlap"),
    "distribution": _repaired(t2s_target="distribution"),
    "solved": _repaired(**SOLVED),
    "overlap + distribution": _repaired(columns="overlap", t2s_target="distribution"),
    "overlap + solved": _repaired(**SOLVED, columns="overlap"),
    "overlap + solved, s2t / 4": _repaired(**SOLVED, columns="overlap", s2t_weight=0.25),
    "overlap + exact": _repaired(**CENTRED, columns="overlap", target="exact"),
    "overlap + exact, s2t / 4": _repaired(**CENTRED, columns="overlap", target="exact", s2t_weight=0.25),
}
"""What is trained by, beside cross-entropy."""
OF_NARROW = (
    "SFT",
    SHARED,
    "dual space, as published (v2)",
    "overlap + distribution",
    "overlap + solved",
    "overlap + exact, s2t / 4",
)
SMOKE = ("SFT", SHARED, "overlap + distribution", "overlap + solved", "overlap + exact")


@dataclass(frozen=True)
class Plan:
    """How long, and on how much; a length is in tokens of a side."""

    steps: int = 100
    batch: int = 4
    every: int = 25
    held_out: int = 96
    diagnosed: int = 16
    timed: int = 15
    prompt_length: int = 64
    learning_rate: float = 1e-3
    projector_learning_rate: float = 5e-4
    warmup: int = 10


SMALL = Plan(steps=4, batch=2, every=2, held_out=4, diagnosed=2, timed=6, warmup=1)


# ---- One seed --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What all arms of a seed share; all students have one tokenizer."""

    teacher: TeacherModel
    collator: DistillationCollator
    batches: Sequence[Step]
    diagnosed: Sequence[Step]
    held_out: Sequence[Mapping[str, Any]]


def setting(tokenizer: Path, seed: int, plan: Plan) -> Setting:
    """The teacher, the batches in their order, and the teacher's states at their pairs."""
    folder = assets.model("smollm2")
    teacher: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    teacher.requires_grad_(False).eval()
    of_teacher = _side(folder, teacher.config.vocab_size, plan, distill.ROLES)
    of_student = _side(tokenizer, None, plan, None)
    aligner = Aligner(of_teacher.vocabulary, of_student.vocabulary)
    collator = DistillationCollator(of_student, {"teacher": TeacherSide(of_teacher, aligner)})
    mapped = aligner.vocabulary_map
    maps = VocabularyMaps(
        to_student=torch.tensor(mapped.teacher_to_student), overlap=torch.tensor(mapped.overlap)
    )
    spoken = TeacherModel(head_of(teacher, of_teacher.vocabulary), maps)
    said = functools.partial(_with_teacher, collator=collator, teacher=teacher, spoken=spoken)
    rows = [distill.row_of(row) for row in assets.prompt_rows("train", plan.steps * plan.batch)]
    test = [distill.row_of(row) for row in assets.prompt_rows("held_out", plan.held_out + plan.diagnosed)]
    diagnosed = test[plan.held_out :]
    return Setting(
        spoken,
        collator,
        list(said(_batches(rows, plan.batch, seed))),
        list(said(_batches(diagnosed, plan.batch, seed))),
        test[: plan.held_out],
    )


def _side(folder: Path, size: int | None, plan: Plan, roles: Mapping[str, set[str]] | None) -> Side:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary = Vocabulary.from_tokenizer(tokenizer, size=size, roles=roles)
    return Side(tokenizer, vocabulary, max_prompt_length=plan.prompt_length)


def _batches(rows: Sequence[Mapping[str, Any]], size: int, seed: int) -> list[list[Mapping[str, Any]]]:
    """In the order of the seed, rows of about one length together: less of a batch is padding."""
    order, pool = random.Random(seed), 10 * size  # noqa: S311 - the same for every arm is the point
    rows = order.sample(rows, len(rows))
    made = []
    for first in range(0, len(rows), pool):
        alike = sorted(rows[first : first + pool], key=lambda row: len(row["completion"]))
        made += [alike[start : start + size] for start in range(0, len(alike), size)]
    order.shuffle(made)
    return made


@torch.no_grad()
def _with_teacher(
    batches: Sequence[Sequence[Mapping[str, Any]]],
    collator: DistillationCollator,
    teacher: Any,
    spoken: TeacherModel,
) -> Iterator[Step]:
    for rows in batches:
        batch = collator(rows)
        tokens = batch.teachers["teacher"]
        states = hidden_states(teacher, tokens.input_ids, tokens.attention_mask)
        yield batch, {"teacher": batch.places.of_teacher("teacher", states, spoken)}


def model_of(arm: str, start: Path, shared: Setting) -> DistillationModel:
    """The student at its start, and the loss of the arm."""
    student: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    head, loss = head_of(student, shared.collator.student.vocabulary), ARMS[arm]
    losses = [CrossEntropy()] if loss is None else [Weighted(CrossEntropy(), 0.5), Weighted(loss, 0.5)]
    return DistillationModel(student, head, Objective(losses, head, shared.teacher))


def train(arm: str, start: Path, shared: Setting, plan: Plan) -> list[dict[str, float]]:
    """One arm: its curve."""
    model = model_of(arm, start, shared)
    curve = [_measured(0, model, shared)]
    for step, _ in enumerate(_steps(arm, model, shared, plan), 1):
        if step % plan.every == 0:
            curve.append(_measured(step, model, shared))
    return curve


def _steps(arm: str, model: DistillationModel, shared: Setting, plan: Plan) -> Iterator[float]:
    """Trains; the seconds of each step, with those of projectors that were solved again."""
    optimizer = _optimizer(model, plan)
    for step, (batch, teachers) in enumerate(shared.batches):
        begun = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * min((step + 1) / plan.warmup, 1)
        parts = model(batch, teachers, Reduction(batch.places.counts()), step=step)
        if not torch.isfinite(parts.loss):
            raise FloatingPointError(f"{arm}: the loss of step {step} is not finite")
        parts.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield time.perf_counter() - begun


def _optimizer(model: DistillationModel, plan: Plan) -> torch.optim.Optimizer:
    projectors = list(model.objective.parameters())
    own = {id(parameter) for parameter in projectors}
    others = [one for one in model.parameters() if one.requires_grad and id(one) not in own]
    groups: list[dict[str, Any]] = [{"params": others, "full": plan.learning_rate}]
    if projectors:
        groups.append({"params": projectors, "full": plan.projector_learning_rate})
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def _measured(step: int, model: DistillationModel, shared: Setting) -> dict[str, float]:
    found = held_out(model.student, shared.collator.student, shared.held_out)
    said = {"step": step, "bits_per_byte": found.bits_per_byte, "end_of_turn_bits": found.end_of_turn_bits}
    projectors = _projectors(model)
    return said | ({} if projectors is None else diagnosis(model, projectors, shared))


def _projectors(model: DistillationModel) -> Projectors | None:
    """Those of dual space."""
    return next((one for one in model.objective.built.values() if isinstance(one, Projectors)), None)


@torch.no_grad()
def diagnosis(model: DistillationModel, projectors: Projectors, shared: Setting) -> dict[str, float]:
    """Of z_ts at held-out pairs: its distance from the teacher on O, its mass outside, its entropy; nats."""
    of_teacher, of_student = shared.teacher.maps.shared()
    head = head_of(model.student, shared.collator.student.vocabulary)
    sums = torch.zeros(3, dtype=torch.float64)
    pairs = 0
    for _, teachers in shared.diagnosed:
        teacher_hidden = teachers["teacher"].read.states
        logits = head.reachable(head.logits(projectors.to_student(teacher_hidden)))
        teacher = shared.teacher.head.logits(teacher_hidden)
        distance = divergence("kl", logits[:, of_student], teacher[:, of_teacher])
        log_p = logits.log_softmax(-1)
        outside = 1 - log_p[:, of_student].exp().sum(-1)
        entropy = -(log_p.exp() * log_p).sum(-1)
        sums += torch.stack([distance.sum(), outside.sum(), entropy.sum()]).double()
        pairs += len(teacher_hidden)
    return dict(zip(("distance", "outside", "entropy"), (sums / pairs).tolist(), strict=True))


def run_one(start: str, folder: Path, seed: int, plan: Plan, arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The arms of a start and a seed, one after the other."""
    shared = setting(folder, seed, plan)
    of = {"start": start, "seed": seed, "revision": revision()}
    for arm in arms:
        yield {**of, "arm": arm, "curve": train(arm, folder, shared, plan)}


def time_all(start: str, folder: Path, plan: Plan, arms: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Seconds a step of the arms of a start, the mean of some steps, solutions of projectors among them."""
    shared = setting(folder, 0, replace(plan, steps=plan.timed))
    for arm in arms:
        seconds = list(_steps(arm, model_of(arm, folder, shared), shared, plan))
        yield {"start": start, "arm": arm, "seconds": _mean(seconds[REFRESH_EVERY:])}


# ---- All of them -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runs:
    """Processes of this file, with an allocator that keeps its memory, for starts that were made."""

    folders: Mapping[str, Path]
    quick: bool

    def lines(
        self, what: str, start: str, seed: int, arms: Sequence[str], **more: str
    ) -> Generator[dict[str, Any]]:
        """What a process finds out, as it comes."""
        command = [sys.executable, __file__, "--one", what, start, str(self.folders[start]), str(seed)]
        command += [*arms, *(["--quick"] if self.quick else [])]
        environment = {**os.environ, **distill.KEEP_MEMORY, **more}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                yield from map(json.loads, process.stdout or ())
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise SystemExit(f"{start}, seed {seed}: the process ended with {process.returncode}")

    def together(self, wanted: Wanted) -> Iterator[dict[str, Any]]:
        """Lines of these starts and seeds, a process on one thread for each, as many at a time as cores."""
        found: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        ended = threading.Event()

        def run(start: str, seed: int) -> None:
            if ended.is_set():
                return
            with contextlib.closing(
                self.lines("train", start, seed, wanted[start, seed], OMP_NUM_THREADS="1")
            ) as lines:
                for line in lines:
                    found.put(line)
                    if ended.is_set():
                        return

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            running = [pool.submit(run, *each) for each in wanted]
            try:
                while not all(one.done() for one in running) or not found.empty():
                    with contextlib.suppress(queue.Empty):
                        yield found.get(timeout=1)
            finally:
                ended.set()
        for one in running:
            one.result()


def at_equal_time(curve: Sequence[Mapping[str, float]], slower: float) -> float:
    """Bits a byte when SFT was done, on the line between two measurements.

    Args:
        curve: of an arm.
        slower: how many times as long as one of SFT its steps take.
    """
    step = curve[-1]["step"] / slower
    for before, after in itertools.pairwise(curve):
        if step <= after["step"]:
            share = (step - before["step"]) / (after["step"] - before["step"])
            return before["bits_per_byte"] + share * (after["bits_per_byte"] - before["bits_per_byte"])
    return curve[-1]["bits_per_byte"]


def tables(results: Mapping[str, Any]) -> str:
    """What was measured as Markdown."""
    made = []
    for start in STARTS:
        if of_start := [line for line in results["lines"] if line["start"] == start]:
            made += [f"### From `{start}`", _results_table(of_start, results["seconds"].get(start, {}))]
            made += [_diagnosis_table(of_start)]
    revisions = ", ".join(dict.fromkeys(line["revision"] for line in results["lines"]))
    return "\n\n".join([*filter(None, made), f"{said_of({**results['machine'], 'revision': revisions})}."])


def _of_arms(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    return {arm: found for arm in ARMS if (found := [line for line in lines if line["arm"] == arm])}


def _results_table(lines: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> str:
    by_arm = _of_arms(lines)
    sft, shared = ({line["seed"]: _last(line) for line in by_arm.get(arm, ())} for arm in ("SFT", SHARED))
    steps, seeds = lines[0]["curve"][-1]["step"], len(sft)
    head = [f"mean of {seeds} (lowest to highest)", f"bits a byte, {steps} steps", "at SFT's time"]
    head += ["against SFT", "against the shared vocabulary", "end of turn, bits", "a step, of SFT's"]
    body = []
    for arm, found in by_arm.items():
        name = arm if len(found) == seeds else f"{arm} ({len(found)} of them)"
        bits = [_last(line) for line in found]
        beyond_sft, beyond_shared = (
            [_last(line) - other[line["seed"]] for line in found if line["seed"] in other]
            for other in (sft, shared)
        )
        ends = [line["curve"][-1]["end_of_turn_bits"] for line in found]
        timed = slower = ""
        if arm in seconds:
            ratio = seconds[arm] / seconds["SFT"]
            slower = f"{ratio:.2f}"
            timed = f"{_mean([at_equal_time(line['curve'], ratio) for line in found]):.3f}"
        cells = [name, _spread(bits, "{:.3f}"), timed]
        cells += [f"{_mean(beyond_sft):+.3f}", _spread(beyond_shared, "{:+.3f}") if beyond_shared else ""]
        body.append([*cells, f"{_mean(ends):.2f}", slower])
    return table(head, body, names=1)


def _diagnosis_table(lines: Sequence[Mapping[str, Any]]) -> str:
    by_arm = {arm: found for arm, found in _of_arms(lines).items() if "distance" in found[0]["curve"][0]}
    if not by_arm:
        return ""
    steps = [one["step"] for one in next(iter(by_arm.values()))[0]["curve"]]
    shown = [0, steps[len(steps) // 2], steps[-1]]
    head = [f"{what}, step {step}" for what in ("distance", "outside O", "entropy") for step in shown]
    body = []
    for arm, found in by_arm.items():
        cells = [arm]
        for name, form in (("distance", "{:.3f}"), ("outside", "{:.1%}"), ("entropy", "{:.2f}")):
            for step in shown:
                values = [one[name] for line in found for one in line["curve"] if one["step"] == step]
                cells.append(form.format(_mean(values)))
        body.append(cells)
    return table(["z_ts", *head], body, names=1)


def _last(line: Mapping[str, Any]) -> float:
    bits: float = line["curve"][-1]["bits_per_byte"]
    return bits


def _spread(numbers: Sequence[float], form: str) -> str:
    mean, low, high = map(form.format, (_mean(numbers), min(numbers), max(numbers)))
    return f"{mean} ({low} to {high})"


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers)


REPORT = Report("study", "What dual-space distillation gains, and why.", tables, "study.md")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that is missing in the file of results; all that is wanted, where nothing is.

    What is done stands in the file from the first line on.
    """
    plan = SMALL if options.quick else Plan()
    wanted = {
        (start, seed): arms_of(start, quick=options.quick)
        for start in options.starts
        for seed in range(1 if options.quick else options.seeds)
    }
    results = goes_on_with(options, plan, wanted)
    runs = Runs(make_starts(options.starts, quick=options.quick), options.quick)
    for line in runs.together(_missing(results, wanted)):
        bits = line["curve"][-1]["bits_per_byte"]
        print(f"{line['start']}, seed {line['seed']}, {line['arm']}: {bits:.3f} bits a byte", flush=True)
        results["lines"].append(line)
        REPORT.write(options, results)
    for start in _untimed(results, wanted):
        found = runs.lines("time", start, 0, arms_of(start, quick=options.quick))
        results["seconds"][start] = {line["arm"]: line["seconds"] for line in found}
        REPORT.write(options, results)
    return results


def arms_of(start: str, *, quick: bool) -> Sequence[str]:
    """The names of those that a start is trained with."""
    return SMOKE if quick else OF_NARROW if start == "narrow" else tuple(ARMS)


def make_starts(starts: Sequence[str], *, quick: bool) -> dict[str, Path]:
    """Their folders."""
    teacher, tokenizer = assets.model("smollm2"), assets.tokenizer("mistral-v1")
    assets.prompt_rows("train", 1)  # fetched here, not by every process at once
    folder = Path("demo") / ("study-quick" if quick else "study")
    return {start: distill.make_start(start, teacher, tokenizer, folder / start) for start in starts}


def _missing(results: Mapping[str, Any], wanted: Wanted) -> Wanted:
    """The arms without a line."""
    done = {(line["start"], line["seed"], line["arm"]) for line in results["lines"]}
    left = {each: [arm for arm in arms if (*each, arm) not in done] for each, arms in wanted.items()}
    return {each: arms for each, arms in left.items() if arms}


def _untimed(results: Mapping[str, Any], wanted: Wanted) -> list[str]:
    """The starts of which not every arm has its seconds."""
    seconds = results["seconds"]
    return list(
        dict.fromkeys(start for (start, _), arms in wanted.items() if set(arms) - set(seconds.get(start, ())))
    )


def goes_on_with(options: argparse.Namespace, plan: Plan, wanted: Wanted) -> dict[str, Any]:
    """What is there, if it is of this plan; without what is wanted, if all of that is there."""
    anew = {"machine": machine("torch", "transformers"), "plan": asdict(plan), "seconds": {}, "lines": []}
    try:
        there = REPORT.read(options)
    except FileNotFoundError:
        return anew
    if there["plan"] != anew["plan"]:
        return anew
    if not _missing(there, wanted) and not _untimed(there, wanted):
        starts = {start for start, _ in wanted}
        there["lines"] = [line for line in there["lines"] if (line["start"], line["seed"]) not in wanted]
        there["seconds"] = {start: one for start, one in there["seconds"].items() if start not in starts}
    print(f"goes on with {len(there['lines'])} lines that are there", flush=True)
    return there


def main() -> None:
    """Runs it, prints the tables, writes them."""
    parser = REPORT.parser(quick="a few steps of some arms: whether it works")
    parser.add_argument("--seeds", type=positive, default=3, help="of the order of the rows; 3")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=STARTS, help="both")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.one:
        REPORT.run(options, lambda: measure(options))
        return
    plan = SMALL if options.quick else Plan()
    what, start, folder, seed, *arms = options.one
    if what == "time":
        found = time_all(start, Path(folder), plan, arms)
    else:
        found = run_one(start, Path(folder), int(seed), plan, arms)
    for line in found:
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
