"""How fast projectors are solved, how far off they are, and what a projected teacher state says.

    python benches/projectors.py            # measures, prints, writes results/projectors.json and README.md
    python benches/projectors.py --table    # the same tables, from the results that are there
    python benches/projectors.py --quick    # small heads, little text: whether it works, not how fast

The pseudo-inverse of PyTorch in float64 is the reference, and in float32, the dtype of the heads, the peer:
`source^T @ torch.linalg.pinv(target^T)`. Times are processor time of one thread: on a busy machine the wall
clock counts the waits of whoever works longest, and threads that wait for each other do so by working.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import assets
import distill
from dskd import Aligner, Vocabulary
from dskd.nn import Projectors, solve_projector
from dskd.nn.projectors import most_frequent
from dskd.train import carry_embeddings, cut_layers
from report import Report, machine, said_of, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

FASTER, DISTANCE = 20, 1e-5
"""What is asked: times as fast as pinv, and the relative Frobenius distance to pinv in float64."""
DTYPES = ("float32", "float64")
NARROW = 384
"""Columns of a narrower student's head; SmolLM2's has 576."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        rounds: of what is quick; pinv has one.
        rows: of the real head at most.
        random: rows and columns of the random heads.
        tokens: of the text that is read for frequencies, and of that on which projectors are compared.
        top_k: tokens of the overlap, where only some are solved on.
    """

    rounds: int = 3
    rows: int = 49_152
    random: tuple[int, int] = (100_000, 896)
    tokens: int = 2_048
    top_k: int = 5_000


QUICK = Sizes(rounds=1, rows=1_500, random=(1_000, 48), tokens=128, top_k=2_000)


@dataclass(frozen=True, slots=True)
class Models:
    """The demo's pair: its teacher, and the head of the student that it starts from."""

    teacher: Any
    tokenizer: Any
    teacher_head: Tensor
    student_head: Tensor
    overlap: Tensor


def models() -> Models:
    """SmolLM2-135M-Instruct, and its head carried over to Mistral's vocabulary."""
    folder = assets.model("smollm2")
    old = AutoTokenizer.from_pretrained(folder)
    new = AutoTokenizer.from_pretrained(assets.tokenizer("mistral-v1"))
    vocabularies = Vocabulary.from_tokenizer(old, roles=distill.ROLES), Vocabulary.from_tokenizer(new)
    teacher: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    student = cut_layers(teacher, distill.LAYERS[:1])  # the head is all that counts here
    carry_embeddings(student, (old, vocabularies[0]), (new, vocabularies[1]))
    return Models(
        teacher,
        old,
        teacher.get_output_embeddings().weight.detach(),
        student.get_output_embeddings().weight.detach(),
        torch.tensor(Aligner(*vocabularies).vocabulary_map.overlap),
    )


# ---- How fast, and how far off ---------------------------------------------------------------------------


def solutions(sizes: Sizes, pair: Models) -> Iterator[dict[str, Any]]:
    """A line for each pair of heads."""
    real = pair.teacher_head[: sizes.rows]
    overlap = pair.overlap[: sizes.rows]
    cut = pair.teacher_head[overlap[:, 0]], moved(pair.student_head[overlap[:, 1]])
    count, columns = sizes.random
    yield solution("SmolLM2's head, and the same moved by 10 %", real, moved(real), sizes)
    yield solution("the demo's pair on its overlap, the student's moved by 10 %", *cut, sizes)
    yield solution("random", drawn(count, columns, 1), drawn(count, columns, 2), sizes)


def drawn(rows: int, columns: int, seed: int) -> Tensor:
    """Normal numbers, float32."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def moved(head: Tensor) -> Tensor:
    """A head with noise of a tenth of its size; so much did the demo's student move in 60 steps."""
    return head + 0.1 * head.pow(2).mean().sqrt() * drawn(head.shape[0], head.shape[1], seed=3)


