"""The losses on a GPU: whether they are their definitions, and how near they come to the card's own products.

    python benches/gpu.py --test           # prints what was compared; leaves with 1 where something is off
    python benches/gpu.py --bench          # measures, prints a table, writes results/gpu.json
    python benches/gpu.py --test --bench   # both; meant for under 8 minutes on one H200
    python benches/gpu.py --quick          # both, tiny, on the CPU: whether it works

Without a GPU the first three say so and write nothing. **It ran on no GPU yet.**

Tested are all losses of `LOSSES` that need no more than pairs, with their presets: fused, in float32 and
bfloat16, against the definition in float64, within what rounding may do (tests/rounding.py), or in float64
where the order of logits decides what is compared; the kernels
(tests/each_kernel.py), compiled; and rows behind 2^31 numbers, where there is memory for them.

Measured are seconds and peak memory of forward and backward. *Of the card's rate* is what the products of the
definition come to in a second, beside the rate of torch.mm on the same head, forward and backward. Peers are
the installed packages liger-kernel and trl on one vocabulary, left out where they are not.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the bounds
from dskd.nn import (
    LOSSES,
    Batch,
    CrossEntropy,
    DualSpace,
    Head,
    Objective,
    SharedVocabulary,
    States,
    Teacher,
    TeacherModel,
    VocabularyMaps,
    divergence,
    kernels,
    loss_of,
)
from dskd.nn.divergences import gradient_by_logits
from report import HERE, machine, said_of, table
from rounding import assert_loses_no_more, divergence_bounds, losses_by_rounding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from dskd.nn import Loss
    from dskd.nn.divergences import Divergence

RESULTS = HERE / "results" / "gpu.json"
TESTS = HERE.parent / "tests"
FLOAT64, FLOAT32, BFLOAT16 = torch.float64, torch.float32, torch.bfloat16
NAMES: Sequence[Divergence] = ("kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "tvd")


# ---- Models and batches ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shape:
    """Of two models and a batch.

    Attributes:
        name: what such models are.
        d: the student's hidden size.
        teacher_d: the teacher's.
        size: of the student's vocabulary.
        teacher_size: of the teacher's.
        n: supervised positions, each of which is a pair.
    """

    name: str
    d: int
    teacher_d: int
    size: int
    teacher_size: int
    n: int

    @property
    def shared(self) -> int:
        """Tokens in common, the first of both: all of one vocabulary, else three quarters of the smaller."""
        smaller = min(self.size, self.teacher_size)
        return smaller if self.size == self.teacher_size else smaller * 3 // 4

    def of_one_vocabulary(self) -> Shape:
        """The same models, the teacher's vocabulary the student's."""
        return replace(self, teacher_size=self.size)

    def with_rows(self, n: int) -> Shape:
        """The same models, with so many positions."""
        return replace(self, n=n)


SMALL = Shape("0.1B from 0.5B", 576, 896, 49_152, 151_936, 8192)
MIDDLE = Shape("1.5B from 7B", 1536, 3584, 151_936, 151_936, 8192)
LARGE = Shape("1B from 8B", 2048, 4096, 128_256, 128_256, 8192)
TESTED = Shape("tested", 48, 64, 400, 500, 40)
TINY = Shape("tiny", 16, 24, 90, 110, 24)
TINY_SAME = replace(TINY.of_one_vocabulary(), name="tiny, one vocabulary")


@dataclass(frozen=True, slots=True)
class Case:
    """Two models and a batch in one dtype, and what gets gradients."""

    batch: Batch
    teacher: TeacherModel
    leaves: Mapping[str, Tensor]

    @classmethod
    def of(cls, shape: Shape, device: str, dtype: torch.dtype, given: torch.dtype | None = None) -> Case:
        """Random models whose states speak for their labels, so that a prediction hangs on no rounding.

        Args:
            shape: of them.
            device: where they are.
            dtype: in which they are.
            given: in which their numbers are whole; None: the same.
        """
        generator = torch.Generator(device).manual_seed(0)

        def drawn(*size: int) -> Tensor:
            made = torch.randn(*size, generator=generator, device=device)
            return made.mul_(2 * size[-1] ** -0.5).to(given or dtype).to(dtype)

        def states(weight: Tensor, labels: Tensor) -> Tensor:
            rows = weight[labels].float() * 3 + torch.randn(
                len(labels), weight.shape[1], generator=generator, device=device
            )
            return rows.to(given or dtype).to(dtype)

        labels = torch.randint(shape.shared, (shape.n,), generator=generator, device=device)
        weight, teacher_weight = drawn(shape.size, shape.d), drawn(shape.teacher_size, shape.teacher_d)
        hidden = states(weight, labels).requires_grad_()
        ids = torch.arange(shape.shared, device=device)
        to_student = torch.full((shape.teacher_size,), -1, device=device)
        to_student[ids] = ids
        is_same = shape.size == shape.teacher_size
        maps = VocabularyMaps(to_student=to_student, overlap=torch.stack([ids, ids], 1), is_same=is_same)
        model = TeacherModel(Head(teacher_weight), maps)
        teacher = Teacher(model, states(teacher_weight, labels), torch.arange(shape.n, device=device))
        student = States(hidden, labels, Head(weight.requires_grad_()))
        return cls(Batch(student, {"teacher": teacher}), model, {"hidden": hidden, "weight": weight})

    @property
    def teacher_hidden(self) -> Tensor:
        """`[n, D]`."""
        return self.batch.teachers["teacher"].read.states

    def objective(self, *losses: Loss) -> Objective:
        """Of these losses."""
        return Objective(losses, self.batch.student.head, self.teacher)


# ---- Tests -----------------------------------------------------------------------------------------------


def losses_over_pairs() -> Iterator[tuple[str, Loss]]:
    """All that need no more than pairs, as they are and by their presets."""
    for name, kind in LOSSES.items():
        if not (kind().needs.chunks or kind().needs.positions):
            yield name, kind()
            yield from ((f"{name}, {preset}", kind(**options)) for preset, options in kind.presets.items())


OF_ONE_VOCABULARY = ("logits",)
"""Losses that compare the same ids of both."""

SORTING = ("uld",)
"""Losses that sort probabilities."""

ALIKE = 0.01
"""Relative: what the losses of contestants may be apart."""

EQUAL = 1e-10
"""Relative: what fused and whole may be apart in float64."""


def hangs_on_order(kind: str, loss: Loss) -> bool:
    """Whether what is compared hangs on which logit is larger, and so on a rounding."""
    chosen = any(getattr(loss, option, None) is not None for option in ("gate", "top_k"))
    return chosen or kind in SORTING


def check_contract(shape: Shape, device: str) -> Iterator[tuple[str, str | None]]:
    """Each loss in each dtype, and what is off, if it is: fused, in one chunk and in several."""
    for name, loss in losses_over_pairs():
        kind = name.partition(",")[0]
        models = shape.of_one_vocabulary() if kind in OF_ONE_VOCABULARY else shape
        for dtype in (FLOAT64,) if hangs_on_order(kind, loss) else (FLOAT32, BFLOAT16):
            for way, off in compared(loss, models, device, dtype):
                yield f"{name}, {str(dtype)[6:]}, {way}", off


def compared(loss: Loss, shape: Shape, device: str, dtype: torch.dtype) -> Iterator[tuple[str, str | None]]:
    """Fused against the definition in float64, of numbers that this dtype has."""
    low, wide = Case.of(shape, device, dtype), Case.of(shape, device, FLOAT64, given=dtype)
    objective = low.objective(loss)
    if dtype == FLOAT64:
        objective = objective.double()
    exact = computed(copy.deepcopy(objective).double(), wide, fused=False)
    if dtype == FLOAT64:
        allowed = {name: EQUAL * float(one.norm()) for name, one in exact.items()}
    else:
        allowed = losses_by_rounding(lambda: computed(objective, low, fused=False), exact)
    for way, memory in (("one chunk", None), ("chunks", 1)):
        objective.chunk_memory = memory
        yield way, is_off(computed(objective, low, fused=True), exact, allowed)


def computed(objective: Objective, case: Case, *, fused: bool) -> Mapping[str, Tensor]:
    """The loss, and its gradient by everything that has one."""
    objective.fused = fused
    leaves = {**case.leaves, **{name: one for name, one in objective.named_parameters() if one.requires_grad}}
    # Projectors stay what they were: none is solved again in a step that is no multiple of the fifth.
    loss = objective(case.batch, step=1).loss
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    by_name = zip(leaves, found, strict=True)
    return {"loss": loss.detach(), **{name: one for name, one in by_name if one is not None}}


def is_off(
    found: Mapping[str, Tensor], exact: Mapping[str, Tensor], allowed: Mapping[str, float]
) -> str | None:
    """What is, or None."""
    try:
        assert_loses_no_more(found, exact, allowed)
    except AssertionError as error:
        return str(error)
    return None


def check_kernels() -> Iterator[tuple[str, str | None]]:
    """tests/each_kernel.py, compiled."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "each_kernel.py")]
    ended = subprocess.run([*command, "-k", "cuda"], capture_output=True, encoding="utf-8", check=False)
    said = ended.stdout.strip().splitlines()
    off = None if ended.returncode == 0 else ended.stdout[-6000:] + ended.stderr[-2000:]
    yield f"kernels, compiled: {said[-1] if said else 'nothing was said'}", off


