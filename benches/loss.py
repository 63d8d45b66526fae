"""Time and peak memory of the fused losses beside the published form, which makes all logits.

    python benches/loss.py            # measures, prints, writes results/loss.json and README.md's tables
    python benches/loss.py --table    # the same tables, from the results that are there
    python benches/loss.py --quick    # everything small: whether it works, not how much it is

Every contestant runs in a process of its own, forward and backward, on tensors that it is given in a file:
what they were made from would leave memory behind that a contestant takes unseen. Processes of contestants
that are compared take turns, round after round; a ratio is the median over the rounds. Before anything is
timed, the contestants of a shape must give the same loss and the same gradients. All of it is measured in one
thread, and again in two.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))  # what a step of the demo needs
from dskd import Aligner, Vocabulary
from dskd.nn import (
    LOSSES,
    Batch,
    Chunks,
    CrossEntropy,
    DualSpace,
    Head,
    Objective,
    Projectors,
    Reduction,
    SharedVocabulary,
    States,
    Teacher,
    TeacherModel,
    TeacherStatistics,
    VocabularyMaps,
    Weighted,
    teacher_statistics,
)
from dskd.nn.linear import CHUNK_MEMORY
from dskd.nn.products import linear
from report import Report, machine, positive, said_of, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from dskd.nn import Loss
    from dskd.train import Collated

MIB = 2**20
FLOAT = 4
"""Bytes: everything is measured in float32."""

# glibc gives large blocks back to the system and asks for them again, which costs page faults.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "1000000000",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Of two models and a batch.

    Attributes:
        d: the student's hidden size.
        teacher_d: the teacher's, D.
        size: of the student's vocabulary, V_s.
        teacher_size: of the teacher's, V_t.
        n: supervised positions, each of which is a pair.
    """

    d: int
    teacher_d: int
    size: int
    teacher_size: int
    n: int

    def __str__(self) -> str:
        """In words."""
        sizes = f"V={self.size:,}/{self.teacher_size:,}"
        return f"d={self.d}, D={self.teacher_d}, {sizes}, n={self.n:,}"

    def reads_through(self, chunk_memory: int, *, cached: bool) -> bool:
        """Whether the fused form multiplies P_st into the teacher's head, see docs/losses.md."""
        saves = self.d * self.teacher_d < 2 * self.n * (self.teacher_d - self.d)
        return saves and (cached or FLOAT * self.teacher_size * self.d <= chunk_memory)

    def carried_bytes(self, chunk_memory: int) -> int:
        """Of the states that are read in the other space, of their gradients and of the student's."""
        in_teacher = self.d if self.reads_through(chunk_memory, cached=False) else self.teacher_d
        return FLOAT * self.n * (2 * (self.d + in_teacher) + self.d)


@dataclass(frozen=True, slots=True)
class Asked:
    """Of a shape: the most that the fused form may take of the published form's time and memory.

    Attributes:
        time: the share of the time.
        memory: one part in so many of the peak.
        cached_time: with the teacher's statistics at hand.
        cached_memory: likewise.
    """

    time: float
    memory: float
    cached_time: float
    cached_memory: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        shapes: with what is asked of each.
        same: the shape of the rows in which both sides have one vocabulary.
        lengths: n of the line on memory, at the shape `same`.
        threads: of which everything is measured with each number.
        rounds: in which contestants take turns.
        kept_rounds: the same with an allocator that keeps its memory.
        seconds: a process repeats a pass until so many have gone, three times at most.
        with_compiler: whether torch.compile takes part: it needs a minute or two.
        with_models: whether the step is of the demo's models, or of very small ones.
        apart: whether all contestants have processes of their own, or those of the first shape alone.
        chunk_memory: bytes for the logits of one chunk.
    """

    shapes: tuple[tuple[Shape, Asked], ...] = (
        (Shape(256, 512, 32_000, 50_257, 2_048), Asked(0.40, 20, 0.25, 50)),
        (Shape(576, 896, 49_152, 151_936, 1_024), Asked(0.45, 12, 0.30, 25)),
    )
    same: Shape = Shape(256, 512, 32_000, 32_000, 2_048)
    lengths: tuple[int, ...] = (1_024, 4_096, 16_384)
    threads: tuple[int, ...] = (1, 2)
    rounds: int = 3
    kept_rounds: int = 2
    seconds: float = 8.0
    with_compiler: bool = True
    with_models: bool = True
    apart: bool = True
    chunk_memory: int = CHUNK_MEMORY


SMALL = Shape(8, 12, 96, 120, 40)
QUICK = Sizes(
    shapes=((SMALL, Asked(0.40, 20, 0.25, 50)),),
    same=replace(SMALL, teacher_size=96),
    lengths=(32, 64),
    threads=(1,),
    rounds=1,
    kept_rounds=1,
    seconds=0.01,
    with_compiler=False,
    with_models=False,
    apart=False,
)


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was measured.

    Attributes:
        what: in words.
        value: what was measured; None where it could not be, and `note` says why.
        unit: of value and target.
        target: what is asked for; None: nothing.
        at_least: whether more is better.
        note: how it was measured, and the numbers behind it.
    """

    what: str
    value: float | None
    unit: str
    target: float | None
    note: str
    at_least: bool = False