def solution(name: str, source: Tensor, target: Tensor, sizes: Sizes) -> dict[str, Any]:
    """One projector by each way, and both by dskd's."""
    overlap = torch.arange(len(source))[:, None].expand(-1, 2)
    found, one = timed(lambda: solve_projector(source, target), sizes.rounds)

    def solved() -> Projectors:
        return Projectors(student_weight=target, teacher_weight=source, overlap=overlap, centre=False)

    both, two = timed(solved, sizes.rounds)
    moving = target.clone().requires_grad_()
    _, refresh = timed(lambda: both.refresh(student_weight=moving, teacher_weight=source), sizes.rounds)
    single, in_single = timed(lambda: source.mT @ torch.linalg.pinv(target.mT), 1)
    wide = source.double(), target.double()
    exact, in_double = timed(lambda: wide[0].mT @ torch.linalg.pinv(wide[1].mT), 1)
    return {
        "heads": name,
        "rows": len(source),
        "columns": [source.shape[1], target.shape[1]],
        "seconds": {
            "solve_projector": one,
            "both": two,
            "refresh": refresh,
            "pinv_float32": in_single,
            "pinv_float64": in_double,
        },
        "distance": {"solve_projector": distance(found, exact), "pinv_float32": distance(single, exact)},
    }


def timed(call: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """What it returns, and the median of its seconds."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        found = call()
        seconds.append(time.process_time() - start)
    return found, statistics.median(seconds)


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative, Frobenius."""
    return float((found.double() - exact).norm() / exact.norm())


# ---- What a projected state says -------------------------------------------------------------------------


def sayings(sizes: Sizes, pair: Models) -> Iterator[dict[str, Any]]:
    """Projected teacher states, read by the student's head, beside what the teacher says on the overlap."""
    hidden, sums = states(sizes, pair)
    overlap = pair.overlap
    weights = (sums[overlap[:, 0]] / sizes.tokens).clamp(min=1e-6)
    kept = overlap[most_frequent(overlap, weights, sizes.top_k)]
    ways: dict[str, tuple[Tensor, dict[str, Any]]] = {
        "plain": (overlap, {"centre": False}),
        "centred": (overlap, {"centre": True}),
        "weighted by frequency": (overlap, {"weights": weights, "centre": False}),
        "weighted and centred": (overlap, {"weights": weights, "centre": True}),
        f"the {len(kept):,} most frequent": (kept, {"centre": False}),
        f"the {len(kept):,} most frequent, centred": (kept, {"centre": True}),
    }
    for name, head in students(pair):
        for way, (rows, options) in ways.items():
            projectors = Projectors(
                student_weight=head, teacher_weight=pair.teacher_head, overlap=rows, **options
            )
            with torch.no_grad():
                projected = projectors.to_student(hidden)
            found = said(hidden @ pair.teacher_head.mT, projected @ head.mT, overlap)
            yield {"student": name, "way": way, **found}


def students(pair: Models) -> Iterator[tuple[str, Tensor]]:
    """Heads from one that the teacher's differs from by nothing to such as it cannot be mapped on."""
    head = pair.student_head
    directions = torch.linalg.eigh(head.double().mT @ head.double()).eigenvectors.flip(1).float()
    rotation = torch.linalg.qr(drawn(head.shape[1], head.shape[1], seed=4)).Q
    yield "the demo's, at its start", head
    yield "the same, moved by 10 %", moved(head)
    yield f"its {NARROW} largest directions", head @ directions[:, :NARROW]
    yield f"{NARROW} random directions", head @ rotation[:, :NARROW]


@torch.no_grad()
def states(sizes: Sizes, pair: Models) -> tuple[Tensor, Tensor]:
    """The teacher's states `[tokens, D]` on one text, and its probabilities `[V_t]` summed over another."""
    text = assets.prose("wiki")[: 16 * sizes.tokens]
    ids = pair.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
    halves = ids[: 2 * sizes.tokens].view(2, -1, 128)  # rows of 128 tokens
    seen, compared = (pair.teacher.base_model(half).last_hidden_state.flatten(0, 1) for half in halves)
    sums = sum((part @ pair.teacher_head.mT).softmax(-1).sum(0) for part in seen.split(256))
    return compared, torch.as_tensor(sums)


def said(teacher: Tensor, student: Tensor, overlap: Tensor) -> dict[str, float]:
    """How alike both are on the overlap, and how much the projected state says of other tokens."""
    both = teacher[:, overlap[:, 0]].log_softmax(-1), student[:, overlap[:, 1]].log_softmax(-1)
    agreed = both[0].argmax(-1) == both[1].argmax(-1)
    inside = student.softmax(-1)[:, overlap[:, 1]].sum(-1)
    kl = functional.kl_div(both[1], both[0], reduction="batchmean", log_target=True)
    return {
        "agreement": float(agreed.float().mean()),
        "kl": max(float(kl), 0.0),
        "outside": float(1 - inside.mean()),
    }


# ---- All of it -------------------------------------------------------------------------------------------


def measure(sizes: Sizes, besides: str) -> dict[str, Any]:
    """All lines, ready for JSON."""
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    pair = models()
    found = {"solutions": list(solutions(sizes, pair)), "sayings": list(sayings(sizes, pair))}
    loads = {"load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1)}
    own = {"threads": torch.get_num_threads()}
    return {
        **found,
        "overlap": len(pair.overlap),
        "machine": machine("torch") | own | loads,
        "besides": besides,
        "sizes": asdict(sizes),
    }


def tables(results: Mapping[str, Any]) -> str:
    """What was measured as Markdown."""
    sizes, where = results["sizes"], said_of(results["machine"])
    compared = [f"{how}, pinv in {dtype}" for how in ("one", "both") for dtype in DTYPES]
    asked = (
        f"How many times as fast as pinv (asked: {FASTER}), and the relative Frobenius distance to pinv in "
        f"float64 (asked: at most {DISTANCE:.0e}):"
    )
    compared_on = (
        f"What {sizes['tokens']:,} states of the teacher on Wikipedia say, projected and read by the "
        f"student's head, beside what the teacher says, on the {results['overlap']:,} tokens that both have; "
        f"frequencies are of {sizes['tokens']:,} other tokens:"
    )
    speeds = ["heads", "rows", *compared, "distance", "of pinv in float32"]
    seconds = ["heads", "rows", "one", "both", "refresh", *(f"pinv in {dtype}" for dtype in DTYPES)]
    says = ["student's head", "solved", "same argmax", "KL, nats", "mass outside"]
    parts = [
        asked,
        table(speeds, map(_ratio_cells, results["solutions"])),
        "Seconds:",
        table(seconds, map(_second_cells, results["solutions"])),
        compared_on,
        table(says, map(_saying_cells, results["sayings"])),
        f"{where}; medians of {sizes['rounds']} rounds, pinv once; beside it ran: {results['besides']}.",
    ]
    return "\n\n".join(parts)


def _heads(line: Mapping[str, Any]) -> list[str]:
    return [line["heads"], f"{line['rows']:,} x {line['columns'][1]:,}"]


def _ratio_cells(line: Mapping[str, Any]) -> list[str]:
    seconds, off = line["seconds"], line["distance"]
    peers = seconds["pinv_float32"], seconds["pinv_float64"]
    ratios = [peer / seconds["solve_projector"] for peer in peers]
    ratios += [2 * peer / seconds["both"] for peer in peers]
    return [
        *_heads(line),
        *(f"{ratio:.3g}" for ratio in ratios),
        f"{off['solve_projector']:.1e}",
        f"{off['pinv_float32']:.1e}",
    ]


def _second_cells(line: Mapping[str, Any]) -> list[str]:
    return [*_heads(line), *(f"{seconds:.3g}" for seconds in line["seconds"].values())]


def _saying_cells(line: Mapping[str, Any]) -> list[str]:
    return [
        line["student"],
        line["way"],
        f"{line['agreement']:.1%}",
        f"{line['kl']:.3g}",
        f"{line['outside']:.1%}",
    ]


REPORT = Report("projectors", "How fast projectors are solved, and what they say.", tables)


def main() -> None:
    """Measures, or reads what was measured, and prints the tables."""
    options = REPORT.parser(quick="everything small: whether it works", besides=True).parse_args()
    REPORT.run(options, lambda: measure(QUICK if options.quick else Sizes(), options.besides))


if __name__ == "__main__":
    main()