def check_wide_rows(
    device: str, columns: Sequence[int] = (151_936, 151_937)
) -> Iterator[tuple[str, str | None]]:
    """The kernels at the width of a vocabulary, with blocks as large as they are."""
    for width, name in itertools.product(columns, NAMES):
        generator = torch.Generator(device).manual_seed(0)
        sides = torch.randn(2, 3, width, generator=generator, device=device).mul_(4)
        found = gradient_by_logits(name, sides[0], sides[1])
        student, teacher = sides.double()
        student.requires_grad_()
        items = divergence(name, student, teacher)
        (gradient,) = torch.autograd.grad(items.sum(), student)
        bounds = divergence_bounds(name, student, teacher, dtype=FLOAT32)
        pairs = (found[0], items.detach(), bounds.items), (found[1], gradient, bounds.gradient)
        worst = max(float(((one.double() - exact).abs() / bound).max()) for one, exact, bound in pairs)
        is_right = worst <= 1  # also false of what is no number
        yield f"{name} of {width:,} tokens", None if is_right else f"{worst:.3g} times what rounding may do"


def check_far_rows(columns: int = 151_936) -> Iterator[tuple[str, str | None]]:
    """Rows behind 2^31 numbers are found: the last of a large matrix says what it says alone."""
    rows = 2**31 // columns + 2
    if torch.cuda.mem_get_info()[0] < 5 * rows * columns * FLOAT32.itemsize:
        return
    logits = torch.zeros(rows, columns, device="cuda")
    logits[-1].normal_()
    teacher = torch.zeros_like(logits)
    alone = kernels.divergence_and_gradient("kl", logits[-1:], teacher[-1:])
    items, gradient = kernels.divergence_and_gradient("kl", logits, teacher, out=logits)
    is_right = torch.equal(items[-1:], alone[0]) and torch.equal(gradient[-1:], alone[1])
    yield f"a row behind {rows * columns:,} numbers", None if is_right else "it is another alone"


