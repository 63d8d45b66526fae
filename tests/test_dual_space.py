"""Dual-space distillation against its definition: one pair and one number at a time, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from dskd.nn import AlignedStates, DualSpaceLoss, Head, Projectors, TermSums, dual_space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from dskd.nn.divergences import Divergence

UNMAPPED = -1
TERMS = ["t2s_ce", "t2s_kd", "s2t_kd"]
DIVERGENCES: list[Divergence] = ["kl", "reverse_kl"]
LN2, LN3 = math.log(2), math.log(3)


# ---- a case, and the library's answer --------------------------------------------------------------------


@dataclass(frozen=True)
class Transforms:
    """What a head does besides its product, and which ids it cannot mean."""

    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    unreachable: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """Leaves by name, all float64 and all wanting a gradient, the teacher's too."""

    leaves: dict[str, Tensor]
    labels: list[int]
    vocabulary_map: list[int]
    teacher: Transforms = field(default_factory=Transforms)
    student: Transforms = field(default_factory=Transforms)

    def head(self, side: str) -> Head:
        transforms = self.teacher if side == "teacher" else self.student
        weight = self.leaves[f"{side}_weight"]
        unreachable = torch.zeros(len(weight), dtype=torch.bool)
        unreachable[list(transforms.unreachable)] = True
        return Head(
            weight,
            self.leaves[f"{side}_bias"] if transforms.bias else None,
            transforms.scale,
            transforms.softcap,
            unreachable if transforms.unreachable else None,
        )

    def states(self) -> AlignedStates:
        student_hidden, student = self.leaves["student_hidden"], self.head("student")
        return AlignedStates(
            teacher_hidden=self.leaves["teacher_hidden"],
            student_hidden=student_hidden,
            student_logits=student.logits(student_hidden),
            labels=torch.tensor(self.labels, dtype=torch.int64),
            teacher_head=self.head("teacher"),
            student_head=student,
        )

    def by_library(self, **options: Any) -> TermSums:
        return dual_space(
            self.states(),
            self.leaves["teacher_to_student"],
            self.leaves["student_to_teacher"],
            torch.tensor(self.vocabulary_map),
            **options,
        )