# ---- What contestants are given --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """Tensors of a shape, random: the shares and ranges of logits are those of trained models.

    Attributes:
        student_hidden: `[n, d]`, with a gradient.
        labels: `[n]`.
        teacher_hidden: `[n, D]`.
        student_weight: `[V_s, d]`, trained.
        teacher_weight: `[V_t, D]`.
        maps: three quarters of the smaller vocabulary are shared.
        dual_space: cross-entropy and dual space as published but for the gate; P_ts trained, P_st solved.
        statistics: of the teacher.
    """

    student_hidden: Tensor
    labels: Tensor
    teacher_hidden: Tensor
    student_weight: Tensor
    teacher_weight: Tensor
    maps: VocabularyMaps
    dual_space: Objective
    statistics: TeacherStatistics

    @property
    def projectors(self) -> Projectors:
        """Those of dual space, which is the second of its losses."""
        built = self.dual_space.built["1"]
        assert isinstance(built, Projectors)  # noqa: S101 - what `DualSpace.build` says that it returns
        return built

    @property
    def student(self) -> States:
        """The student where it is supervised."""
        return States(self.student_hidden, self.labels, Head(self.student_weight))

    def batch(self, maps: VocabularyMaps | None = None, *, cached: bool = False) -> Batch:
        """What the library's losses take; chunks are two tokens of either side.

        Args:
            maps: of the vocabularies, if not those that are here.
            cached: with the teacher's statistics.
        """
        every = torch.arange(len(self.labels))
        chunk = every // 2
        teacher = Teacher(
            TeacherModel(Head(self.teacher_weight), maps or self.maps),
            self.teacher_hidden,
            every,
            self.statistics if cached else None,
            Chunks(every, chunk, torch.linspace(-10, -0.1, int(chunk[-1]) + 1)),
        )
        return Batch(self.student, {"teacher": teacher})

    def trained(self) -> dict[str, Tensor]:
        """What gets a gradient."""
        return {
            "student_hidden": self.student_hidden,
            "student_weight": self.student_weight,
            "teacher_to_student": self.projectors.teacher_to_student,
        }


def given_of(shape: Shape) -> Given:
    """Random heads and states whose logits have a standard deviation of 2, and their projectors."""
    generator = torch.Generator().manual_seed(0)
    normal = functools.partial(torch.randn, generator=generator)
    student_weight = normal(shape.size, shape.d).mul_(2 * shape.d**-0.5).requires_grad_()
    teacher_weight = normal(shape.teacher_size, shape.teacher_d).mul_(2 * shape.teacher_d**-0.5)
    shared = min(shape.size, shape.teacher_size) * 3 // 4
    of_teacher = torch.randperm(shape.teacher_size, generator=generator)[:shared].sort().values
    of_student = torch.randperm(shape.size, generator=generator)[:shared]
    overlap = torch.stack([of_teacher, of_student], 1)
    to_student = torch.full((shape.teacher_size,), -1).index_copy(0, of_teacher, of_student)
    teacher_hidden = normal(shape.n, shape.teacher_d)
    maps = VocabularyMaps(to_student=to_student, overlap=overlap)
    ungated = DualSpace(**DualSpace.presets["dskd_ungated"])
    dual_space = with_cross_entropy(ungated, Head(student_weight), TeacherModel(Head(teacher_weight), maps))
    return Given(
        student_hidden=normal(shape.n, shape.d).requires_grad_(),
        labels=torch.randint(shape.size, (shape.n,), generator=generator),
        teacher_hidden=teacher_hidden,
        student_weight=student_weight,
        teacher_weight=teacher_weight,
        maps=maps,
        dual_space=dual_space.eval(),  # P_st is not solved again: that is in a step
        statistics=teacher_statistics(Head(teacher_weight), teacher_hidden),
    )


def with_cross_entropy(
    loss: Loss, student: Head, teacher: TeacherModel, *, chunk_memory: int = CHUNK_MEMORY
) -> Objective:
    """Half of each."""
    halves = Weighted(CrossEntropy(), 0.5), Weighted(loss, 0.5)
    return Objective(halves, student, teacher, chunk_memory=chunk_memory)


# ---- Contestants -----------------------------------------------------------------------------------------


def published(given: Given) -> Tensor:
    """Dual-space distillation as its formulas stand in arXiv 2406.17328 and 2504.11426, in plain PyTorch."""
    n = len(given.labels)
    head, teacher_head = given.student_weight, given.teacher_weight
    z_s = given.student_hidden @ head.T
    with torch.no_grad():
        z_t = given.teacher_hidden @ teacher_head.T
        y = given.maps.to_student[z_t.argmax(-1)]
    z_ts = (given.teacher_hidden @ given.projectors.teacher_to_student) @ head.detach().T
    z_st = (given.student_hidden @ given.projectors.student_to_teacher) @ teacher_head.T
    cross_entropy = functional.cross_entropy(z_s, given.labels)
    t2s_ce = functional.cross_entropy(z_ts, y, ignore_index=-1, reduction="sum") / n
    t2s_kd = mean_kl(z_ts.detach(), z_s)
    s2t_kd = mean_kl(z_t, z_st)
    return 0.5 * cross_entropy + 0.5 * (t2s_ce + t2s_kd + s2t_kd)


def mean_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """`KL(softmax(teacher), softmax(student))`, the mean over the rows."""
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return (teacher.softmax(-1) * (log_p - log_q)).sum(-1).mean()


def with_all_logits(given: Given, _: int) -> Callable[[], Tensor]:
    """The published form."""
    return lambda: published(given)


def compiled(given: Given, _: int) -> Callable[[], Tensor]:
    """The published form, compiled."""
    run = torch.compile(published)
    return lambda: run(given)


def fused(given: Given, chunk_memory: int, *, cached: bool = False) -> Callable[[], Tensor]:
    """The library's."""
    batch, given.dual_space.chunk_memory = given.batch(cached=cached), chunk_memory
    return lambda: given.dual_space(batch).loss