def test(device: str, shape: Shape) -> bool:
    """Prints what was compared; whether all is well."""
    checks = [check_contract(shape, device)]
    if device == "cuda":
        checks += [check_wide_rows(device), check_kernels(), check_far_rows()]
    is_well = True
    for name, off in itertools.chain(*checks):
        print(f"{'ok ' if off is None else 'OFF'} {name}{'' if off is None else f': {off}'}", flush=True)
        is_well &= off is None
    return is_well


# ---- Bench -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """Of a forward and a backward.

    Attributes:
        seconds: median.
        peak: bytes, beside what was there; None: the device does not tell.
        loss: what came of it.
        note: why there is nothing.
    """

    seconds: float | None = None
    peak: int | None = None
    loss: float | None = None
    note: str = ""


def measure(run: Callable[[], Tensor], leaves: Sequence[Tensor], device: str, seconds: float) -> Measured:
    """Time after time, for about so many seconds, three times at least; compiled before."""

    def once() -> float:
        loss = run()
        loss.backward()  # type: ignore[no-untyped-call] # of PyTorch
        for leaf in leaves:
            leaf.grad = None
        return float(loss.detach())

    try:
        found = [once() for _ in range(2)][-1]
        peak = _peak(once, device)
        times: list[float] = []
        while len(times) < 3 or sum(times) < seconds:  # noqa: PLR2004
            times.append(_timed(once, device))
        return Measured(statistics.median(times), peak, found)
    except torch.OutOfMemoryError:
        return Measured(note="does not fit")
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()


def _timed(call: Callable[[], object], device: str) -> float:
    """Its end asks the device, and waits."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak(call: Callable[[], object], device: str) -> int | None:
    if device != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def without_kernels() -> Iterator[None]:
    """Everything by PyTorch."""
    before = os.environ.get("DSKD_KERNELS")
    os.environ["DSKD_KERNELS"] = "0"
    try:
        yield
    finally:
        del os.environ["DSKD_KERNELS"]
        if before is not None:
            os.environ["DSKD_KERNELS"] = before