def random_case(
    seed: int = 0,
    *,
    pairs: int = 12,
    teacher: Transforms | None = None,
    student: Transforms | None = None,
) -> Case:
    """12 pairs, D = 4 and d = 3, 6 teacher ids (one unmapped at least) and 5 student ids."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    leaves = {
        "teacher_hidden": leaf(pairs, 4),
        "student_hidden": leaf(pairs, 3),
        "teacher_weight": leaf(6, 4),
        "teacher_bias": leaf(6),
        "student_weight": leaf(5, 3),
        "student_bias": leaf(5),
        "teacher_to_student": leaf(4, 3),
        "student_to_teacher": leaf(3, 4),
    }
    labels = torch.randint(0, 4, (pairs,), generator=generator).tolist()
    return Case(
        leaves,
        labels,
        vocabulary_map=[1, UNMAPPED, 3, 0, 2, UNMAPPED],
        teacher=teacher or Transforms(),
        student=student or Transforms(),
    )


CASES: dict[str, Callable[[], Case]] = {
    "plain": lambda: random_case(4),
    "bias and scale": lambda: random_case(
        3, teacher=Transforms(bias=True, scale=0.5), student=Transforms(bias=True, scale=1.5)
    ),
    "soft cap": lambda: random_case(4, teacher=Transforms(softcap=1.5), student=Transforms(softcap=0.8)),
    "unreachable ids": lambda: random_case(
        4, teacher=Transforms(unreachable=(0, 5)), student=Transforms(unreachable=(4,))
    ),
    "all of these": lambda: random_case(
        6,
        teacher=Transforms(bias=True, scale=2.0, softcap=2.5, unreachable=(5,)),
        student=Transforms(bias=True, scale=0.7, softcap=3.0, unreachable=(4,)),
    ),
}


# ---- the definition --------------------------------------------------------------------------------------


@dataclass
class Expected:
    """Terms and counts by the definition."""

    terms: dict[str, Tensor]
    unmapped: int = 0
    agreed: int = 0
    gated: int = 0


def by_definition(
    case: Case,
    *,
    divergence_name: str = "kl",
    temperature: float = 1.0,
    gate: str | None = None,
    target: str = "prediction",
) -> Expected:
    """Section by section of the definition, for one pair after the other; `sg` is `.detach()`."""
    leaf = case.leaves
    weight = {side: list(leaf[f"{side}_weight"]) for side in ("teacher", "student")}
    bias = {
        side: list(leaf[f"{side}_bias"]) if transforms.bias else [torch.zeros((), dtype=torch.float64)] * 6
        for side, transforms in (("teacher", case.teacher), ("student", case.student))
    }

    def logits(side: str, hidden: Tensor, *, frozen: bool) -> list[Tensor]:
        """Of the ids that a head can mean; of the others none."""
        transforms = case.teacher if side == "teacher" else case.student
        made = []
        for token, (row, shift) in enumerate(zip(weight[side], bias[side], strict=False)):
            if token not in transforms.unreachable:
                row_, shift_ = (row.detach(), shift.detach()) if frozen else (row, shift)
                logit = transforms.scale * (sum_of(row_ * hidden) + shift_)
                if transforms.softcap is not None:
                    logit = transforms.softcap * torch.tanh(logit / transforms.softcap)
                made.append(logit)
        return made

    def ids(side: str) -> list[int]:
        transforms = case.teacher if side == "teacher" else case.student
        return [token for token in range(len(weight[side])) if token not in transforms.unreachable]

    expected = Expected({name: torch.zeros((), dtype=torch.float64) for name in TERMS})
    for pair, gold in enumerate(case.labels):
        h_t, h_s = leaf["teacher_hidden"][pair].detach(), leaf["student_hidden"][pair]
        z_t = [logit.detach() for logit in logits("teacher", h_t, frozen=True)]
        z_s = logits("student", h_s, frozen=False)
        z_ts = logits("student", product(h_t, leaf["teacher_to_student"]), frozen=True)
        z_st = logits("teacher", product(h_s, leaf["student_to_teacher"]), frozen=True)

        prediction = case.vocabulary_map[ids("teacher")[first_largest(z_t)]]
        y = prediction if target == "prediction" else gold
        said = ids("student")[first_largest(z_ts)]
        expected.unmapped += prediction == UNMAPPED
        expected.agreed += said == y
        if y != UNMAPPED:
            expected.terms["t2s_ce"] = expected.terms["t2s_ce"] - log_softmax(z_ts)[ids("student").index(y)]
        if gate is None or said == (prediction if gate == "prediction" else gold):
            expected.gated += 1
            frozen = [logit.detach() for logit in z_ts]
            item = divergence(divergence_name, frozen, z_s, temperature)
            expected.terms["t2s_kd"] = expected.terms["t2s_kd"] + item
        item = divergence(divergence_name, z_t, z_st, temperature)
        expected.terms["s2t_kd"] = expected.terms["s2t_kd"] + item
    return expected


def sum_of(numbers: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(numbers)).sum()


def product(hidden: Tensor, projector: Tensor) -> Tensor:
    columns = (projector[:, column] for column in range(projector.shape[1]))
    return torch.stack([sum_of(hidden * column) for column in columns])


def first_largest(logits: list[Tensor]) -> int:
    numbers = [logit.item() for logit in logits]
    return numbers.index(max(numbers))


def log_softmax(logits: list[Tensor]) -> list[Tensor]:
    total = sum_of(logit.exp() for logit in logits).log()
    return [logit - total for logit in logits]


def divergence(name: str, teacher: list[Tensor], student: list[Tensor], temperature: float) -> Tensor:
    log_p = log_softmax([logit / temperature for logit in teacher])
    log_q = log_softmax([logit / temperature for logit in student])
    if name == "reverse_kl":
        log_p, log_q = log_q, log_p
    return sum_of(left.exp() * (left - right) for left, right in zip(log_p, log_q, strict=True))


def gradients(term: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of every leaf; zero where the term does not depend on it."""
    if not term.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    found = torch.autograd.grad(term, list(leaves.values()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


TRAINABLE = ["student_hidden", "student_weight", "student_bias", "teacher_to_student", "student_to_teacher"]


def trainable(case: Case) -> dict[str, Tensor]:
    return {name: case.leaves[name] for name in TRAINABLE}


# ---- value and every gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_cases_have_pairs_on_both_sides_of_every_choice(case: Callable[[], Case]) -> None:
    made = case()
    pairs = len(made.labels)
    for target in ("prediction", "gold"):
        expected = by_definition(made, gate=target, target=target)
        assert 0 < expected.unmapped < pairs
        assert 0 < expected.agreed < pairs
        assert 0 < expected.gated < pairs


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("target", ["prediction", "gold"])
@pytest.mark.parametrize("gate", [None, "prediction", "gold"])
@pytest.mark.parametrize("divergence_name", DIVERGENCES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_terms_gradients_and_counts_equal_the_definition(
    case: Callable[[], Case], divergence_name: Divergence, gate: str | None, target: str, temperature: float
) -> None:
    options: dict[str, Any] = {
        "divergence_name": divergence_name,
        "temperature": temperature,
        "gate": gate,
        "target": target,
    }
    made = case()
    found, expected = made.by_library(**options), by_definition(made, **options)
    assert set(found.sums) == set(TERMS)
    for name in TERMS:
        torch.testing.assert_close(found.sums[name], expected.terms[name], rtol=1e-11, atol=1e-12)
        mine, theirs = (
            gradients(found.sums[name], trainable(made)),
            gradients(expected.terms[name], trainable(made)),
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)  # names the leaf that differs
    assert found.counts["unmapped"].item() == expected.unmapped
    assert found.counts["agreed"].item() == expected.agreed
    if gate is not None:
        assert found.counts["gated"].item() == expected.gated


@pytest.mark.parametrize(
    ("spaces", "names"), [("both", TERMS), ("student", ["t2s_ce", "t2s_kd"]), ("teacher", ["s2t_kd"])]
)
@pytest.mark.parametrize("gate", [None, "prediction"])
def test_a_space_alone_has_its_own_terms_unchanged(spaces: str, names: list[str], gate: str | None) -> None:
    case = random_case()
    both, found = by_definition(case, gate=gate), case.by_library(spaces=spaces, gate=gate)
    assert set(found.sums) == set(names)
    assert found.counts["unmapped"].item() == both.unmapped
    for name in names:
        torch.testing.assert_close(found.sums[name], both.terms[name])
        mine, theirs = (
            gradients(found.sums[name], trainable(case)),
            gradients(both.terms[name], trainable(case)),
        )
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_unreachable_ids_get_no_gradient_and_change_nothing(side: str) -> None:
    transforms = Transforms(bias=True, unreachable=(4,))
    case = random_case(5, teacher=transforms, student=transforms)
    before = case.by_library().sums
    for name in TERMS:
        assert gradients(before[name], trainable(case))["student_weight"][4].eq(0).all()
    with torch.no_grad():
        case.leaves[f"{side}_weight"][4] = 9.0
        case.leaves[f"{side}_bias"][4] = 100.0
    after = case.by_library().sums
    for name in TERMS:
        torch.testing.assert_close(after[name], before[name])


def test_a_prediction_is_never_an_unreachable_id() -> None:
    case = random_case(6)
    with torch.no_grad():
        case.leaves["teacher_bias"][1] = 100.0  # the largest of all, and unmapped
    masked = replace(case, teacher=Transforms(bias=True, unreachable=(1,)))
    plain = replace(case, teacher=Transforms(bias=True))
    assert plain.by_library().counts["unmapped"].item() == len(case.labels)
    assert masked.by_library().counts["unmapped"].item() == by_definition(masked).unmapped < len(case.labels)


def test_temperature_is_not_of_the_cross_entropy() -> None:
    case = random_case()
    cold, warm = case.by_library(temperature=1.0).sums, case.by_library(temperature=3.0).sums
    assert torch.equal(cold["t2s_ce"], warm["t2s_ce"])
    assert warm["t2s_kd"] < cold["t2s_kd"]
    assert warm["s2t_kd"] < cold["s2t_kd"]


# ---- what each term moves --------------------------------------------------------------------------------


def moved_by(term: str, **options: Any) -> set[str]:
    """The leaves that have a gradient other than zero; the heads have a bias."""
    case = random_case(7, teacher=Transforms(bias=True), student=Transforms(bias=True))
    found = gradients(case.by_library(**options).sums[term], case.leaves)
    return {name for name, gradient in found.items() if gradient.ne(0).any()}


OF_STUDENTS = {"student_hidden", "student_weight", "student_bias", "teacher_to_student", "student_to_teacher"}
HOWEVER = [
    {"divergence_name": name, "gate": gate} for name in DIVERGENCES for gate in (None, "prediction", "gold")
]


@pytest.mark.parametrize("options", HOWEVER, ids=str)
def test_t2s_ce_moves_the_projector_to_the_student_only(options: dict[str, Any]) -> None:
    assert moved_by("t2s_ce", **options) & OF_STUDENTS == {"teacher_to_student"}


@pytest.mark.parametrize("options", HOWEVER, ids=str)
def test_t2s_kd_moves_the_student_and_its_head_only(options: dict[str, Any]) -> None:
    assert moved_by("t2s_kd", **options) & OF_STUDENTS == {"student_hidden", "student_weight", "student_bias"}


@pytest.mark.parametrize("options", HOWEVER, ids=str)
def test_s2t_kd_moves_the_students_body_and_a_trained_projector_only(options: dict[str, Any]) -> None:
    assert moved_by("s2t_kd", **options) & OF_STUDENTS == {"student_hidden", "student_to_teacher"}


@pytest.mark.parametrize("term", TERMS)
def test_no_term_moves_the_teachers_head(term: str) -> None:
    assert not moved_by(term) & {"teacher_weight", "teacher_bias"}


@pytest.mark.parametrize("term", TERMS)
def test_no_term_moves_the_teachers_body(term: str) -> None:
    assert "teacher_hidden" not in moved_by(term)


def with_projectors(kind: str) -> tuple[Case, DualSpaceLoss]:
    """A case whose projectors are solved on heads in float64, in a module."""
    case = random_case(8)
    overlap = torch.tensor([[0, 1], [2, 3], [3, 0], [4, 2]])
    projectors = Projectors(
        case.leaves["teacher_weight"],
        case.leaves["student_weight"],
        overlap,
        student_to_teacher=cast("Any", kind),
    ).double()
    case.leaves["teacher_to_student"] = projectors.teacher_to_student
    case.leaves["student_to_teacher"] = projectors.student_to_teacher
    return case, DualSpaceLoss(projectors, torch.tensor(case.vocabulary_map))


@pytest.mark.parametrize(
    ("term", "kind", "moved"),
    [
        ("t2s_ce", "solved", {"teacher_to_student"}),
        ("t2s_kd", "solved", {"student_hidden", "student_weight"}),
        ("s2t_kd", "solved", {"student_hidden"}),
        ("t2s_ce", "trained", {"teacher_to_student"}),
        ("t2s_kd", "trained", {"student_hidden", "student_weight"}),
        ("s2t_kd", "trained", {"student_hidden", "student_to_teacher"}),
    ],
)
def test_a_term_of_the_module_moves_what_the_table_says(term: str, kind: str, moved: set[str]) -> None:
    case, module = with_projectors(kind)
    leaves = {name: leaf for name, leaf in trainable(case).items() if leaf.requires_grad}
    assert ("student_to_teacher" in leaves) == (kind == "trained")
    found = gradients(module(case.states()).sums[term], leaves)
    assert {name for name, gradient in found.items() if gradient.ne(0).any()} == moved


# ---- nothing aligned -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["prediction", "gold"])
@pytest.mark.parametrize("gate", [None, "prediction", "gold"])
@pytest.mark.parametrize("divergence_name", DIVERGENCES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_without_pairs_every_term_is_zero_and_so_is_the_gradient_of_all_that_is_trained(
    case: Callable[[], Case], divergence_name: Divergence, gate: str | None, target: str
) -> None:
    made = case()
    made = replace(made, labels=[], leaves={**made.leaves, **empty_states()})
    found = made.by_library(divergence_name=divergence_name, gate=gate, target=target)
    assert {name: term.item() for name, term in found.sums.items()} == dict.fromkeys(TERMS, 0.0)
    assert {name: count.item() for name, count in found.counts.items()} == dict.fromkeys(found.counts, 0)
    total = torch.stack(list(found.sums.values())).sum()
    used = [name for name in TRAINABLE if made.student.bias or name != "student_bias"]
    connected = torch.autograd.grad(total, [made.leaves[name] for name in used], allow_unused=True)
    for name, gradient in zip(used, connected, strict=True):
        assert gradient is not None, f"{name} is not connected"
        assert gradient.eq(0).all(), f"{name}: {gradient}"


def empty_states() -> dict[str, Tensor]:
    return {
        "teacher_hidden": torch.empty(0, 4, dtype=torch.float64),
        "student_hidden": torch.empty(0, 3, dtype=torch.float64, requires_grad=True),
    }


@pytest.mark.parametrize("gate", [None, "prediction"])
def test_with_nothing_but_unmapped_predictions_the_first_two_terms_are_connected_zeros(
    gate: str | None,
) -> None:
    case = replace(random_case(), vocabulary_map=[UNMAPPED] * 6)
    found = case.by_library(gate=gate)
    assert found.sums["t2s_ce"].item() == 0
    (projector,) = torch.autograd.grad(
        found.sums["t2s_ce"], case.leaves["teacher_to_student"], allow_unused=True
    )
    assert projector is not None
    assert projector.eq(0).all()
    assert found.counts["unmapped"].item() == len(case.labels)
    assert (found.sums["t2s_kd"].item() == 0) == (gate is not None)
    assert found.sums["s2t_kd"] > 0


# ---- by hand ---------------------------------------------------------------------------------------------


def by_hand() -> Case:
    """Two ids and one column on each side, so that every softmax is of `(0, number)`.

    pair    h_t   p_t           z_ts = 2 h_t  softmax       h_s   p_s           z_st = h_s    said  y
    first   ln2   (1/3, 2/3)    (0, 2 ln2)    (1/5, 4/5)    ln3   (1/4, 3/4)    (0, ln3)      1     1
    second  -ln2  (2/3, 1/3)    (0, -2 ln2)   (4/5, 1/5)    0     (1/2, 1/2)    (0, 0)        0     none
    """
    numbers = {
        "teacher_hidden": [[LN2], [-LN2]],
        "student_hidden": [[LN3], [0.0]],
        "teacher_weight": [[0.0], [1.0]],
        "student_weight": [[0.0], [1.0]],
        "teacher_to_student": [[2.0]],
        "student_to_teacher": [[1.0]],
    }
    leaves = {
        name: torch.tensor(values, dtype=torch.float64, requires_grad=True)
        for name, values in numbers.items()
    }
    return Case(leaves, labels=[1, 0], vocabulary_map=[UNMAPPED, 1])


FIRST = math.log(4 / 5) / 5 + math.log(16 / 15) * 4 / 5
SECOND = math.log(8 / 5) * 4 / 5 + math.log(2 / 5) / 5
S2T = math.log(4 / 3) / 3 + math.log(8 / 9) * 2 / 3 + math.log(4 / 3) * 2 / 3 + math.log(2 / 3) / 3


@pytest.mark.parametrize(
    ("gate", "target", "t2s_ce", "t2s_kd", "agreed"),
    [
        (None, "prediction", math.log(5 / 4), FIRST + SECOND, 1),
        ("prediction", "prediction", math.log(5 / 4), FIRST, 1),
        (None, "gold", 2 * math.log(5 / 4), FIRST + SECOND, 2),
        ("gold", "gold", 2 * math.log(5 / 4), FIRST + SECOND, 2),
    ],
)
def test_two_pairs_worked_out_by_hand(
    gate: str | None, target: str, t2s_ce: float, t2s_kd: float, agreed: int
) -> None:
    found = by_hand().by_library(gate=gate, target=target)
    assert found.sums["t2s_ce"].item() == pytest.approx(t2s_ce, rel=1e-14)
    assert found.sums["t2s_kd"].item() == pytest.approx(t2s_kd, rel=1e-14)
    assert found.sums["s2t_kd"].item() == pytest.approx(S2T, rel=1e-14)
    assert found.counts["unmapped"].item() == 1
    assert found.counts["agreed"].item() == agreed


def test_the_divergence_at_a_temperature_worked_out_by_hand() -> None:
    """At 2 the first softmaxes are of ln2 and ln3 / 2, the last of ln2 / 2: squares of one another."""
    found = by_hand().by_library(temperature=2.0, gate="prediction")
    q = math.sqrt(3) / (1 + math.sqrt(3))
    kd = math.log(1 / 3 / (1 - q)) / 3 + math.log(2 / 3 / q) * 2 / 3
    assert found.sums["t2s_kd"].item() == pytest.approx(kd, rel=1e-13)
    assert found.sums["t2s_ce"].item() == pytest.approx(math.log(5 / 4), rel=1e-14)


def test_the_gradients_of_two_pairs_worked_out_by_hand() -> None:
    case = by_hand()
    sums = case.by_library().sums
    ce, kd, s2t = (gradients(sums[name], case.leaves) for name in TERMS)
    # softmax minus one-hot, times h_t: (4/5 - 1) ln2; the second pair has no label
    assert ce["teacher_to_student"].item() == pytest.approx(-LN2 / 5)
    # p_s minus softmax(z_ts): 3/4 - 4/5 and 1/2 - 1/5, times the head's row (0, 1)
    assert kd["student_hidden"].flatten().tolist() == pytest.approx([-1 / 20, 3 / 10])
    # the same, times h_s, which is zero in the second pair
    assert kd["student_weight"].flatten().tolist() == pytest.approx([LN3 / 20, -LN3 / 20])
    # 3/4 - 2/3 and 1/2 - 1/3, times the projector; and times h_s
    assert s2t["student_hidden"].flatten().tolist() == pytest.approx([1 / 12, 1 / 6])
    assert s2t["student_to_teacher"].item() == pytest.approx(LN3 / 12)


def with_ties(labels: list[int], vocabulary_map: list[int]) -> Case:
    """One pair; three ids on both sides, the last two of which have the same row, so that they tie."""
    case = by_hand()
    rows = torch.tensor([[0.0], [1.0], [1.0]], dtype=torch.float64)
    leaves = {**case.leaves, "teacher_weight": rows.clone(), "student_weight": rows.clone()}
    leaves["teacher_hidden"], leaves["student_hidden"] = (
        case.leaves[name][:1].detach().requires_grad_() for name in ("teacher_hidden", "student_hidden")
    )
    return Case(leaves, labels, vocabulary_map)


def test_of_ids_that_tie_the_teacher_predicts_the_lowest() -> None:
    assert with_ties([0], [2, 2, UNMAPPED]).by_library().counts["unmapped"].item() == 0
    assert with_ties([0], [2, UNMAPPED, 2]).by_library().counts["unmapped"].item() == 1


def test_of_ids_that_tie_the_projected_teacher_says_the_lowest() -> None:
    lowest, highest = with_ties([1], [0, 1, 2]), with_ties([2], [0, 2, 1])
    for gate in ("prediction", "gold"):
        assert lowest.by_library(gate=gate).counts["gated"].item() == 1
        assert highest.by_library(gate=gate).counts["gated"].item() == 0
    assert lowest.by_library().counts["agreed"].item() == 1
    assert highest.by_library().counts["agreed"].item() == 0


# ---- dtypes, and the module ------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence_name", DIVERGENCES)
def test_models_in_bfloat16_have_float32_sums_close_to_the_definition(divergence_name: Divergence) -> None:
    case = random_case(9)
    of_models = ("teacher_hidden", "student_hidden", "teacher_weight", "student_weight")
    half = {
        name: leaf.detach().to(torch.bfloat16 if name in of_models else torch.float32).requires_grad_()
        for name, leaf in case.leaves.items()
    }
    found = replace(case, leaves=half).by_library(divergence_name=divergence_name)
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in half.items()}
    expected = by_definition(replace(case, leaves=exact), divergence_name=divergence_name)
    for name in TERMS:
        assert found.sums[name].dtype == torch.float32
        assert found.sums[name].item() == pytest.approx(expected.terms[name].item(), rel=0.03)
        assert all(item.isfinite().all() for item in gradients(found.sums[name], half).values())


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "reverse": {"divergence_name": "reverse_kl"},
    "temperature": {"temperature": 2.0},
    "gate": {"gate": "prediction"},
    "gate by gold": {"gate": "gold"},
    "student space": {"spaces": "student"},
    "teacher space": {"spaces": "teacher"},
    "target": {"target": "gold"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_module_equals_the_function_with_its_options(options: dict[str, Any]) -> None:
    case, plain = with_projectors("trained")
    module = DualSpaceLoss(plain.projectors, plain.vocabulary_map, **options)
    found, expected = module(case.states()), case.by_library(**options)
    assert numbers_of(found) == numbers_of(expected)
    assert (numbers_of(found) == numbers_of(plain(case.states()))) == (not options)


def numbers_of(terms: TermSums) -> dict[str, float]:
    return {name: value.item() for name, value in {**terms.sums, **terms.counts}.items()}


@pytest.mark.parametrize("kind", ["solved", "trained"])
def test_the_module_saves_its_projectors_and_not_the_map(kind: str) -> None:
    _, module = with_projectors(kind)
    saved = module.state_dict()
    assert set(saved) == {"projectors.teacher_to_student", "projectors.student_to_teacher"}
    assert "vocabulary_map" in dict(module.named_buffers()), "it should follow the module to its device"
