"""Cross-model attention against its definition: a row, a position, a number at a time, in float64.

That it is the same fused, on every head and mask, is in tests/test_contract.py.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn import functional

from dskd.nn import (
    AttentionProjectors,
    AttentionScales,
    Batch,
    CrossModelAttention,
    Head,
    KeyQueryMatching,
    Objective,
    Reduction,
    States,
    Teacher,
    TeacherModel,
    VocabularyMaps,
)
from dskd.nn.losses.attention import attend, index_of
from dskd.nn.losses.cross_model_attention import Attending
from leaves import Transforms, gradients, term_of
from rounding import ON_PAPER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

TERMS = ["t2s_ce", "t2s_kd", "s2t_kd"]
SIDES = ("teacher", "student")
WIDTHS = {"teacher": 4, "student": 3}
TOKENS = {"teacher": 6, "student": 5}
LN2, LN3 = math.log(2), math.log(3)


# ---- a case, and the library's answer --------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Terms, each a function of the leaves, and counts."""

    sums: dict[str, Tensor]
    counts: dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Leaves by name, all wanting a gradient, the teacher's and the embeddings too; positions by side."""

    leaves: dict[str, Tensor]
    projectors: AttentionProjectors
    row: dict[str, list[int]]
    inputs: dict[str, list[int]]
    labels: dict[str, list[int]]
    transforms: dict[str, Transforms] = field(default_factory=dict)

    def everything(self) -> dict[str, Tensor]:
        return {**self.leaves, **dict(self.projectors.named_parameters())}

    def head(self, side: str) -> Head:
        transforms = self.transforms.get(side, Transforms())
        weight = self.leaves[f"{side}_weight"]
        unreachable = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        unreachable[list(transforms.unreachable)] = True
        return Head(
            weight,
            self.leaves[f"{side}_bias"] if transforms.bias else None,
            transforms.scale,
            transforms.softcap,
            unreachable if transforms.unreachable else None,
        )

    def side(self, side: str) -> States:
        hidden = self.leaves[f"{side}_hidden"]

        def ids(numbers: dict[str, list[int]]) -> Tensor:
            return torch.tensor(numbers[side], dtype=torch.int64, device=hidden.device)

        return States(
            hidden,
            ids(self.labels),
            self.head(side),
            row=ids(self.row),
            inputs=ids(self.inputs),
            embeddings=self.leaves[f"{side}_embeddings"],
            name="labels" if side == "student" else "teacher_labels",
        )

    def model(self) -> TeacherModel:
        maps = VocabularyMaps(to_student=torch.full((len(self.leaves["teacher_weight"]),), -1))
        return TeacherModel(self.head("teacher"), maps, self.leaves["teacher_embeddings"])

    def batch(self, scales: AttentionScales | None = None) -> Batch:
        teacher = Teacher(self.model(), states=self.side("teacher"), scales=scales)
        return Batch(self.side("student"), {"teacher": teacher})

    def objective(
        self, *, matching: KeyQueryMatching | None = None, fused: bool = False, **options: Any
    ) -> Objective:
        made = Objective([CrossModelAttention(**options)], self.head("student"), self.model(), fused=fused)
        made.built["0"] = Attending(self.projectors, matching)
        return made

    def by_library(self, *, scales: AttentionScales | None = None, **options: Any) -> Found:
        objective, batch = self.objective(**options), self.batch(scales)
        found = objective(batch)
        sums = {name: term_of(objective, batch, name) for name in found.sums}
        return Found(sums, dict(found.counts))

    def keeping(self, positions: dict[str, list[int]]) -> Case:
        """The case of some positions, in the order given, by side."""

        def of(numbers: dict[str, list[int]]) -> dict[str, list[int]]:
            return {side: [numbers[side][position] for position in positions[side]] for side in SIDES}

        leaves = dict(self.leaves)
        for side in SIDES:
            hidden = self.leaves[f"{side}_hidden"].detach()
            leaves[f"{side}_hidden"] = hidden[positions[side]].clone().requires_grad_()
        return replace(self, leaves=leaves, row=of(self.row), inputs=of(self.inputs), labels=of(self.labels))


ROWS = {"teacher": [0, 0, 0, 1, 2, 2, 2, 2], "student": [0, 0, 1, 1, 1, 2, 2]}