def full_cross_entropy(given: Given, _: int) -> Callable[[], Tensor]:
    """The cross-entropy of all logits."""
    return lambda: functional.cross_entropy(given.student_hidden @ given.student_weight.T, given.labels)


def cross_entropy(given: Given, chunk_memory: int) -> Callable[[], Tensor]:
    """The library's."""
    batch = Batch(given.student)
    objective = Objective([CrossEntropy()], batch.student.head, chunk_memory=chunk_memory)
    return lambda: objective(batch).loss


def beside_cross_entropy(
    given: Given, chunk_memory: int, loss: Loss, maps: VocabularyMaps | None = None
) -> Callable[[], Tensor]:
    """The library's, of cross-entropy and one loss more."""
    batch = given.batch(maps)
    model = batch.teachers["teacher"].model
    objective = with_cross_entropy(loss, batch.student.head, model, chunk_memory=chunk_memory)
    return lambda: objective(batch).loss


def one_more(given: Given, chunk_memory: int, *, name: str) -> Callable[[], Tensor]:
    """The same, by the name of the loss, which has its defaults."""
    return beside_cross_entropy(given, chunk_memory, LOSSES[name]())


def full_same_vocabulary(given: Given, _: int) -> Callable[[], Tensor]:
    """Cross-entropy and KL of all logits over one vocabulary."""

    def run() -> Tensor:
        z_s = given.student_hidden @ given.student_weight.T
        z_t = given.teacher_hidden @ given.teacher_weight.T
        return 0.5 * functional.cross_entropy(z_s, given.labels) + 0.5 * mean_kl(z_t, z_s)

    return run


def same_vocabulary(given: Given, chunk_memory: int) -> Callable[[], Tensor]:
    """The library's, over an overlap that is everything."""
    every = torch.arange(len(given.student_weight))
    maps = VocabularyMaps(to_student=every, overlap=torch.stack([every, every], 1))
    return beside_cross_entropy(given, chunk_memory, SharedVocabulary(), maps)


def liger(given: Given, _: int, *, compiled: bool = False) -> Callable[[], Tensor]:
    """liger-kernel's chunked loss, whose JSD is KL(p, q) at beta 0."""
    losses = importlib.import_module("liger_kernel.chunked_loss")
    loss = losses.LigerFusedLinearJSDLoss(beta=0.0, compiled=compiled)

    def run() -> Tensor:
        student = given.student_hidden, given.student_weight
        made: Tensor = loss(*student, given.teacher_hidden, given.teacher_weight, given.labels)
        return made

    return run


CONTESTANTS: Mapping[str, Callable[[Given, int], Callable[[], Tensor]]] = {
    "published": with_all_logits,
    "compiled": compiled,
    "fused": fused,
    "cached": functools.partial(fused, cached=True),
    "full_cross_entropy": full_cross_entropy,
    "cross_entropy": cross_entropy,
    "full_same_vocabulary": full_same_vocabulary,
    "same_vocabulary": same_vocabulary,
    "alm": functools.partial(one_more, name="alm"),
    "strict_top_k": functools.partial(one_more, name="strict_top_k"),
    "liger": liger,
    "liger_compiled": functools.partial(liger, compiled=True),
}
COMPILED = ("compiled", "liger_compiled")
"""Those that need a pass before they are measured."""
EQUAL = (
    ("published", "fused", "cached"),
    ("full_cross_entropy", "cross_entropy"),
    ("full_same_vocabulary", "same_vocabulary"),
)
"""Those that must give the same loss and gradients; of each the first is what the others are held against."""


# ---- What a process does ---------------------------------------------------------------------------------