def products(shape: Shape, losses: Sequence[Loss], device: str) -> float:
    """Operations of the definition's products: counted on a few rows, of which they are a multiple."""
    rows = min(shape.n, 16)
    case = Case.of(shape.with_rows(rows), device, FLOAT32)
    objective = case.objective(*losses)
    with FlopCounterMode(display=False) as counter:
        computed(objective, case, fused=False)
    return float(counter.get_total_flops()) * shape.n / rows


def own_rate(shape: Shape, device: str, dtype: torch.dtype, seconds: float) -> float:
    """Operations a second of torch.mm on the student's head: logits, and the gradients of states and head."""
    rows = min(shape.n, 4096)
    hidden = torch.randn(rows, shape.d, device=device).to(dtype)
    weight = torch.randn(shape.size, shape.d, device=device).to(dtype)
    logits = torch.randn(rows, shape.size, device=device).to(dtype)

    def all_three() -> None:
        torch.mm(hidden, weight.T)
        torch.mm(logits, weight)
        torch.mm(logits.T, hidden)

    all_three()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:  # noqa: PLR2004
        times.append(_timed(all_three, device))
    return float(3 * 2 * rows * shape.size * shape.d / statistics.median(times))


COMPARED: Mapping[str, Sequence[Loss]] = {
    "cross_entropy": [CrossEntropy()],
    "shared_vocabulary": [CrossEntropy(), SharedVocabulary()],
    "dual_space": [CrossEntropy(), DualSpace()],
}
ONE_VOCABULARY: Mapping[str, Sequence[Loss]] = {
    "cross_entropy": [CrossEntropy()],
    "js": [loss_of("logits" if "logits" in LOSSES else "shared_vocabulary", {"divergence": "js"})],
}


def bench_losses(
    shape: Shape, compared: Mapping[str, Sequence[Loss]], device: str, dtype: torch.dtype, seconds: float
) -> Iterator[dict[str, Any]]:
    """A line for each loss and each way to it."""
    rate = own_rate(shape, device, dtype, seconds)
    for name, losses in compared.items():
        flops, value = products(shape, losses, device), None
        for way, found in ways(shape, name, losses, device, dtype, seconds):
            share = None if found.seconds is None else flops / found.seconds / rate
            value = found.loss if value is None else value
            yield {
                "models": shape.name,
                "loss": name,
                "dtype": str(dtype)[6:],
                "way": way,
                "seconds": found.seconds,
                "peak": found.peak,
                "operations": flops,
                "own_rate": rate,
                "share": share,
                "value": found.loss,
                "note": found.note or another(found.loss, value),
            }


def another(loss: float | None, first: float | None) -> str:
    """That it is not the first one's loss, where it is not; in bfloat16 they are apart by less."""
    if loss is None or first is None or abs(loss - first) <= ALIKE * abs(first):
        return ""
    return f"its loss is {loss:.5g}, not {first:.5g}"


def ways(
    shape: Shape, name: str, losses: Sequence[Loss], device: str, dtype: torch.dtype, seconds: float
) -> Iterator[tuple[str, Measured]]:
    """The loss as it is by default, without kernels, by its definition; and peers."""
    case = Case.of(shape, device, dtype)
    leaves = [*case.leaves.values()]
    objective = case.objective(*losses)
    trained = [*leaves, *objective.parameters()]

    def run() -> Tensor:
        loss: Tensor = objective(case.batch, step=1).loss
        return loss

    yield "fused", measure(run, trained, device, seconds)
    with without_kernels():
        yield "fused, without kernels", measure(run, trained, device, seconds)
    objective.fused = False
    yield "definition", measure(run, trained, device, seconds)
    if shape.size == shape.teacher_size:
        for peer, make in PEERS.get(name, {}).items():
            yield peer, of_peer(make, case, leaves, device, seconds)


# ---- Peers -----------------------------------------------------------------------------------------------


def of_peer(
    make: Callable[[Case], Callable[[], Tensor]],
    case: Case,
    leaves: Sequence[Tensor],
    device: str,
    seconds: float,
) -> Measured:
    """What it takes; where it is not installed or refuses, why there is nothing."""
    try:
        return measure(make(case), leaves, device, seconds)
    except ImportError as error:
        return Measured(note=f"not installed: {error}")
    except Exception as error:  # noqa: BLE001 - of a package of others, on a device of others
        return Measured(note=f"{type(error).__name__}: {str(error)[:200]}")