def random_case(
    seed: int = 0,
    *,
    row: dict[str, list[int]] = ROWS,
    teacher: Transforms | None = None,
    student: Transforms | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Rows of 3, 1, 4 teacher and 2, 3, 2 student positions; D = 4, d = 3; 6 teacher and 5 student ids."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        made = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return made.to(device, dtype).requires_grad_()

    leaves: dict[str, Tensor] = {}
    inputs: dict[str, list[int]] = {}
    labels: dict[str, list[int]] = {}
    for side in SIDES:
        leaves[f"{side}_hidden"] = leaf(len(row[side]), WIDTHS[side])
        leaves[f"{side}_weight"] = leaf(TOKENS[side], WIDTHS[side])
        leaves[f"{side}_bias"] = leaf(TOKENS[side])
        leaves[f"{side}_embeddings"] = leaf(TOKENS[side], WIDTHS[side])
        for tokens in (inputs, labels):
            # not the last two, which a head may not mean
            numbers = torch.randint(0, TOKENS[side] - 1, (len(row[side]),), generator=generator)
            tokens[side] = numbers.tolist()
    projectors = AttentionProjectors(student_width=WIDTHS["student"], teacher_width=WIDTHS["teacher"])
    projectors = projectors.double().to(device)
    with torch.no_grad():
        for parameter in projectors.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    transforms = {"teacher": teacher or Transforms(), "student": student or Transforms()}
    return Case(leaves, projectors, row, inputs, labels, transforms)


CASES: dict[str, Callable[[str], Case]] = {
    "plain": lambda device: random_case(4, device=device),
    "bias and scale": lambda device: random_case(
        5,
        teacher=Transforms(bias=True, scale=0.5),
        student=Transforms(bias=True, scale=1.5),
        device=device,
    ),
    "all of these": lambda device: random_case(
        10,
        teacher=Transforms(bias=True, scale=2.0, softcap=2.5, unreachable=(5,)),
        student=Transforms(bias=True, scale=0.7, softcap=3.0, unreachable=(4,)),
        device=device,
    ),
    "one position a side": lambda device: random_case(1, row={"teacher": [0], "student": [0]}, device=device),
    "rows mixed, one empty, others of one side": lambda device: random_case(
        3,
        row={"teacher": [4, 0, 4, 1, 0, 0], "student": [5, 0, 4, 0, 4, 2, 0, 4]},
        device=device,
    ),
}


# ---- the definition --------------------------------------------------------------------------------------


@dataclass
class Expected:
    """Terms and counts by the definition."""

    terms: dict[str, Tensor]
    counts: dict[str, int]


def by_definition(  # noqa: C901 - one place where the whole definition stands
    case: Case, *, scales: AttentionScales | None = None, **given: Any
) -> Expected:
    """Row by row, position by position; `sg` is `.detach()`."""
    options, leaf, row = CrossModelAttention(**given), case.leaves, case.row
    gate, added = options.gate, options.added
    zero = leaf["student_hidden"].new_zeros((), dtype=torch.float64)
    terms = dict.fromkeys(TERMS, zero)
    counts = {"student_positions": 0, "teacher_positions": 0, "agreed": 0}
    if gate is not None:
        counts["gated"] = 0

    def embedding(side: str, token: int) -> Tensor:
        return leaf[f"{side}_embeddings"][token].detach()

    def index(side: str, position: int) -> list[Tensor]:
        tokens = case.inputs[side][position], case.labels[side][position]
        return [number for token in tokens for number in embedding(side, token)]

    def h_t(position: int) -> Tensor:
        return leaf["teacher_hidden"][position].detach()

    def z_t(position: int) -> dict[int, Tensor]:
        return {token: z.detach() for token, z in logits(case, "teacher", h_t(position), frozen=True).items()}

    def e_added(position: int) -> Tensor:
        if added is None:
            return torch.zeros_like(h_t(position))
        token = case.labels["teacher"][position] if added == "gold" else first_largest(z_t(position))
        return embedding("teacher", token)

    both = sorted(set(row["teacher"]) & set(row["student"]))
    of_teacher = [position for position, its in enumerate(row["teacher"]) if its in both]
    std_k, std_h, std_e = (
        (deviation(map(index_, of_teacher)) for index_ in (lambda j: index("teacher", j), h_t, e_added))
        if scales is None
        else (scales.keys, scales.hidden, scales.added)
    )

    def through(name: str, numbers: Sequence[Tensor]) -> list[Tensor]:
        layer = getattr(case.projectors, name)
        return [
            dot(weights, numbers) + shift for weights, shift in zip(layer.weight, layer.bias, strict=True)
        ]

    for this in both:
        here_s = [position for position, its in enumerate(row["student"]) if its == this]
        here_t = [position for position, its in enumerate(row["teacher"]) if its == this]
        q = [through("query", index("student", i)) for i in here_s]
        k = [[number / std_k for number in index("teacher", j)] for j in here_t]
        v_t = []
        for j in here_t:
            summed = [h / std_h + e / std_e for h, e in zip(h_t(j), e_added(j), strict=True)]
            v_t.append(through("teacher_to_student", summed))
        v_s = [through("student_to_teacher", list(leaf["student_hidden"][i])) for i in here_s]
        scores = [[dot(q_i, k_j) / math.sqrt(len(k_j)) for k_j in k] for q_i in q]

        for i, scores_of_i in zip(here_s, scores, strict=True):
            gold = case.labels["student"][i]
            z_ts = logits(case, "student", torch.stack(mixed(scores_of_i, v_t)), frozen=True)
            z_s = logits(case, "student", leaf["student_hidden"][i], frozen=False)
            hit = first_largest(z_ts) == gold
            terms["t2s_ce"] = terms["t2s_ce"] - log_softmax(z_ts)[gold]
            if gate is None or hit:
                softer = {token: z.detach() / options.teacher_temperature for token, z in z_ts.items()}
                item = divergence(options.divergence, softer, z_s, options.temperature)
                terms["t2s_kd"] = terms["t2s_kd"] + item
            counts["student_positions"] += 1
            for name in ("agreed", "gated") if gate is not None else ("agreed",):
                counts[name] += hit
        for j, position in enumerate(here_t):
            heard = torch.stack(mixed([scores_of_i[j] for scores_of_i in scores], v_s))
            z_st = logits(case, "teacher", heard, frozen=True)
            name = options.s2t_divergence or options.divergence
            item = divergence(name, z_t(position), z_st, options.temperature)
            terms["s2t_kd"] = terms["s2t_kd"] + item
            counts["teacher_positions"] += 1
    return Expected(terms, counts)


def logits(case: Case, side: str, hidden: Tensor, *, frozen: bool) -> dict[int, Tensor]:
    """By id, of the ids that the head can mean."""
    transforms, made = case.transforms.get(side, Transforms()), {}
    for token, row in enumerate(case.leaves[f"{side}_weight"]):
        if token in transforms.unreachable:
            continue
        logit = dot(row.detach() if frozen else row, hidden)
        if transforms.bias:
            shift = case.leaves[f"{side}_bias"][token]
            logit = logit + (shift.detach() if frozen else shift)
        logit = transforms.scale * logit
        if transforms.softcap is not None:
            logit = transforms.softcap * torch.tanh(logit / transforms.softcap)
        made[token] = logit
    return made


def mixed(scores: list[Tensor], values: list[list[Tensor]]) -> list[Tensor]:
    """Values weighted by the softmax of their scores."""
    total = sum_of(score.exp() for score in scores)
    shares = [score.exp() / total for score in scores]
    return [dot(shares, column) for column in zip(*values, strict=True)]


def deviation(vectors: Iterable[Iterable[Tensor]]) -> float:
    """That of n - 1, of all numbers; 1 where there is none."""
    numbers = [number.item() for vector in vectors for number in vector]
    return (statistics.stdev(numbers) if len(numbers) > 1 else 0) or 1.0


def sum_of(numbers: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(numbers)).sum()


def dot(left: Iterable[Tensor], right: Iterable[Tensor]) -> Tensor:
    return sum_of(one * other for one, other in zip(left, right, strict=True))


def first_largest(logits: dict[int, Tensor]) -> int:
    return max(sorted(logits), key=lambda token: logits[token].item())


def log_softmax(logits: dict[int, Tensor]) -> dict[int, Tensor]:
    total = sum_of(logit.exp() for logit in logits.values()).log()
    return {token: logit - total for token, logit in logits.items()}


def divergence(
    name: str, teacher: dict[int, Tensor], student: dict[int, Tensor], temperature: float
) -> Tensor:
    log_p = log_softmax({token: logit / temperature for token, logit in teacher.items()})
    log_q = log_softmax({token: logit / temperature for token, logit in student.items()})
    if name == "reverse_kl":
        log_p, log_q = log_q, log_p
    return sum_of(log_p[token].exp() * (log_p[token] - log_q[token]) for token in log_p)


def numbers_of(terms: Found) -> dict[str, float]:
    return {name: value.item() for name, value in {**terms.sums, **terms.counts}.items()}


# ---- value and every gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("added", ["gold", "prediction", None])
@pytest.mark.parametrize("case", [CASES["plain"], CASES["bias and scale"], CASES["all of these"]])
def test_the_cases_have_positions_on_both_sides_of_the_gate(
    case: Callable[[str], Case], added: str | None
) -> None:
    counts = by_definition(case("cpu"), added=added).counts
    assert 0 < counts["gated"] < counts["student_positions"]


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "reverse": {"divergence": "reverse_kl"},
    "reverse in the teacher's space": {"s2t_divergence": "reverse_kl"},
    "temperature": {"temperature": 1.7},
    "teacher temperature": {"teacher_temperature": 2.5},
    "no gate": {"gate": None},
    "prediction added": {"added": "prediction"},
    "nothing added": {"added": None},
    "scales": {"scales": AttentionScales(1.3, 0.7, 2.0)},
    "head rows": {"added": None, "gate": None, "scales": AttentionScales()},
    "all": {
        "divergence": "reverse_kl",
        "s2t_divergence": "reverse_kl",
        "temperature": 0.8,
        "teacher_temperature": 1.5,
        "gate": None,
        "added": "prediction",
        "scales": AttentionScales(0.9, 1.1, 0.6),
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_terms_gradients_and_counts_equal_the_definition(
    case: Callable[[str], Case], options: dict[str, Any], device: str
) -> None:
    made = case(device)
    found, expected = made.by_library(**options), by_definition(made, **options)
    assert list(found.sums) == TERMS
    leaves = made.everything()
    for name in found.sums:
        torch.testing.assert_close(found.sums[name], expected.terms[name], rtol=1e-11, atol=1e-12)
        mine, theirs = (
            gradients(one, leaves, retain_graph=True) for one in (found.sums[name], expected.terms[name])
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)  # names the leaf that differs
    assert {name: count.item() for name, count in found.counts.items()} == expected.counts


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "as it is"])
def test_every_option_changes_something(option: str) -> None:
    case = CASES["plain"]("cpu")
    assert numbers_of(case.by_library(**OPTIONS[option])) != numbers_of(case.by_library())