def measure_contestant(file: Path, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Peak memory of the first pass beyond what was there, and seconds of up to three."""
    warm_up()
    given: Given = torch.load(file, weights_only=False)
    forward = CONTESTANTS[name](given, settings["chunk_memory"])

    def run() -> None:
        for one in given.trained().values():
            one.grad = None
        torch.autograd.backward(forward())

    if name in COMPILED:
        run()
        for one in given.trained().values():
            one.grad = None
    return measured(run, settings["seconds"])


def measured(run: Callable[[], None], seconds: float) -> dict[str, Any]:
    """Of passes of this process."""
    gc.collect()
    before = settle()
    found: dict[str, Any] = {"peak": None, "seconds": [], "processor": []}
    began = time.perf_counter()
    while len(found["seconds"]) < 1 or (
        time.perf_counter() - began < seconds and len(found["seconds"]) < _PASSES
    ):
        start, processor = time.perf_counter(), time.process_time()
        run()
        found["seconds"].append(time.perf_counter() - start)
        found["processor"].append(time.process_time() - processor)
        if found["peak"] is None and before is not None:
            found["peak"] = resident_bytes("VmHWM") - before
    return found


_PASSES = 3


def warm_up() -> None:
    """Threads, and what libraries take once."""
    left = torch.ones(256, 256, requires_grad=True)
    torch.autograd.backward((left @ left).log_softmax(-1).sum())
    linear(left.detach(), left.detach())


def settle() -> int | None:
    """Gives free memory back and lets the peak begin anew: bytes that are resident, None if nobody knows."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return resident_bytes("VmRSS")


def resident_bytes(name: str) -> int:
    """`VmRSS` or `VmHWM`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def compare(file: Path, names: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """How far the losses and gradients of some contestants are from those of the first, relatively."""
    given: Given = torch.load(file, weights_only=False)

    def found(name: str) -> list[Tensor]:
        for one in given.trained().values():
            one.grad = None
        loss = CONTESTANTS[name](given, settings["chunk_memory"])()
        torch.autograd.backward(loss)
        return [loss.detach(), *(one.grad for one in given.trained().values() if one.grad is not None)]

    first, *others = names.split(",")
    expected = found(first)

    def worst(name: str) -> float:
        pairs = zip(found(name), expected, strict=True)
        return max(float((one - other).norm() / other.norm()) for one, other in pairs)

    return {name: worst(name) for name in others}


def measure_products(file: Path, _: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of the products of a shape with both heads, each at its best number of rows at once."""
    given: Given = torch.load(file, weights_only=False)
    n = len(given.labels)
    through = given.teacher_weight @ given.projectors.student_to_teacher.T
    heads = {"student": given.student_weight.detach(), "teacher": given.teacher_weight, "through": through}
    return {
        side: {name: _best_seconds(name, weight, n, settings["seconds"] / 40) for name in _PRODUCTS}
        for side, weight in heads.items()
    }


_TOKENS_AT_ONCE = 1024


def _logits_in_blocks(hidden: Tensor, weight: Tensor, logits: Tensor) -> None:
    """Transposed, and no more of them at once than stays in a cache."""
    made = logits.view(-1)[: _TOKENS_AT_ONCE * len(hidden)].view(-1, len(hidden))
    for start in range(0, len(weight), len(made)):
        block = weight[start : start + len(made)]
        torch.mm(block, hidden.T, out=made[: len(block)])


def _logits_by_onednn(hidden: Tensor, weight: Tensor, _: Tensor) -> None:
    for start in range(0, len(weight), _TOKENS_AT_ONCE):
        linear(hidden, weight[start : start + _TOKENS_AT_ONCE])


_PRODUCTS: Mapping[str, Sequence[Callable[[Tensor, Tensor, Tensor], object]]] = {
    "logits": (
        lambda hidden, weight, logits: torch.mm(hidden, weight.T, out=logits),
        _logits_in_blocks,
        _logits_by_onednn,
    ),
    "states": (
        lambda hidden, weight, logits: torch.mm(logits, weight, out=hidden),
        lambda _, weight, logits: torch.mm(weight.T, logits.T),
        lambda _, weight, logits: linear(logits, weight.T),
    ),
    "weights": (lambda hidden, weight, logits: torch.mm(logits.T, hidden, out=torch.empty_like(weight)),),
}
"""Of each kind the ways to do it, by torch.mm and, where `dskd.nn.products` has it, by oneDNN."""


def _best_seconds(name: str, weight: Tensor, n: int, at_least: float) -> float:
    """For all n rows."""
    best = float("inf")
    sizes = sorted({min(rows, n) for rows in (64, 128, 256, 512, n)})
    for rows, way in itertools.product(sizes, _PRODUCTS[name]):
        hidden, logits = torch.ones(rows, weight.shape[1]), torch.ones(rows, len(weight))
        run = functools.partial(way, hidden, weight, logits)
        run()
        began = time.perf_counter()
        while True:
            start = time.perf_counter()
            run()
            end = time.perf_counter()
            best = min(best, (end - start) * n / rows)
            if end - began > at_least:
                break
    return best


# ---- A step of the demo ----------------------------------------------------------------------------------

STEPS: Mapping[str, str] = {
    "sft": "cross-entropy alone",
    "dual_space": "the library's defaults, P_st solved in each step, the teacher's states at hand",
    "dual_space_still": "the same, and P_st not solved again",
    "dual_space_full": "the same by the definition, fused=False",
    "dual_space_teacher": "the same, with the teacher's forward pass",
    "dual_space_ungated": "as published but for the gate, the teacher's states at hand",
}
"""Contestants of a training step."""

_BATCHES = 2


def demo_of(folder: Path, *, with_models: bool) -> Path:
    """A file with the demo's models and two batches of its rows; the models may be very small instead."""
    distill, assets = importlib.import_module("distill"), importlib.import_module("assets")
    transformers = importlib.import_module("transformers")
    train, model = importlib.import_module("dskd.train"), importlib.import_module("dskd.train.model")
    folders = {"teacher": assets.tokenizer("smollm2"), "student": assets.tokenizer("mistral-v1")}
    tokenizers = {
        side: transformers.AutoTokenizer.from_pretrained(folders[side]) for side in ("teacher", "student")
    }
    if with_models:
        folders["teacher"] = assets.model("smollm2")
        with contextlib.redirect_stdout(sys.stderr):
            start = distill.make_start("cut", folders["teacher"], folders["student"], folder / "start")
        load = functools.partial(transformers.AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
        models = {"teacher": load(folders["teacher"]), "student": load(start)}
    else:
        models = {side: _tiny_model(transformers, len(each)) for side, each in tokenizers.items()}
    roles = {"teacher": distill.ROLES, "student": None}
    sides = {
        side: train.Side(
            tokenizer,
            Vocabulary.from_tokenizer(tokenizer, size=models[side].config.vocab_size, roles=roles[side]),
        )
        for side, tokenizer in tokenizers.items()
    }
    aligner = Aligner(sides["teacher"].vocabulary, sides["student"].vocabulary)
    of_teacher = {"teacher": train.TeacherSide(sides["teacher"], aligner)}
    collate = train.DistillationCollator(sides["student"], of_teacher)
    rows = [distill.row_of(row) for row in assets.prompt_rows("train", _BATCHES * distill.BATCH)]
    models["teacher"].requires_grad_(False).eval()
    heads = {side: model.head_of(models[side], sides[side].vocabulary) for side in models}
    overlap = torch.tensor(aligner.vocabulary_map.overlap)
    maps = VocabularyMaps(to_student=torch.tensor(aligner.vocabulary_map.teacher_to_student), overlap=overlap)
    teacher = TeacherModel(heads["teacher"], maps)
    file = folder / "demo.pt"
    torch.save(
        {
            "models": models,
            "student_head": heads["student"],
            "teacher": teacher,
            "objectives": _objectives_of_steps(heads["student"], teacher),
            "batches": [collate(rows[start::_BATCHES]) for start in range(_BATCHES)],
        },
        file,
    )
    return file


def _objectives_of_steps(student: Head, teacher: TeacherModel) -> dict[str, Objective]:
    """Of all contestants; P_st is solved in each step, where it is not to stand still."""
    default = with_cross_entropy(DualSpace(refresh_every=1), student, teacher)
    ungated = with_cross_entropy(DualSpace(**DualSpace.presets["dskd_ungated"]), student, teacher)
    named = {"sft": Objective([CrossEntropy()], student), "dual_space_ungated": ungated}
    return {name: named.get(name, default) for name in STEPS}


def _tiny_model(transformers: Any, size: int) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config)


def measure_step(file: Path, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Forward, backward and optimizer of a contestant of `STEPS`: as `measured`, a pass is all batches."""
    model = importlib.import_module("dskd.train.model")
    given = torch.load(file, weights_only=False)
    teacher, batches = given["models"]["teacher"], given["batches"]
    objective = given["objectives"][name].train(name != "dual_space_still")
    objective.fused = name != "dual_space_full"
    whole = model.DistillationModel(given["models"]["student"], given["student_head"], objective)
    trained = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95))
    steps = itertools.count()

    @torch.no_grad()
    def said_in(batch: Collated) -> Mapping[str, Teacher]:
        tokens = batch.teachers["teacher"]
        states = model.hidden_states(teacher, tokens.input_ids, tokens.attention_mask)
        return {"teacher": batch.places.of_teacher("teacher", states, given["teacher"])}

    def step(batch: Collated, said: Mapping[str, Teacher]) -> None:
        if name == "dual_space_teacher":
            said = said_in(batch)
        parts = whole(batch, said, Reduction(batch.places.counts()), step=next(steps))
        torch.autograd.backward(parts.loss)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    at_hand = [{} if name in {"sft", "dual_space_teacher"} else said_in(batch) for batch in batches]
    step(batches[0], at_hand[0])  # after which the optimizer has its state

    def run() -> None:
        for batch, said in zip(batches, at_hand, strict=True):
            step(batch, said)

    return measured(run, settings["seconds"])


TASKS: Mapping[str, Callable[[Path, str, Mapping[str, Any]], dict[str, Any]]] = {
    "contestant": measure_contestant,
    "compare": compare,
    "products": measure_products,
    "step": measure_step,
}


# ---- Taking turns ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Turns:
    """What contestants did, round after round."""

    rounds: Mapping[str, Sequence[Mapping[str, Any]]]

    def seconds(self, name: str, clock: str = "seconds") -> float:
        """Of one pass: the median."""
        return statistics.median(map(_median_of(clock), self.rounds[name]))

    def ratio(self, name: str, other: str, clock: str = "seconds") -> float:
        """Of the times of two in the same round: the median."""
        pairs = zip(self.rounds[name], self.rounds[other], strict=True)
        of = _median_of(clock)
        return statistics.median(of(one) / of(another) for one, another in pairs)

    def peak(self, name: str) -> int | None:
        """Bytes: the largest of all rounds; None if the system does not tell it."""
        peaks = [found["peak"] for found in self.rounds[name]]
        return None if None in peaks else max(peaks)

    def times(self, name: str, other: str) -> str:
        """In words."""
        processor = self.ratio(name, other, "processor")
        both = f"{self.seconds(name):.3g} against {self.seconds(other):.3g} s"
        return f"{both}, wall clock; of processor time {processor:.2f}"


def _median_of(clock: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda found: statistics.median(found[clock])


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs tasks on a file, in processes of their own.

    Attributes:
        sizes: of the run.
        file: what a task is given.
        apart: False: in this process; for a run that shows that everything works.
        log: what was measured, by the name of what it was for; is added to.
    """

    sizes: Sizes
    file: Path
    apart: bool = True
    log: dict[str, Any] = field(default_factory=dict)

    def run(self, task: str, name: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
        """What a task found."""
        settings = {"seconds": self.sizes.seconds, "chunk_memory": self.sizes.chunk_memory}
        if not self.apart:
            return TASKS[task](self.file, name, settings)
        command = [sys.executable, str(Path(__file__).resolve()), "--task", task, str(self.file), name]
        ended = subprocess.run(
            [*command, json.dumps(settings)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **(environment or {})},
        )
        found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
        return found

    def turns(
        self,
        what: str,
        task: str,
        names: Sequence[str],
        rounds: int,
        environment: Mapping[str, str] | None = None,
    ) -> Turns:
        """What each found in each round."""
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                print(f"  {what}: {name}", file=sys.stderr)
                found[name].append(self.run(task, name, environment))
        self.log[what] = found
        return Turns(found)

    def refuse_differences(self, names: Sequence[str]) -> None:
        """Contestants must give the same loss and gradients.

        Raises:
            RuntimeError: they do not.
        """
        off = self.run("compare", ",".join(names))
        if max(off.values()) > _TOLERANCE:
            raise RuntimeError(f"loss or gradients are not those of {names[0]}, relatively: {off}")


_TOLERANCE = 1e-4
"""Of losses and gradients in float32, relatively, by their norms."""


@contextlib.contextmanager
def runner_of(sizes: Sizes, shape: Shape, *, apart: bool, log: dict[str, Any]) -> Iterator[Runner]:
    """A runner of contestants on tensors of a shape."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "given.pt"
        torch.save(given_of(shape), file)
        yield Runner(sizes, file, apart, log)


# ---- Lines -----------------------------------------------------------------------------------------------


def rounded(value: float) -> float:
    """To what a table shows."""
    return float(f"{value:.3g}")


def line_of_time(turns: Turns, pair: tuple[str, str], what: str, target: float | None, note: str) -> Line:
    """How long the first takes, the second being 1."""
    name, other = pair
    value = rounded(turns.ratio(name, other))
    return Line(f"{what}, time", value, "times", target, f"{note}; {turns.times(name, other)}")


def line_of_memory(turns: Turns, pair: tuple[str, str], what: str, target: float | None, note: str) -> Line:
    """How many times the peak of the first is in that of the second."""
    peaks = [turns.peak(name) for name in pair]
    what = f"{what}, peak memory, one part in"
    if peaks[0] is None or peaks[1] is None:
        return Line(what, None, "", target, "the system does not tell it", at_least=True)
    value = rounded(peaks[1] / max(peaks[0], 1))
    note = f"{note}; {peaks[0] / MIB:,.0f} against {peaks[1] / MIB:,.0f} MiB"
    return Line(what, value, "", target, note, at_least=True)


def line_of_more_memory(turns: Turns, pair: tuple[str, str], what: str, note: str) -> Line:
    """How many times the peak of the second the first has."""
    peaks = [turns.peak(name) for name in pair]
    what = f"{what}, peak memory"
    if peaks[0] is None or peaks[1] is None:
        return Line(what, None, "times", None, "the system does not tell it")
    note = f"{note}; {peaks[0] / MIB:,.0f} against {peaks[1] / MIB:,.0f} MiB"
    return Line(what, rounded(peaks[0] / max(peaks[1], 1)), "times", None, note)


def dual_space(sizes: Sizes, log: dict[str, Any]) -> Iterator[Line]:
    """The fused form beside the published form."""
    for index, (shape, asked) in enumerate(sizes.shapes):
        with runner_of(sizes, shape, apart=sizes.apart or not index, log=log) as runner:
            runner.refuse_differences(EQUAL[0])
            yield from _beside_published(runner, shape, asked)
            if not index:
                yield from _beside_compiler(runner, shape)


def _beside_published(runner: Runner, shape: Shape, asked: Asked) -> Iterator[Line]:
    sizes, names = runner.sizes, EQUAL[0]
    turns = runner.turns(f"{shape}", "contestant", names, sizes.rounds)
    products = [runner.run("products", "-") for _ in range(sizes.rounds)]
    runner.log[f"{shape}, products"] = products
    kept = runner.turns(f"{shape}, kept", "contestant", names, sizes.kept_rounds, KEEP_MEMORY)
    targets = {"fused": (asked.time, asked.memory), "cached": (asked.cached_time, asked.cached_memory)}
    for name, (of_time, of_memory) in targets.items():
        pair, what = (name, "published"), f"{_TITLES[name]} against the published form"
        yield line_of_time(turns, pair, what, of_time, f"{shape}")
        yield line_of_memory(turns, pair, what, of_memory, f"{shape}")
        yield line_of_time(kept, pair, f"{what}, memory kept", of_time, f"{shape}; glibc gives nothing back")
    for name in targets:
        yield from _lines_of_products(turns, products, name, shape, sizes.chunk_memory)


_TITLES = {"fused": "fused", "cached": "fused, with the teacher's statistics"}


def products_of(shape: Shape, chunk_memory: int, *, cached: bool) -> dict[str, dict[str, float]]:
    """How many products of each kind the fused form computes: `n d V` multiplications and additions each.

    Where it reads through P_st, that head `[V_t, d]` is made first, which takes D / n of a product with it.
    """
    student = {"logits": 2.0, "states": 2.0, "weights": 1.0}
    own = {"logits": 0.0 if cached else 1.0}
    if shape.reads_through(chunk_memory, cached=cached):
        through = {"logits": 1 + shape.teacher_d / shape.n, "states": 1.0}
        return {"student": student, "through": through, "teacher": own}
    return {"student": student, "teacher": {"logits": own["logits"] + 1, "states": 1.0}}


def _lines_of_products(
    turns: Turns, products: Sequence[Mapping[str, Any]], name: str, shape: Shape, chunk_memory: int
) -> Iterator[Line]:
    counts = products_of(shape, chunk_memory, cached=name == "cached")
    best = statistics.median(
        sum(count * found[side][kind] for side, of in counts.items() for kind, count in of.items())
        for found in products
    )
    each = {
        "student": shape.d * shape.size,
        "teacher": shape.teacher_d * shape.teacher_size,
        "through": shape.d * shape.teacher_size,
    }
    flops = sum(2 * shape.n * each[side] * sum(of.values()) for side, of in counts.items())
    seconds = turns.seconds(name)
    note = (
        f"{shape}; {flops / 1e9:,.0f} GFLOP with the heads at {flops / seconds / 1e9:,.0f} a second; "
        f"by themselves they go at {flops / best / 1e9:,.0f}"
    )
    what = f"{_TITLES[name]}, share of the machine's own rate of matrix products"
    yield Line(what, rounded(best / seconds), "", 0.70, note, at_least=True)
    what = f"{_TITLES[name]}, these products by themselves against the published form, time"
    published = turns.seconds("published")
    note = f"{shape}; {best:.3g} against {published:.3g} s; a form that makes them so takes no less"
    yield Line(what, rounded(best / published), "times", None, note)


def _beside_compiler(runner: Runner, shape: Shape) -> Iterator[Line]:
    what = "fused against torch.compile of the published form"
    if not runner.sizes.with_compiler:
        yield Line(f"{what}, time", None, "times", None, "left out of this run, it takes minutes")
        return
    try:
        turns = runner.turns(f"{shape}, compiler", "contestant", ("compiled", "fused"), 1)
    except subprocess.CalledProcessError:
        yield Line(f"{what}, time", None, "times", None, "torch.compile does not work on this machine")
        return
    yield line_of_time(turns, ("fused", "compiled"), what, None, f"{shape}")
    yield line_of_memory(turns, ("fused", "compiled"), what, None, f"{shape}")


def flat_in_length(sizes: Sizes, log: dict[str, Any]) -> Iterator[Line]:
    """The peak beyond what has the size of hidden states."""
    beyond, peaks = {}, {}
    for n in sizes.lengths:
        shape = replace(sizes.same, n=n)
        with runner_of(sizes, shape, apart=sizes.apart, log=log) as runner:
            turns = runner.turns(f"{shape}, memory", "contestant", ["fused"], 1)
        peak = turns.peak("fused")
        if peak is not None:
            peaks[n], beyond[n] = peak, peak - shape.carried_bytes(sizes.chunk_memory)
    first, last = sizes.lengths[0], sizes.lengths[-1]
    what = f"fused, peak memory beyond hidden states, n={last:,} against {first:,}"
    if not beyond:
        yield Line(what, None, "times", 1.1, "the system does not tell it")
        return
    mib = ", ".join(f"{beyond[n] / MIB:,.0f} of {peaks[n] / MIB:,.0f} MiB at {n:,}" for n in beyond)
    note = f"{replace(sizes.same, n=first)} and on; {mib}"
    yield Line(what, rounded(beyond[last] / max(beyond[first], 1)), "times", 1.1, note)


def same_vocabulary_and_sft(sizes: Sizes, log: dict[str, Any]) -> Iterator[Line]:
    """Losses over one vocabulary beside full logits and beside liger-kernel."""
    shape = sizes.same
    with runner_of(sizes, shape, apart=sizes.apart, log=log) as runner:
        for what, names in (("fused cross-entropy", EQUAL[1]), ("CE + KL over one vocabulary", EQUAL[2])):
            runner.refuse_differences(names)
            turns = runner.turns(f"{shape}, {what}", "contestant", names, sizes.rounds)
            pair, beside = (names[1], names[0]), f"{what}, fused, against full logits"
            yield line_of_time(turns, pair, beside.replace("fused cross", "cross"), None, f"{shape}")
            yield line_of_memory(turns, pair, beside.replace("fused cross", "cross"), None, f"{shape}")
        yield from _beside_liger(runner, shape)


def one_loss_more(sizes: Sizes, log: dict[str, Any]) -> Iterator[Line]:
    """Cross-entropy and a loss that takes little more, beside cross-entropy alone."""
    (shape, _), *_ = sizes.shapes
    names = [name for name in MORE if name in LOSSES]
    with runner_of(sizes, shape, apart=sizes.apart, log=log) as runner:
        turns = runner.turns(f"{shape}, one more", "contestant", ["cross_entropy", *names], sizes.rounds)
    for name in names:
        pair, what = (name, "cross_entropy"), f"cross-entropy + {MORE[name]}, fused, against cross-entropy"
        yield line_of_time(turns, pair, what, 1.3, f"{shape}")
        yield line_of_more_memory(turns, pair, what, f"{shape}")


MORE: Mapping[str, str] = {"alm": "ALM", "strict_top_k": "strict top-k"}
"""What takes little more than cross-entropy, in words."""


def _beside_liger(runner: Runner, shape: Shape) -> Iterator[Line]:
    what = "CE + KL over one vocabulary, fused, against liger-kernel"
    try:
        names = {"liger": f"{version('liger-kernel')}, compiled=False"}
    except PackageNotFoundError:
        yield Line(f"{what}, time", None, "times", None, "liger-kernel is not installed here")
        return
    if runner.sizes.with_compiler:
        names["liger_compiled"] = f"{version('liger-kernel')}, compiled=True"
    runner.refuse_differences(("full_same_vocabulary", *names))
    turns = runner.turns(
        f"{shape}, liger", "contestant", ("same_vocabulary", *names), runner.sizes.kept_rounds
    )
    for name, how in names.items():
        pair = ("same_vocabulary", name)
        yield line_of_time(turns, pair, what, None, f"{shape}; {how}")
        yield line_of_memory(turns, pair, what, None, f"{shape}; {how}")


def training_step(sizes: Sizes, log: dict[str, Any]) -> Iterator[Line]:
    """A step of the demo's models."""
    with tempfile.TemporaryDirectory() as folder:
        file = demo_of(Path(folder), with_models=sizes.with_models)
        runner = Runner(sizes, file, sizes.apart, log)
        kept = runner.turns("step, kept", "step", list(STEPS), sizes.kept_rounds, KEEP_MEMORY)
        given_back = runner.turns("step", "step", list(STEPS), 1)
    of = "the demo's models" if sizes.with_models else "very small models"
    for name in [name for name in STEPS if name != "sft"]:
        what, pair = f"a dual-space step against one of SFT, {STEPS[name]}", (name, "sft")
        target = 1.4 if name == "dual_space" else None
        yield line_of_time(kept, pair, what, target, f"{of}, 8 rows, {_BATCHES} steps, memory kept")
        of_memory = f"{of}, beyond weights and optimizer"
        yield line_of_more_memory(given_back, pair, what, of_memory)


# ---- All of it -------------------------------------------------------------------------------------------

MEASUREMENTS: Mapping[str, Callable[[Sizes, dict[str, Any]], Iterator[Line]]] = {
    "dual_space": dual_space,
    "flat": flat_in_length,
    "same_vocabulary": same_vocabulary_and_sft,
    "one_more": one_loss_more,
    "step": training_step,
}


def measure(sizes: Sizes, besides: str, only: Sequence[str]) -> dict[str, Any]:
    """All lines, ready for JSON."""
    load = os.getloadavg()[0]
    lines, log = [], dict[str, Any]()
    for threads in sizes.threads:
        torch.set_num_threads(threads)
        in_so_many = log[f"threads {threads}"] = dict[str, Any]()
        for name in only:
            print(f"{name}, threads {threads}", file=sys.stderr)
            found = MEASUREMENTS[name](sizes, in_so_many)
            lines += [{**asdict(line), "threads": threads} for line in found]
    loads = {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)}
    instructions = {"instructions": torch.backends.cpu.get_cpu_capability()}
    return {
        "lines": lines,
        "machine": machine("torch", "numpy", "transformers") | instructions | loads,
        "besides": besides,
        "sizes": asdict(sizes),
        "measured": log,
    }


def tables(results: Mapping[str, Any]) -> str:
    """What was measured as Markdown, a table for each number of threads."""
    where = said_of(results["machine"])
    sizes = results["sizes"]
    rounds = f"medians of {sizes['rounds']} rounds, of {sizes['kept_rounds']} where memory is kept"
    besides = f"beside it ran: {results['besides']}"
    told = f"{where}; chunks of {sizes['chunk_memory'] / MIB:,.0f} MiB; {rounds}; {besides}."
    return "\n\n".join(
        itertools.chain.from_iterable(
            (_title(results["machine"], threads), table(_HEAD, map(_cells, lines)), told)
            for threads, lines in _by_threads(results["lines"]).items()
        )
    )


_HEAD = ("what", "how", "asked", "measured", "held")


def _title(machine: Mapping[str, Any], threads: int) -> str:
    count = "one thread" if threads == 1 else f"{threads} threads"
    on = f" on {machine['cpu']}" if "cpu" in machine else ""
    return f"The fused losses beside the published form and others, in {count}{on}:"


def _by_threads(lines: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = {}
    for line in lines:
        found.setdefault(line["threads"], []).append(line)
    return found


def _cells(line: Mapping[str, Any]) -> list[str]:
    value, target, unit = line["value"], line["target"], line["unit"]
    bound = "at least" if line["at_least"] else "at most"
    asked = "" if target is None else f"{bound} {target:g} {unit}".strip()
    if value is None:
        return [line["what"], line["note"], asked, "", ""]
    cells = [line["what"], line["note"], asked, f"{value:g} {unit}".strip()]
    if target is None:
        return [*cells, ""]
    held = (value >= target) if line["at_least"] else (value <= target)
    return [*cells, "yes" if held else "no"]


def run_task(task: str, file: str, name: str, settings: str) -> None:
    """What a process of its own does: one line of JSON, its last."""
    print(json.dumps(TASKS[task](Path(file), name, json.loads(settings))))


REPORT = Report("loss", "Time and peak memory of the fused losses.", tables)


def main() -> None:
    """Measures, or reads what was measured, and prints the table."""
    options = _options()
    if options.task:
        run_task(*options.task)
        return
    sizes = replace(QUICK if options.quick else Sizes(), chunk_memory=options.chunk_memory * MIB)
    sizes = replace(sizes, threads=tuple(options.threads or sizes.threads))
    if options.rounds:
        sizes = replace(sizes, rounds=options.rounds, kept_rounds=options.rounds)
    REPORT.run(options, lambda: measure(sizes, options.besides, options.only))


def _options() -> argparse.Namespace:
    parser = REPORT.parser(quick="everything small: whether it works", besides=True)
    parser.add_argument("--rounds", type=positive, help="turns of each contestant (3; 2 with memory kept)")
    parser.add_argument("--threads", type=positive, nargs="+", help="numbers of them (1 2)")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=[*MEASUREMENTS], help="some lines")
    parser.add_argument(
        "--chunk-memory", type=positive, default=CHUNK_MEMORY // MIB, help=f"MiB ({CHUNK_MEMORY // MIB})"
    )
    parser.add_argument("--task", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