def liger_cross_entropy(case: Case) -> Callable[[], Tensor]:
    """Its fused head and cross-entropy."""
    loss = importlib.import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
    student = case.batch.student
    return lambda: loss(student.head.weight, student.hidden, student.labels)


def liger_js(case: Case) -> Callable[[], Tensor]:
    """Its fused heads and JS, nothing of the labels."""
    made = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5
    )
    student, hidden = case.batch.student, case.teacher_hidden
    given = student.hidden, student.head.weight, hidden, case.teacher.head.weight, student.labels
    biases = [None] * (len(inspect.signature(made.forward).parameters) - len(given))
    return lambda: made(*given, *biases)


def trl_js(case: Case) -> Callable[[], Tensor]:
    """Its JS of all logits, which a model would have made."""
    try:
        trainer = importlib.import_module("trl.experimental.gkd").GKDTrainer
    except ImportError:
        trainer = importlib.import_module("trl").GKDTrainer
    student, hidden = case.batch.student, case.teacher_hidden

    def run() -> Tensor:
        with torch.no_grad():
            target = functional.linear(hidden, case.teacher.head.weight)
        logits = functional.linear(student.hidden, student.head.weight)
        loss: Tensor = trainer.generalized_jsd_loss(
            logits[None], target[None], student.labels[None], beta=0.5
        )
        return loss

    return run


PEERS: Mapping[str, Mapping[str, Callable[[Case], Callable[[], Tensor]]]] = {
    "cross_entropy": {"liger-kernel": liger_cross_entropy},
    "js": {"liger-kernel": liger_js, "trl": trl_js},
}


# ---- The whole -------------------------------------------------------------------------------------------


def bench(device: str, *, quick: bool) -> dict[str, Any]:
    """Everything that is measured."""
    if quick:
        asked = [(TINY, COMPARED, BFLOAT16), (TINY_SAME, ONE_VOCABULARY, FLOAT32)]
    else:
        asked = [
            (SMALL, COMPARED, BFLOAT16),
            (SMALL, COMPARED, FLOAT32),
            (MIDDLE, COMPARED, BFLOAT16),
            (LARGE, ONE_VOCABULARY, BFLOAT16),
        ]
    seconds = 0.0 if quick else 1.0
    lines = []
    for shape, compared, dtype in asked:
        for line in bench_losses(shape, compared, device, dtype, seconds):
            lines.append(line)
            print(json.dumps(line), file=sys.stderr, flush=True)
    shapes = {shape.name: str(shape) for shape, *_ in asked}
    return {"machine": machine_of(device), "shapes": shapes, "lines": lines}


def machine_of(device: str) -> dict[str, Any]:
    """The card, and versions of all that took part."""
    found = machine("torch")
    for package in ("triton", "liger-kernel", "trl"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["gpu_memory"] = torch.cuda.get_device_properties(0).total_memory
    return found


def tables(results: Mapping[str, Any]) -> str:
    """What was measured, as Markdown."""
    head = ["models", "loss", "dtype", "way", "ms", "peak, MiB", "of the card's rate"]
    body = []
    for line in results["lines"]:
        names = [line["models"], line["loss"], line["dtype"], line["way"]]
        if line["seconds"] is None:
            body.append([*names, line["note"], "", ""])
            continue
        names[-1] += f" ({line['note']})" if line["note"] else ""
        peak = "" if line["peak"] is None else f"{line['peak'] / 2**20:,.0f}"
        body.append([*names, f"{1e3 * line['seconds']:.1f}", peak, f"{line['share']:.0%}"])
    return f"{said_of(results['machine'])}\n\n{table(head, body, names=4)}"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="The losses on a GPU: right, and how fast.")
    parser.add_argument("--test", action="store_true", help="compare with the definitions")
    parser.add_argument("--bench", action="store_true", help="measure, and write results/gpu.json")
    parser.add_argument("--quick", action="store_true", help="both, tiny, on the CPU, written nowhere")
    options = parser.parse_args()
    if options.quick:
        is_well = test("cpu", TINY)
        print(tables(bench("cpu", quick=True)))
        return 0 if is_well else 1
    if not torch.cuda.is_available():
        print("there is no GPU here: nothing was tested, measured or written")
        return 0
    is_well = test("cuda", TESTED) if options.test else True
    if options.bench:
        results = bench("cuda", quick=False)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(tables(results))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