def test_the_attentions_gradient_is_that_of_its_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.tensor([2, 0, 2]), torch.tensor([0, 2, 0, 2])
    given = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((3, 4), (4, 4), (3, 3), (4, 2))
    ]
    assert torch.autograd.gradcheck(lambda q, k, v_s, v_t: attend(q, k, v_s, v_t, *rows), given)


# ---- what each term moves --------------------------------------------------------------------------------


MOVED = {
    "t2s_ce": {"query.weight", "query.bias", "teacher_to_student.weight", "teacher_to_student.bias"},
    "t2s_kd": {"student_hidden", "student_weight", "student_bias"},
    # Not query.bias: it adds the same to a teacher position's score with every student position.
    "s2t_kd": {"student_hidden", "query.weight", "student_to_teacher.weight", "student_to_teacher.bias"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("term", TERMS)
def test_a_term_moves_what_the_table_says_and_nothing_else(term: str, options: dict[str, Any]) -> None:
    case = random_case(2, teacher=Transforms(bias=True), student=Transforms(bias=True))
    found = gradients(case.by_library(**options).sums[term], case.everything())
    assert {name for name, gradient in found.items() if gradient.abs().max() > 1e-12} == MOVED[term]


@pytest.mark.parametrize("tied", SIDES)
@pytest.mark.parametrize("term", TERMS)
def test_a_head_that_is_also_the_embeddings_moves_as_a_head_alone(term: str, tied: str) -> None:
    case = random_case(2, teacher=Transforms(bias=True), student=Transforms(bias=True))
    weight = case.leaves[f"{tied}_weight"]
    shared = replace(case, leaves={**case.leaves, f"{tied}_embeddings": weight})
    found = gradients(shared.by_library().sums[term], {"weight": weight})["weight"]
    assert (found.abs().max() > 1e-12) == (f"{tied}_weight" in MOVED[term])


# ---- positions, rows and padding -------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_order_of_positions_does_not_matter(options: dict[str, Any]) -> None:
    case = CASES["plain"]("cpu")
    order = {"teacher": [3, 7, 0, 5, 2, 1, 6, 4], "student": [6, 2, 0, 4, 1, 5, 3]}
    found, expected = case.keeping(order).by_library(**options), case.by_library(**options)
    assert numbers_of(found) == pytest.approx(numbers_of(expected), rel=1e-12)


@pytest.mark.parametrize("added", ["gold", "prediction", None])
def test_a_batch_is_the_sum_of_its_rows_where_the_scales_are_given(added: str | None) -> None:
    case = CASES["plain"]("cpu")
    options: dict[str, Any] = {"added": added, "scales": AttentionScales(1.3, 0.7, 2.0)}
    together = numbers_of(case.by_library(**options))
    alone = [
        numbers_of(
            case.keeping(
                {side: [at for at, its in enumerate(case.row[side]) if its == row] for side in SIDES}
            ).by_library(**options)
        )
        for row in range(3)
    ]
    for name, number in together.items():
        assert number == pytest.approx(sum(numbers[name] for numbers in alone), rel=1e-12), name


def test_rows_where_one_side_has_nothing_change_nothing() -> None:
    case = CASES["rows mixed, one empty, others of one side"]("cpu")
    both = {side: [at for at, row in enumerate(case.row[side]) if row in {0, 4}] for side in SIDES}
    assert all(len(both[side]) < len(case.row[side]) for side in SIDES)
    assert numbers_of(case.by_library()) == numbers_of(case.keeping(both).by_library())


NOTHING = {
    "no rows": {"teacher": [], "student": []},
    "no teacher positions": {"teacher": [], "student": [0, 0, 2]},
    "no student positions": {"teacher": [1, 1], "student": []},
    "no row with both": {"teacher": [1, 1, 3], "student": [0, 2, 0, 2]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("row", NOTHING.values(), ids=NOTHING)
def test_without_positions_every_term_is_zero_and_so_is_the_gradient_of_all_that_is_trained(
    row: dict[str, list[int]], options: dict[str, Any], device: str
) -> None:
    case = random_case(row=row, student=Transforms(bias=True), device=device)
    found = case.by_library(**options)
    assert numbers_of(found) == dict.fromkeys(numbers_of(found), 0)
    total = torch.stack([found.sums[name] for name in TERMS]).sum()
    trained = {
        name: leaf
        for name, leaf in case.everything().items()
        if name in {"student_hidden", "student_weight", "student_bias"} or "." in name
    }
    connected = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    for name, gradient in zip(trained, connected, strict=True):
        assert gradient is not None, f"{name} is not connected"
        assert gradient.eq(0).all(), f"{name}: {gradient}"


def test_a_gate_that_lets_nothing_through_leaves_a_connected_zero() -> None:
    case = CASES["plain"]("cpu")
    with torch.no_grad():
        case.projectors.teacher_to_student.weight.zero_()
        case.projectors.teacher_to_student.bias.zero_()  # all logits tie at 0, so the lowest id is said
    labels = {**case.labels, "student": [3] * len(case.row["student"])}
    found = replace(case, labels=labels).by_library()
    assert found.counts["gated"].item() == 0
    assert found.sums["t2s_kd"].item() == 0
    assert gradients(found.sums["t2s_kd"], case.leaves)["student_hidden"].eq(0).all()
    assert found.sums["t2s_kd"].requires_grad


# ---- the scales ------------------------------------------------------------------------------------------


def test_a_scale_is_the_standard_deviation_of_all_numbers() -> None:
    """Of 1, 3, 5, 7: squares of distances to 4 are 9 + 1 + 1 + 9 = 20, over 3."""
    numbers = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    scales = AttentionScales.of(numbers, 2 * numbers, numbers[None] - 100)
    assert [float(scale) for scale in (scales.keys, scales.hidden, scales.added)] == pytest.approx(
        [math.sqrt(20 / 3), 2 * math.sqrt(20 / 3), math.sqrt(20 / 3)]
    )


@pytest.mark.parametrize("numbers", [[], [5.0], [5.0, 5.0]], ids=str)
def test_where_nothing_varies_the_scale_is_one(numbers: list[float]) -> None:
    given = torch.tensor(numbers, dtype=torch.bfloat16, requires_grad=True)
    scale = AttentionScales.of(given, given, given).keys
    assert isinstance(scale, torch.Tensor)
    assert scale.item() == 1
    assert scale.dtype == torch.float32
    assert not scale.requires_grad


def test_scales_over_whole_tensors_may_be_given_as_published() -> None:
    case, generator = CASES["plain"]("cpu"), torch.Generator().manual_seed(2)
    index, hidden, added = (
        torch.randn(3, 10, width, generator=generator, dtype=torch.float64) for width in (8, 4, 4)
    )
    scales = AttentionScales.of(index, hidden, added)
    assert float(scales.hidden) == pytest.approx(deviation(hidden.flatten(1)))
    found, expected = case.by_library(scales=scales), by_definition(case, scales=scales)
    for name in TERMS:
        torch.testing.assert_close(found.sums[name], expected.terms[name])


# ---- by hand ---------------------------------------------------------------------------------------------


def by_hand() -> Case:
    """One row; two ids and one column a side; both heads have the rows 0 and 1, so that logits are (0, h).

    e_s = (0, 1), e_t = (0, ln2). Query makes (sqrt(2) ln3/ln2 e_s(x), 0), so A = ln3 where both x are 1, else
    0. P_ts is 1, P_st is 4.

    student  x  y  h_s   p_s           softmax(A)    softmax(A) v_t  softmax(z_ts)  said
    first    1  1  ln2   (1/3, 2/3)    (3/4, 1/4)    3 ln2           (1/9, 8/9)     1
    second   0  0  0     (1/2, 1/2)    (1/2, 1/2)    2 ln2           (1/5, 4/5)     1

    teacher  x  y  h_t     p_t             v_t = h_t + e_t(y)  softmax(A^T)  with (4 ln2, 0)  softmax(z_st)
    first    1  0  4 ln2   (1/17, 16/17)   4 ln2               (3/4, 1/4)    3 ln2            (1/9, 8/9)
    second   0  1  -ln2    (2/3, 1/3)      0                   (1/2, 1/2)    2 ln2            (1/5, 4/5)
    """
    numbers = {
        "teacher_hidden": [[4 * LN2], [-LN2]],
        "student_hidden": [[LN2], [0.0]],
        "teacher_weight": [[0.0], [1.0]],
        "student_weight": [[0.0], [1.0]],
        "teacher_embeddings": [[0.0], [LN2]],
        "student_embeddings": [[0.0], [1.0]],
    }
    leaves = {
        name: torch.tensor(values, dtype=torch.float64, requires_grad=True)
        for name, values in numbers.items()
    }
    projectors = AttentionProjectors(student_width=1, teacher_width=1).double()
    with torch.no_grad():
        for parameter in projectors.parameters():
            parameter.zero_()
        projectors.query.weight[0, 0] = math.sqrt(2) * LN3 / LN2
        projectors.teacher_to_student.weight.fill_(1)
        projectors.student_to_teacher.weight.fill_(4)
    return Case(
        leaves,
        projectors,
        row={"teacher": [0, 0], "student": [0, 0]},
        inputs={"teacher": [1, 0], "student": [1, 0]},
        labels={"teacher": [0, 1], "student": [1, 0]},
    )


# KL of (1/9, 8/9) from (1/3, 2/3); of (1/5, 4/5) from halves
FIRST = math.log(1 / 3) / 9 + math.log(4 / 3) * 8 / 9
SECOND = math.log(2 / 5) / 5 + math.log(8 / 5) * 4 / 5
CE = math.log(9 / 8) + math.log(5)
S2T = math.log(9 / 17) / 17 + math.log(18 / 17) * 16 / 17 + math.log(10 / 3) * 2 / 3 + math.log(5 / 12) / 3


@pytest.mark.parametrize(("gate", "t2s_kd"), [("gold", FIRST), (None, FIRST + SECOND)])
def test_two_positions_a_side_worked_out_by_hand(gate: str | None, t2s_kd: float, device: str) -> None:
    case = by_hand()
    on_device = {name: leaf.detach().to(device).requires_grad_() for name, leaf in case.leaves.items()}
    made = replace(case, leaves=on_device, projectors=case.projectors.to(device))
    found = made.by_library(gate=gate, scales=AttentionScales())
    assert found.sums["t2s_ce"].item() == pytest.approx(CE, rel=ON_PAPER)
    assert found.sums["t2s_kd"].item() == pytest.approx(t2s_kd, rel=ON_PAPER)
    assert found.sums["s2t_kd"].item() == pytest.approx(S2T, rel=ON_PAPER)
    counts = {"student_positions": 2, "teacher_positions": 2, "agreed": 1}
    assert {name: count.item() for name, count in found.counts.items()} == (
        counts if gate is None else {**counts, "gated": 1}
    )


def test_the_prediction_added_worked_out_by_hand() -> None:
    """The teacher says 1, then 0: v_t is (5 ln2, -ln2), mixed to (7/2 ln2, 2 ln2); nothing else changes."""
    found = by_hand().by_library(added="prediction", scales=AttentionScales())
    assert found.sums["t2s_ce"].item() == pytest.approx(math.log(1 + 2**-3.5) + math.log(5), rel=ON_PAPER)
    assert found.sums["s2t_kd"].item() == pytest.approx(S2T, rel=ON_PAPER)


def test_the_scales_worked_out_by_hand() -> None:
    """Keys of half the size have A = ln3 / 2 and shares sqrt(3) : 1; v_t is (4/2, -1/2 + 1/4) ln2."""
    found = by_hand().by_library(scales=AttentionScales(keys=2, hidden=2, added=4))
    share = math.sqrt(3) / (1 + math.sqrt(3))
    first, second = share * 2 - (1 - share) / 4, (2 - 1 / 4) / 2
    assert found.sums["t2s_ce"].item() == pytest.approx(
        math.log((1 + 2**-first) * (1 + 2**second)), rel=ON_PAPER
    )


def test_temperatures_worked_out_by_hand() -> None:
    """z_ts (0, 3 ln2) over 3 is (0, ln2), the student's own, at every tau; over 3/2 it is (1/5, 4/5)."""
    for temperature in (1.0, 2.0):
        options: dict[str, Any] = {
            "teacher_temperature": 3.0,
            "temperature": temperature,
            "scales": AttentionScales(),
        }
        same = by_hand().by_library(**options)
        assert same.sums["t2s_kd"].item() == pytest.approx(0, abs=1e-15)
        assert same.sums["t2s_ce"].item() == pytest.approx(CE, rel=ON_PAPER)
    found = by_hand().by_library(teacher_temperature=1.5, scales=AttentionScales()).sums["t2s_kd"]
    assert found.item() == pytest.approx(math.log(3 / 5) / 5 + math.log(6 / 5) * 4 / 5, rel=ON_PAPER)


def test_gradients_worked_out_by_hand() -> None:
    case = by_hand()
    sums = case.by_library(scales=AttentionScales()).sums
    ce, kd, s2t = (gradients(sums[name], case.everything(), retain_graph=True) for name in TERMS)
    # softmax minus one-hot: 8/9 - 1 and 4/5, each times the mixed h_t + e_t(y)
    assert ce["teacher_to_student.weight"].item() == pytest.approx((-1 / 9 * 3 + 4 / 5 * 2) * LN2)
    assert ce["teacher_to_student.bias"].item() == pytest.approx(-1 / 9 + 4 / 5)
    # the first's share times the rest's, times the difference 4 ln2 of values, of A's d/dw = ln2 / sqrt(2)
    assert ce["query.weight"][0, 0].item() == pytest.approx(-1 / 9 * 3 / 16 * 4 * LN2 * LN2 / math.sqrt(2))
    # p_s minus softmax(z_ts): 2/3 - 8/9, where the gate is open
    assert kd["student_hidden"].flatten().tolist() == pytest.approx([-2 / 9, 0])
    assert kd["student_weight"].flatten().tolist() == pytest.approx([2 / 9 * LN2, -2 / 9 * LN2])
    # softmax(z_st) minus p_t: 8/9 - 16/17 and 4/5 - 1/3, by the shares of each student position, times P_st
    first, second = 8 / 9 - 16 / 17, 4 / 5 - 1 / 3
    assert s2t["student_hidden"].flatten().tolist() == pytest.approx(
        [4 * (first * 3 / 4 + second / 2), 4 * (first / 4 + second / 2)]
    )
    assert s2t["query.weight"][0, 0].item() == pytest.approx(first * 3 / 16 * 4 * LN2 * LN2 / math.sqrt(2))


def test_of_ids_that_tie_the_lowest_is_said() -> None:
    case = by_hand()
    with torch.no_grad():
        case.leaves["student_weight"].fill_(1)
    assert case.by_library().counts["agreed"].item() == 1  # the second, whose label is 0


# ---- dtypes ----------------------------------------------------------------------------------------------


def test_attention_is_not_computed_in_what_autocast_would_take(device: str) -> None:
    """The heads are in float64, which autocast leaves alone, so that nothing else could differ."""
    case = random_case(9, device=device)
    narrow = replace(case, projectors=case.projectors.float())
    matching = KeyQueryMatching(8, inner=4).to(device).eval()
    plain, matched = (numbers_of(narrow.by_library(matching=one)) for one in (None, matching))
    with torch.autocast(device, torch.bfloat16):
        assert numbers_of(narrow.by_library()) == plain
        assert numbers_of(narrow.by_library(matching=matching)) == matched


# ---- options ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "l2"}, "there is no divergence 'l2'; take one of"),
        ({"s2t_divergence": "l2"}, "s2t_divergence='l2'; it is one of"),
        ({"gate": "prediction"}, "gate='prediction'; it is one of"),
        ({"added": "label"}, "added='label'; it is one of"),
        ({"normaliser": "pairs"}, "normaliser='pairs'; it is one of"),
        ({"matching": "both"}, "matching='both'; it is one of"),
        ({"temperature": 0.0}, "temperature=0.0; it is a number above 0"),
        ({"temperature": math.nan}, "temperature=nan; it is a number above 0"),
        ({"teacher_temperature": -1.0}, "teacher_temperature=-1.0; it is a number above 0"),
        ({"teacher_temperature": math.inf}, "teacher_temperature=inf; it is a number above 0"),
        ({"kq_rate": -1.0}, "kq_rate=-1.0; it is a number from 0 on"),
    ],
)
def test_an_option_that_there_is_not_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossModelAttention(**options)


def test_the_presets_are_as_published() -> None:
    for name, added in (("dskd_v1", "gold"), ("dskd_v2", "prediction")):
        preset = CrossModelAttention(**CrossModelAttention.presets[name])
        assert (preset.added, preset.gate, preset.normaliser) == (added, "gold", "labels")
        assert (preset.temperature, preset.teacher_temperature) == (1.0, 1.0)
    assert CrossModelAttention.presets["dskd_v1"]["s2t_divergence"] == "kl"


def test_the_preset_of_key_query_matching_is_the_first_papers_loss_and_what_the_public_code_adds() -> None:
    """The means over queries and keys, at a rate of 1, each divided by the student's labels once more."""
    case = random_case()
    loss = CrossModelAttention(**CrossModelAttention.presets["key_query_matching"])
    torch.manual_seed(0)
    made = Objective([loss], case.head("student"), case.model()).double().eval()
    built = made.built["0"]
    assert isinstance(built, Attending)
    matching = built.matching
    assert matching is not None
    found = made(case.batch())

    queries = built.projectors.queries(case.side("student"))
    keys = built.projectors.keys(case.side("teacher"))
    of_queries, of_keys = (matching.networks["discriminator"](one) for one in (queries, keys))
    added = -functional.logsigmoid(of_queries).mean() - functional.logsigmoid(-of_keys).mean()
    plain = Objective([replace(loss, matching=None)], case.head("student"), case.model()).double()
    plain.built["0"] = Attending(built.projectors)
    expected = plain(case.batch()).loss + added / len(ROWS["student"])
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    first = CrossModelAttention(**CrossModelAttention.presets["dskd_v1"])
    assert replace(loss, matching=None, kq_rate=first.kq_rate) == first


def test_a_teacher_whose_embeddings_are_of_another_width_is_refused() -> None:
    case = random_case()
    model = replace(case.model(), embeddings=torch.zeros(6, 9))
    with pytest.raises(ValueError, match=r"embeddings are 9 wide and its states 4: "):
        Objective([CrossModelAttention()], case.head("student"), model)


@pytest.mark.parametrize("without", ["row", "inputs", "embeddings"])
@pytest.mark.parametrize("side", SIDES)
def test_what_attention_compares_has_to_be_there(side: str, without: str) -> None:
    batch, objective = random_case().batch(), random_case().objective()
    teacher = batch.teachers["teacher"]
    assert teacher.states is not None
    nothing: Any = {without: None}
    if side == "student":
        batch = replace(batch, student=replace(batch.student, **nothing))
    else:
        poorer = replace(teacher.states, **nothing)
        batch = replace(batch, teachers={"teacher": replace(teacher, states=poorer)})
    with pytest.raises(ValueError, match=r"give States\(row=, inputs=, embeddings=\) of both models$"):
        objective(batch)


# ---- what a term is divided by ---------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_a_term_is_divided_by_what_it_runs_over_in_the_whole_step(fused: bool) -> None:
    case, step = CASES["plain"]("cpu"), Reduction({"labels": 20, "teacher_labels": 50})
    torch.manual_seed(0)
    matching = KeyQueryMatching(8, inner=4).double().eval()
    found = case.objective(matching=matching, fused=fused)(case.batch(), step)
    sums = {name: value.item() for name, value in found.sums.items()}
    of_student = sums["t2s_ce"] + sums["t2s_kd"] + sums["kq_queries"]
    of_teacher = sums["s2t_kd"] + sums["kq_keys"]
    assert found.loss.item() == pytest.approx(of_student / 20 + of_teacher / 50, rel=1e-12)
    published = case.objective(matching=matching, fused=fused, normaliser="labels")(case.batch(), step)
    assert published.loss.item() == pytest.approx((of_student + of_teacher) / 20, rel=1e-12)


def test_labels_may_be_fewer_than_the_positions_of_the_teacher_that_they_divide() -> None:
    """As published: every term is divided by the student's tokens."""
    case, step = CASES["plain"]("cpu"), Reduction({"labels": 7})
    found = case.objective(normaliser="labels")(case.batch(), step)
    assert len(case.labels["teacher"]) > 7
    assert found.loss.item() == pytest.approx(sum(value.item() for value in found.sums.values()) / 7)


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_does_not_count_the_teachers_positions_is_refused(fused: bool) -> None:
    case = CASES["plain"]("cpu")
    with pytest.raises(ValueError, match=r"the step has None teacher_labels, and the micro-batch has 8: "):
        case.objective(fused=fused)(case.batch(), Reduction({"labels": 7}))


# ---- what is trained beside the student ------------------------------------------------------------------


def test_the_projectors_are_float32_with_bias_and_of_the_shapes_of_the_paper() -> None:
    projectors = AttentionProjectors(student_width=3, teacher_width=4)
    shapes = {name: tuple(item.shape) for name, item in projectors.named_parameters()}
    assert shapes == {
        "query.weight": (8, 6),
        "query.bias": (8,),
        "teacher_to_student.weight": (3, 4),
        "teacher_to_student.bias": (3,),
        "student_to_teacher.weight": (4, 3),
        "student_to_teacher.bias": (4,),
    }
    assert projectors.dtype == torch.float32


@pytest.mark.parametrize("matching", [None, "adversarial", "transport", "frozen"])
def test_what_is_asked_for_is_built(matching: Any) -> None:
    case = random_case()
    options = CrossModelAttention(matching=matching, kq_rate=0.3)
    built = Objective([options], case.head("student"), case.model()).built["0"]
    assert isinstance(built, Attending)
    if built.matching is None:
        assert matching is None
    else:
        assert (built.matching.variant, built.matching.rate) == (matching, 0.3)
    of_players = sum(
        name.startswith(("matching", "projectors.query")) for name, _ in built.named_parameters()
    )
    assert len(built.players()) == (of_players if matching == "adversarial" else 0)


@pytest.mark.parametrize("variant", ["adversarial", "transport", "frozen"])
@pytest.mark.parametrize("scales", [None, AttentionScales(2.0, 1.0, 1.0)], ids=["selected", "given"])
def test_matching_adds_its_terms_over_the_keys_and_queries_of_the_attention(
    variant: Any, scales: AttentionScales | None
) -> None:
    case = CASES["rows mixed, one empty, others of one side"]("cpu")
    matching = KeyQueryMatching(8, variant=variant, inner=5).double().eval()
    found = case.by_library(scales=scales, matching=matching)
    both = {side: [at for at, row in enumerate(case.row[side]) if row in {0, 4}] for side in SIDES}
    student, teacher = (case.keeping(both).side(side) for side in ("student", "teacher"))
    queries = case.projectors.query(index_of(student, torch.float64))
    keys = index_of(teacher, torch.float64)
    expected = matching(queries, keys / (keys.std() if scales is None else 2.0))
    of_matching = {f"kq_{one.name}": one.sum.item() for one in expected}
    of_matching |= {name: number.item() for one in expected for name, number in one.counts.items()}
    plain = numbers_of(case.by_library(scales=scales))
    assert numbers_of(found) == pytest.approx({**plain, **of_matching}, rel=1e-12)
    networks = {name: one for name, one in matching.named_parameters() if one.requires_grad}
    assert bool(networks) is (variant != "frozen")
    everything = {**case.everything(), **networks}
    total = torch.stack([value for name, value in found.sums.items() if name.startswith("kq_")]).sum()
    moved = {name for name, gradient in gradients(total, everything).items() if gradient.abs().max() > 1e-12}
    assert moved - networks.keys() == {"query.weight", "query.bias"}
    # The last bias of a navigator moves both ends of every distance.
    assert moved & networks.keys() == {
        name for name in networks if variant == "adversarial" or not name.endswith("4.bias")
    } | ({"networks.critic.layers.4.bias"} if variant == "transport" else set())
