"""Dual-space distillation against its formulas: one pair and one number at a time, in float64.

That it is the same fused, on every head and mask, is in tests/test_contract.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dskd.nn import DIVERGENCES, Chunks, DualSpace, Head, Objective, Projectors, Reduction, VocabularyMaps
from dskd.nn.losses.dual_space import DualSpaceProjectors
from leaves import (
    PLAIN,
    TRANSFORMS,
    Leaves,
    OfTeacher,
    Transforms,
    gradients,
    objective_of,
    random_leaves,
    term_of,
)
from rounding import ON_PAPER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from dskd.nn.divergences import Divergence

UNMAPPED = -1
LN2, LN3 = math.log(2), math.log(3)


def ungated(**given: Any) -> DualSpace:
    """As published, without the gate, but for these."""
    return DualSpace(**{**DualSpace.presets["dskd_ungated"], **given})


def preset(name: str) -> DualSpace:
    return DualSpace(**DualSpace.presets[name])


SEEDS = {"plain": 0, "bias and scale": 0, "soft cap": 0, "unreachable ids": 0, "all of these": 1}


def case_of(name: str) -> Leaves:
    """14 labels, 12 pairs, D = 4 and d = 3, 6 teacher ids and 5 student ids."""
    return random_leaves(SEEDS[name], transforms=TRANSFORMS[name])


@dataclass
class Found:
    """Terms, each a function of the leaves, and counts."""

    terms: dict[str, Tensor]
    counts: dict[str, int]


def by_library(case: Leaves, objective: Objective) -> Found:
    batch = case.batch()
    found = objective(batch)
    terms = {name: term_of(objective, batch, name) for name in found.sums}
    return Found(terms, {name: int(count) for name, count in found.counts.items()})


def projectors_of(objective: Objective) -> Projectors:
    made = objective.built["0"]
    assert isinstance(made, Projectors)
    return made


def movable(case: Leaves, objective: Objective) -> dict[str, Tensor]:
    of_projectors = {
        name: one for name, one in projectors_of(objective).named_parameters() if one.requires_grad
    }
    return case.trained | of_projectors


# ---- The formulas ----------------------------------------------------------------------------------------


@dataclass
class Expected:
    """Terms and counts by the formulas."""

    terms: dict[str, Tensor]
    unmapped: int = 0
    agreed: int = 0
    gated: int = 0


def by_definition(case: Leaves, objective: Objective) -> Expected:  # noqa: C901, PLR0915 - all of them
    """Formula by formula, for one pair after the other; `sg` is `.detach()`."""
    options, leaf, projectors = objective.losses[0].loss, case.by_name, projectors_of(objective)
    assert isinstance(options, DualSpace)
    transforms_of = {"teacher": case.teachers["teacher"].transforms, "student": case.student}
    weight = {side: list(leaf[f"{side}_weight"]) for side in ("teacher", "student")}
    bias = {side: list(leaf[f"{side}_bias"]) for side in ("teacher", "student")}

    def logits(side: str, hidden: Tensor, *, frozen: bool) -> dict[int, Tensor]:
        """Of all ids."""
        transforms, made = transforms_of[side], {}
        for token, (row, shift) in enumerate(zip(weight[side], bias[side], strict=True)):
            row_, shift_ = (row.detach(), shift.detach()) if frozen else (row, shift)
            logit = sum_of(row_ * hidden) + (shift_ if transforms.bias else 0)
            logit = transforms.scale * logit
            if transforms.softcap is not None:
                logit = transforms.softcap * torch.tanh(logit / transforms.softcap)
            made[token] = logit
        return made

    def meant(side: str, made: dict[int, Tensor]) -> dict[int, Tensor]:
        """Of the ids that a head can mean."""
        return {token: made[token] for token in made if token not in transforms_of[side].unreachable}

    def carried(hidden: Tensor, name: str) -> Tensor:
        columns = getattr(projectors, name).T
        shift = getattr(projectors, f"{name}_bias")
        made = torch.stack([sum_of(column * hidden) for column in columns])
        return made if shift is None else made + shift

    maps, paired = case.teachers["teacher"].maps, case.teachers["teacher"].paired
    labels, to_student = case.labels.tolist(), maps.to_student.tolist()
    overlap = [] if maps.overlap is None else maps.overlap.tolist()
    zero = torch.zeros((), dtype=torch.float64)
    expected = Expected({})

    said, predicted, gold, made = [], [], [], []
    for pair, position in enumerate(paired.tolist()):
        h_t = leaf["teacher_hidden"][pair].detach()
        z_t = meant("teacher", logits("teacher", h_t, frozen=True))
        z_s = meant("student", logits("student", leaf["student_hidden"][position], frozen=False))
        z_ts = meant("student", logits("student", carried(h_t, "teacher_to_student"), frozen=True))
        to_teacher = carried(leaf["student_hidden"][position], "student_to_teacher")
        z_st = meant("teacher", logits("teacher", to_teacher, frozen=True))
        made.append((z_t, z_s, z_ts, z_st))
        said.append(first_largest(z_ts))
        predicted.append(to_student[first_largest(z_t)])
        gold.append(labels[position])

    y = gold if options.t2s_target == "gold" else predicted
    expected.unmapped = sum(one == UNMAPPED for one in predicted)
    expected.agreed = sum(one == other for one, other in zip(said, y, strict=True))
    opens = gold if options.gate == "gold" else predicted
    passed = [options.gate is None or one == other for one, other in zip(said, opens, strict=True)]
    if sum(passed) > options.gate_threshold * len(passed):
        passed = [True] * len(passed)

    trained = ["t2s_kl" if options.t2s_target == "distribution" else "t2s_ce"]
    if options.target == "exact" and options.gate is None:
        trained = []  # nobody asks for z_ts
    trained.append("t2s_kd")
    in_space = {"student": trained, "teacher": ["s2t_kd"], "both": [*trained, "s2t_kd"]}
    terms = dict.fromkeys(in_space[options.spaces], zero)
    tau, of_student = options.temperature, [student for _, student in overlap]
    factor = tau * tau if options.scale_by_temperature_squared else 1
    for pair, (z_t, z_s, z_ts, z_st) in enumerate(made):
        if options.drop_unmapped and predicted[pair] == UNMAPPED:
            continue
        expected.gated += passed[pair]
        on_overlap = {student: z_t[teacher] for teacher, student in overlap}
        if "t2s_ce" in terms and y[pair] != UNMAPPED:
            terms["t2s_ce"] = terms["t2s_ce"] - log_softmax(z_ts)[y[pair]]
        if "t2s_kl" in terms:
            p, q = softmax(on_overlap, of_student), softmax(z_ts, of_student)
            terms["t2s_kl"] = terms["t2s_kl"] + kl(p, q)
        if "t2s_kd" in terms and passed[pair]:
            columns = of_student if options.columns == "overlap" else list(z_s)
            says = {token: logit.detach() for token, logit in z_ts.items()}
            if options.target == "exact":
                shares = dict(zip(of_student, softmax(on_overlap, of_student, tau), strict=True))
                p = [shares.get(token, zero) for token in columns]
            else:
                p = softmax(says, columns, tau)
            item = factor * divergence(options.divergence, p, softmax(z_s, columns, tau), options.mix)
            terms["t2s_kd"] = terms["t2s_kd"] + item
        if "s2t_kd" in terms:
            columns = [teacher for teacher, _ in overlap] if options.s2t_columns == "overlap" else list(z_t)
            name = options.s2t_divergence or options.divergence
            mix = options.mix if name == options.divergence else None
            item = divergence(name, softmax(z_t, columns, tau), softmax(z_st, columns, tau), mix)
            terms["s2t_kd"] = terms["s2t_kd"] + factor * item
    expected.terms |= terms
    return expected


def sum_of(numbers: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(numbers)).sum()


def first_largest(logits: dict[int, Tensor]) -> int:
    """The lowest of the ids that have the largest."""
    largest = max(logit.item() for logit in logits.values())
    return min(token for token, logit in logits.items() if logit.item() == largest)


def log_softmax(logits: dict[int, Tensor]) -> dict[int, Tensor]:
    total = sum_of(logit.exp() for logit in logits.values()).log()
    return {token: logit - total for token, logit in logits.items()}


def softmax(logits: dict[int, Tensor], columns: list[int], temperature: float = 1.0) -> list[Tensor]:
    """Of these columns, renormalised over them."""
    kept = log_softmax({token: logits[token] / temperature for token in columns})
    return [kept[token].exp() for token in columns]


def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return sum_of(
        left * (left.log() - right.log()) for left, right in zip(p, q, strict=True) if left.item() > 0
    )


def mixed(p: list[Tensor], q: list[Tensor], share: float) -> list[Tensor]:
    return [share * left + (1 - share) * right for left, right in zip(p, q, strict=True)]


def adaptive(p: list[Tensor], q: list[Tensor], threshold: float) -> Tensor:
    gaps = [abs(left.item() - right.item()) for left, right in zip(p, q, strict=True)]
    reached, head = 0.0, 0.0
    for token in sorted(range(len(p)), key=lambda token: p[token].item()):
        reached += p[token].item()
        head += gaps[token] if reached > threshold else 0.0
    share = head / sum(gaps)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def divergence(  # noqa: PLR0911 - a line each
    name: Divergence, p: list[Tensor], q: list[Tensor], mix: float | None
) -> Tensor:
    if name == "kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    if name == "js":
        beta = 0.5 if mix is None else mix
        return beta * kl(p, mixed(p, q, beta)) + (1 - beta) * kl(q, mixed(p, q, beta))
    if name == "skew_kl":
        return kl(p, mixed(p, q, 0.1 if mix is None else mix))
    if name == "skew_reverse_kl":
        return kl(q, mixed(q, p, 0.1 if mix is None else mix))
    if name == "adaptive_kl":
        return adaptive(p, q, 0.5 if mix is None else mix)
    return sum_of((left - right).abs() for left, right in zip(p, q, strict=True)) / 2


# ---- Value and every gradient ----------------------------------------------------------------------------

OPTIONS: dict[str, DualSpace] = {
    "defaults": DualSpace(),
    "ungated": ungated(),
    "v1": preset("dskd_v1"),
    "v2": preset("dskd_v2"),
    "v2, same vocabulary": preset("dskd_v2_same_vocabulary"),
    "temperature": ungated(temperature=1.7),
    "temperature squared": ungated(temperature=1.7, scale_by_temperature_squared=True),
    "gate by prediction": ungated(gate="prediction"),
    "gate by gold": ungated(gate="gold", t2s_target="gold", temperature=0.7),
    "gate lifted": ungated(gate="prediction", gate_threshold=0.01),
    "gate not lifted": ungated(gate="gold", gate_threshold=0.95),
    "gate lifted, unmapped dropped": ungated(gate="prediction", gate_threshold=0.0, drop_unmapped=True),
    "unmapped dropped": ungated(drop_unmapped=True, t2s_target="gold"),
    "unmapped dropped, distribution": ungated(drop_unmapped=True, t2s_target="distribution"),
    "distribution": ungated(t2s_target="distribution", gate="prediction", temperature=2.0),
    "exact": ungated(target="exact"),
    "exact on the overlap": ungated(target="exact", columns="overlap", temperature=1.3),
    "exact, gated": ungated(target="exact", gate="gold", t2s_target="gold"),
    "exact, skewed": ungated(target="exact", divergence="skew_kl", mix=0.3),
    "overlap": ungated(columns="overlap", gate="gold"),
    "overlap in both": ungated(columns="overlap", s2t_columns="overlap", divergence="js", mix=0.3),
    "student space": ungated(spaces="student", gate="prediction"),
    "teacher space": ungated(spaces="teacher", drop_unmapped=True),
    "both trained": ungated(student_to_teacher="trained", initial="random", bias=True),
    "solved": ungated(teacher_to_student="solved"),
    "another divergence in the teacher's space": ungated(
        divergence="js", mix=0.2, s2t_divergence="adaptive_kl"
    ),
}


def assert_equal(case: Leaves, options: DualSpace) -> None:
    """Every term, its gradients with respect to every leaf, and the counts."""
    objective = objective_of(case, options)
    found, expected = by_library(case, objective), by_definition(case, objective)
    assert set(found.terms) == set(expected.terms)
    leaves = movable(case, objective)
    for name, term in expected.terms.items():
        torch.testing.assert_close(found.terms[name], term, rtol=1e-11, atol=1e-12)
        mine, theirs = (gradients(one, leaves, retain_graph=True) for one in (found.terms[name], term))
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)  # names the leaf that differs
    counts = {"unmapped": expected.unmapped}
    if options.spaces != "teacher":
        if options.projects:
            counts["agreed"] = expected.agreed
        if options.gate is not None:
            counts["gated"] = expected.gated
    assert found.counts == counts


@pytest.mark.parametrize("case", SEEDS)
def test_the_cases_have_pairs_on_both_sides_of_every_choice(case: str) -> None:
    made = case_of(case)
    for by in ("prediction", "gold"):
        expected = by_definition(made, objective_of(made, ungated(gate=by, t2s_target=by)))
        assert 0 < expected.unmapped < 12
        assert 0 < expected.agreed < 12
        assert 0 < expected.gated < 12
    dropped = by_definition(made, objective_of(made, ungated(gate="gold", drop_unmapped=True)))
    assert 0 < dropped.gated < 12


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("case", ["plain", "all of these"])
def test_terms_gradients_and_counts_equal_the_formulas(case: str, options: DualSpace) -> None:
    assert_equal(case_of(case), options)


@pytest.mark.parametrize("case", SEEDS)
def test_whatever_the_heads_are(case: str) -> None:
    assert_equal(case_of(case), ungated(gate="gold", temperature=1.3))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_equals_its_formula(name: Divergence) -> None:
    options = ungated(divergence=name, temperature=2.5, gate="gold", t2s_target="gold")
    assert_equal(case_of("all of these"), options)
    assert_equal(
        case_of("plain"), replace(options, temperature=1.0, columns="overlap", s2t_columns="overlap")
    )


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_unreachable_ids_get_no_gradient_in_distillation_and_change_nothing(side: str) -> None:
    transforms = Transforms(bias=True, unreachable=(4,))
    case = random_leaves(5, transforms=(transforms, transforms))
    objective = objective_of(case, ungated())
    before = by_library(case, objective).terms
    for value in before.values():
        assert gradients(value, case.trained)["student_weight"][4].eq(0).all()
    with torch.no_grad():
        case.by_name[f"{side}_weight"][4] = 9.0
        case.by_name[f"{side}_bias"][4] = 100.0
    for name, value in by_library(case, objective).terms.items():
        torch.testing.assert_close(value, before[name])


def test_a_prediction_is_never_an_unreachable_id() -> None:
    case = random_leaves(6)
    with torch.no_grad():
        case.by_name["teacher_bias"][1] = 100.0  # the largest of all, and unmapped

    def unmapped(transforms: Transforms) -> int:
        of = replace(case.teachers["teacher"], transforms=transforms)
        made = replace(case, teachers={"teacher": of})
        return by_library(made, objective_of(made, ungated())).counts["unmapped"]

    assert unmapped(Transforms(bias=True)) == 12
    assert unmapped(Transforms(bias=True, unreachable=(1,))) < 12


@pytest.mark.parametrize("fused", [True, False])
def test_a_label_that_no_tokenizer_can_emit_is_infinitely_unlikely(fused: bool) -> None:
    """And not 1e30, which passes for a number."""
    case = random_leaves(6, transforms=(PLAIN, Transforms(unreachable=(1,))))
    case = replace(case, labels=torch.ones_like(case.labels))
    found = objective_of(case, ungated(t2s_target="gold"), fused=fused)(case.batch()).sums
    assert found["t2s_ce"].item() == math.inf
    assert found["t2s_kd"].isfinite()


def test_temperature_is_of_the_divergences_alone() -> None:
    case = case_of("plain")
    for trained_by in ("prediction", "distribution"):
        cold, warm = (
            objective_of(case, ungated(temperature=temperature, t2s_target=trained_by))(case.batch()).sums
            for temperature in (1.0, 3.0)
        )
        name = "t2s_kl" if trained_by == "distribution" else "t2s_ce"
        assert torch.equal(cold[name], warm[name])
        assert warm["t2s_kd"] < cold["t2s_kd"]
        assert warm["s2t_kd"] < cold["s2t_kd"]


def test_the_exact_target_on_the_overlap_is_the_limit_of_a_perfect_projector() -> None:
    """Where z_ts says on O what the teacher says there, both targets are the same: three tokens, d = 3."""
    case, found = case_of("plain"), []
    for target in ("projected", "exact"):
        objective = objective_of(case, ungated(columns="overlap", target=target), noise=0.0)
        found.append(objective(case.batch()).sums["t2s_kd"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=0)  # a projector is float32


# ---- What each term moves --------------------------------------------------------------------------------

OF_STUDENT = {"student_hidden", "student_weight", "student_bias"}
TO_STUDENT = {"teacher_to_student", "teacher_to_student_bias"}
TO_TEACHER = {"student_to_teacher", "student_to_teacher_bias"}
TABLE = {
    "t2s_ce": TO_STUDENT,
    "t2s_kl": TO_STUDENT,
    "t2s_kd": OF_STUDENT,
    "s2t_kd": {"student_hidden", *TO_TEACHER},
}
"""Of the student and the projectors that are trained; one that is solved is a buffer, which nothing moves."""

TRAINED: dict[str, Any] = {"student_to_teacher": "trained", "bias": True}
HOWEVER: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("ungated",)},
    "gold": {"t2s_target": "gold", "gate": "gold"},
    "distribution": {"t2s_target": "distribution"},
    "overlap in both": {"columns": "overlap", "s2t_columns": "overlap"},
    "exact, all": {"target": "exact"},
    "exact, overlap": {"target": "exact", "columns": "overlap"},
    **{name: {"divergence": name, "gate": "gold"} for name in DIVERGENCES},
}


@pytest.mark.parametrize("given", HOWEVER.values(), ids=HOWEVER)
@pytest.mark.parametrize("trained", [TRAINED, {}], ids=["trained", "solved"])
def test_every_term_moves_what_the_table_says_and_nothing_of_the_teacher(
    trained: dict[str, Any], given: dict[str, Any]
) -> None:
    case = random_leaves(7, transforms=TRANSFORMS["bias and scale"])
    objective = objective_of(case, ungated(**trained, **given))
    leaves = {**case.by_name, **movable(case, objective)}
    for term, value in by_library(case, objective).terms.items():
        found = gradients(value, leaves)
        moved = {name for name, one in found.items() if one.abs().max() > 1e-9}
        assert moved == TABLE[term] & set(leaves), term


@pytest.mark.parametrize("gate", [None, "prediction"])
def test_with_nothing_but_unmapped_predictions_the_first_two_terms_are_connected_zeros(gate: Any) -> None:
    case = case_of("plain")
    of = case.teachers["teacher"]
    maps = replace(of.maps, to_student=torch.full((6,), UNMAPPED))
    case = replace(case, teachers={"teacher": replace(of, maps=maps)})
    objective = objective_of(case, ungated(gate=gate))
    found = by_library(case, objective)
    (carried,) = torch.autograd.grad(found.terms["t2s_ce"], projectors_of(objective).teacher_to_student)
    assert found.terms["t2s_ce"].item() == 0
    assert carried.eq(0).all()
    assert found.counts["unmapped"] == 12
    assert (found.terms["t2s_kd"].item() == 0) == (gate is not None)
    assert found.terms["s2t_kd"] > 0


# ---- By hand ---------------------------------------------------------------------------------------------


@dataclass
class ByHand:
    """A case of these numbers, whose pairs are its positions, and the two projectors, a number each."""

    case: Leaves
    to_student: float
    to_teacher: float = 1.0

    def objective(self, options: DualSpace, **more: Any) -> Objective:
        made = objective_of(self.case, options, noise=0.0, **more)
        with torch.no_grad():
            projectors_of(made).teacher_to_student.fill_(self.to_student)
            projectors_of(made).student_to_teacher.fill_(self.to_teacher)
        return made

    def found(self, **options: Any) -> Found:
        return by_library(self.case, self.objective(ungated(**options)))


def by_hand(numbers: Mapping[str, list[float]], labels: list[int], maps: VocabularyMaps) -> ByHand:
    """Widths of 1; z_ts is of twice h_t, z_st of h_s."""
    leaves = {
        name: torch.tensor(values, dtype=torch.float64)[:, None].requires_grad_()
        for name, values in numbers.items()
    }
    for side in ("teacher", "student"):
        leaves[f"{side}_bias"] = torch.zeros(len(leaves[f"{side}_weight"]), dtype=torch.float64)
        leaves[f"{side}_embeddings"] = leaves[f"{side}_weight"]
    leaves["teacher_states"] = leaves["teacher_hidden"]
    said, none = torch.tensor(labels), torch.zeros(0, dtype=torch.int64)
    zeros = torch.zeros_like(said)
    of = OfTeacher(
        PLAIN, maps, torch.arange(len(said)), Chunks(none, none, none.double()), zeros, zeros, zeros
    )
    return ByHand(Leaves(leaves, said, zeros, zeros, {"teacher": of}), to_student=2.0)


def two_ids(times: int = 1) -> ByHand:
    """Two ids and one column on each side, so that every softmax is of `(0, number)`.

    pair    h_t   p_t           z_ts          softmax       h_s   p_s           z_st = h_s    said  y
    first   ln2   (1/3, 2/3)    (0, 2 ln2)    (1/5, 4/5)    ln3   (1/4, 3/4)    (0, ln3)      1     1
    second  -ln2  (2/3, 1/3)    (0, -2 ln2)   (4/5, 1/5)    0     (1/2, 1/2)    (0, 0)        0     none
    """
    numbers = {
        "teacher_hidden": [LN2, -LN2] * times,
        "student_hidden": [LN3, 0.0] * times,
        "teacher_weight": [0.0, 1.0],
        "student_weight": [0.0, 1.0],
    }
    overlap = torch.tensor([[0, 0], [1, 1]])
    maps = VocabularyMaps(to_student=torch.tensor([UNMAPPED, 1]), overlap=overlap)
    return by_hand(numbers, [1, 0] * times, maps)


FIRST = math.log(4 / 5) / 5 + math.log(16 / 15) * 4 / 5
SECOND = math.log(8 / 5) * 4 / 5 + math.log(2 / 5) / 5
S2T_FIRST = math.log(4 / 3) / 3 + math.log(8 / 9) * 2 / 3
S2T = S2T_FIRST + math.log(4 / 3) * 2 / 3 + math.log(2 / 3) / 3


@pytest.mark.parametrize(
    ("options", "t2s_ce", "t2s_kd", "s2t_kd", "agreed"),
    [
        ({}, math.log(5 / 4), FIRST + SECOND, S2T, 1),
        ({"gate": "prediction"}, math.log(5 / 4), FIRST, S2T, 1),
        ({"t2s_target": "gold"}, 2 * math.log(5 / 4), FIRST + SECOND, S2T, 2),
        ({"gate": "gold", "t2s_target": "gold"}, 2 * math.log(5 / 4), FIRST + SECOND, S2T, 2),
        # half of the pairs agree: above 0.4 and not above 0.5
        ({"gate": "prediction", "gate_threshold": 0.4}, math.log(5 / 4), FIRST + SECOND, S2T, 1),
        ({"gate": "prediction", "gate_threshold": 0.5}, math.log(5 / 4), FIRST, S2T, 1),
        # the second pair is nowhere, even where its label is gold
        ({"drop_unmapped": True, "t2s_target": "gold"}, math.log(5 / 4), FIRST, S2T_FIRST, 2),
    ],
    ids=str,
)
def test_two_pairs_worked_out_by_hand(
    options: dict[str, Any], t2s_ce: float, t2s_kd: float, s2t_kd: float, agreed: int
) -> None:
    found = two_ids().found(**options)
    assert found.terms["t2s_ce"].item() == pytest.approx(t2s_ce, rel=ON_PAPER)
    assert found.terms["t2s_kd"].item() == pytest.approx(t2s_kd, rel=ON_PAPER)
    assert found.terms["s2t_kd"].item() == pytest.approx(s2t_kd, rel=ON_PAPER)
    assert found.counts["unmapped"] == 1
    assert found.counts["agreed"] == agreed


@pytest.mark.parametrize("squared", [False, True])
def test_the_divergence_at_a_temperature_worked_out_by_hand(squared: bool) -> None:
    """At 2 the first softmaxes are of ln2 and ln3 / 2, the last of ln2 / 2: squares of one another."""
    found = two_ids().found(temperature=2.0, gate="prediction", scale_by_temperature_squared=squared)
    q = math.sqrt(3) / (1 + math.sqrt(3))
    kd = math.log(1 / 3 / (1 - q)) / 3 + math.log(2 / 3 / q) * 2 / 3
    assert found.terms["t2s_kd"].item() == pytest.approx(kd * (4 if squared else 1), rel=ON_PAPER)
    assert found.terms["t2s_ce"].item() == pytest.approx(math.log(5 / 4), rel=ON_PAPER)


def gradients_of(hand: ByHand, *terms: str, **options: Any) -> list[dict[str, Tensor]]:
    objective = hand.objective(ungated(**options))
    found = by_library(hand.case, objective).terms
    return [gradients(found[name], movable(hand.case, objective)) for name in terms]


def test_the_gradients_of_two_pairs_worked_out_by_hand() -> None:
    ce, kd, s2t = gradients_of(two_ids(), "t2s_ce", "t2s_kd", "s2t_kd")
    # softmax minus one-hot: 4/5 - 1, times h_t; the second pair has no label
    assert ce["teacher_to_student"].item() == pytest.approx(-LN2 / 5, rel=ON_PAPER)
    # p_s minus softmax(z_ts): 3/4 - 4/5 and 1/2 - 1/5, times the head's row (0, 1)
    assert kd["student_hidden"].flatten().tolist() == pytest.approx([-1 / 20, 3 / 10])
    # the same, times h_s, which is zero in the second pair
    assert kd["student_weight"].flatten().tolist() == pytest.approx([LN3 / 20, -LN3 / 20])
    # 3/4 - 2/3 and 1/2 - 1/3, times P_st
    assert s2t["student_hidden"].flatten().tolist() == pytest.approx([1 / 12, 1 / 6])


def three_ids() -> ByHand:
    """One pair; three ids, the first of each side not shared; one column, so that logits are multiples.

    The teacher's rows are 0, 1, 2 and the student's 0, 2, 1: teacher 1 is student 2, teacher 2 is student 1.
    In the order of the student's ids:

              number   softmax                       on O, ids (1, 2)
    z_t       ln2      (1, 4, 2) / 7 of 0, t2, t1    (2/3, 1/3)
    z_ts      2 ln2    (1, 16, 4) / 21               (4/5, 1/5)
    z_s       ln3      (1, 9, 3) / 13                (3/4, 1/4)
    z_st      ln3      (1, 9, 3) / 13 of 0, t2, t1   (3/4, 1/4)
    """
    numbers = {
        "teacher_hidden": [LN2],
        "student_hidden": [LN3],
        "teacher_weight": [0.0, 1.0, 2.0],
        "student_weight": [0.0, 2.0, 1.0],
    }
    overlap = torch.tensor([[1, 2], [2, 1]])
    return by_hand(numbers, [0], VocabularyMaps(to_student=torch.tensor([UNMAPPED, 2, 1]), overlap=overlap))


# KL((2/3, 1/3), (3/4, 1/4)), which is also S2T_FIRST
ON_OVERLAP = math.log(8 / 9) * 2 / 3 + math.log(4 / 3) / 3


@pytest.mark.parametrize(
    ("options", "term", "expected"),
    [
        ({}, "t2s_ce", math.log(21 / 16)),
        ({"t2s_target": "gold"}, "t2s_ce", math.log(21)),
        # from (2/3, 1/3) to (4/5, 1/5)
        ({"t2s_target": "distribution"}, "t2s_kl", math.log(5 / 6) * 2 / 3 + math.log(5 / 3) / 3),
        # ln(13/21) + 16/21 ln(16/9) + 4/21 ln(4/3), and ln(16/9) = 2 ln(4/3)
        ({}, "t2s_kd", math.log(13 / 21) + math.log(4 / 3) * 12 / 7),
        ({"columns": "overlap"}, "t2s_kd", FIRST),
        ({"columns": "overlap", "target": "exact"}, "t2s_kd", ON_OVERLAP),
        # of the whole (1, 9, 3) / 13: 2/3 ln(26/27) + 1/3 ln(13/9)
        ({"target": "exact"}, "t2s_kd", math.log(26 / 27) * 2 / 3 + math.log(13 / 9) / 3),
        # ln(13/7) + 4/7 ln(4/9) + 2/7 ln(2/3)
        ({}, "s2t_kd", math.log(13 / 7) + math.log(2 / 3) * 10 / 7),
        ({"s2t_columns": "overlap"}, "s2t_kd", ON_OVERLAP),
    ],
    ids=str,
)
def test_shared_ids_worked_out_by_hand(options: dict[str, Any], term: str, expected: float) -> None:
    found = three_ids().found(**options)
    assert found.terms[term].item() == pytest.approx(expected, rel=ON_PAPER)


def test_the_gradients_on_shared_ids_worked_out_by_hand() -> None:
    options: dict[str, Any] = {"columns": "overlap", "t2s_target": "distribution", "s2t_columns": "overlap"}
    kl_, kd, s2t = gradients_of(three_ids(), "t2s_kl", "t2s_kd", "s2t_kd", **options)
    # (4/5, 1/5) - (2/3, 1/3) times the rows 2 and 1, times h_t
    assert kl_["teacher_to_student"].item() == pytest.approx(LN2 * 2 / 15)
    # (3/4, 1/4) - (4/5, 1/5) times the same, and times h_s for the rows; the one that is not shared stays
    assert kd["student_hidden"].item() == pytest.approx(-1 / 20)
    assert kd["student_weight"].flatten().tolist() == pytest.approx([0, -LN3 / 20, LN3 / 20])
    # (3/4, 1/4) - (2/3, 1/3), times the teacher's rows 2 and 1, times P_st
    assert s2t["student_hidden"].item() == pytest.approx(1 / 12)


LN = math.log
BY_HAND: dict[Divergence, float] = {
    # p = (4/5, 1/5), q = (3/4, 1/4)
    "kl": FIRST,
    "reverse_kl": LN(15 / 16) * 3 / 4 + LN(5 / 4) / 4,
    # with m at (31/40, 9/40)
    "js": (LN(32 / 31) * 4 / 5 + LN(8 / 9) / 5 + LN(30 / 31) * 3 / 4 + LN(10 / 9) / 4) / 2,
    # m is p / 10 + 9 q / 10, (151/200, 49/200)
    "skew_kl": LN(160 / 151) * 4 / 5 + LN(40 / 49) / 5,
    # m is q / 10 + 9 p / 10, (159/200, 41/200)
    "skew_reverse_kl": LN(50 / 53) * 3 / 4 + LN(50 / 41) / 4,
    # tail 1/5, head 4/5, the gap of both is 1/20
    "adaptive_kl": (FIRST + LN(15 / 16) * 3 / 4 + LN(5 / 4) / 4) / 2,
    "tvd": 1 / 20,
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_worked_out_by_hand(name: Divergence) -> None:
    found = three_ids().found(divergence=name, columns="overlap")
    assert found.terms["t2s_kd"].item() == pytest.approx(BY_HAND[name], rel=1e-12)


def with_ties(label: int, to_student: list[int]) -> ByHand:
    """One pair; three ids on both sides, the last two of which have the same row, so that they tie."""
    numbers = {
        "teacher_hidden": [LN2],
        "student_hidden": [LN3],
        "teacher_weight": [0.0, 1.0, 1.0],
        "student_weight": [0.0, 1.0, 1.0],
    }
    maps = VocabularyMaps(to_student=torch.tensor(to_student), overlap=torch.tensor([[0, 0], [1, 1]]))
    return by_hand(numbers, [label], maps)


def test_of_ids_that_tie_the_teacher_predicts_the_lowest() -> None:
    assert with_ties(0, [2, 2, UNMAPPED]).found().counts["unmapped"] == 0
    assert with_ties(0, [2, UNMAPPED, 2]).found().counts["unmapped"] == 1


@pytest.mark.parametrize("gate", ["prediction", "gold"])
def test_of_ids_that_tie_the_projected_teacher_says_the_lowest(gate: Any) -> None:
    for hand, count in ((with_ties(1, [0, 1, 2]), 1), (with_ties(2, [0, 2, 1]), 0)):
        counts = hand.found(gate=gate).counts
        assert (counts["gated"], counts["agreed"]) == (count, count)


# ---- What terms are divided by ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "each", "t2s_kd"),
    # 8 labels and 5 pairs in the step, 4 pairs here, of which two are mapped and agree
    [
        (ungated(), 5, 5),
        (ungated(gate="prediction"), 5, 5),
        (ungated(normaliser="labels"), 8, 8),
        (ungated(normaliser="micro_batch"), 4, 4),
        (ungated(gate="prediction", gated_mean=True), 5, 2),
        (ungated(normaliser="micro_batch", drop_unmapped=True), 2, 2),
        (preset("dskd_v1"), 8, 8),
        (preset("dskd_v2"), 2, 2),
        (preset("dskd_v2_same_vocabulary"), 8, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_terms_are_divided_by_what_the_options_name(
    micro_batches: int, options: DualSpace, each: int, t2s_kd: int
) -> None:
    """What is divided by a number of the micro-batch is averaged over the micro-batches besides."""
    hand = two_ids(times=2)
    step = Reduction({"labels": 8, "pairs": 5}, micro_batches)
    for weight in (1.0, 0.5):
        objective = hand.objective(replace(options, s2t_weight=weight))
        found = {part.name: part.weight for part in objective.parts(hand.case.batch(), step)}
        every, kd = (count * (micro_batches if count in (2, 4) else 1) for count in (each, t2s_kd))
        assert found["t2s_ce"] == pytest.approx(1 / every, rel=ON_PAPER)
        assert found["s2t_kd"] == pytest.approx(weight / every, rel=ON_PAPER)
        assert found["t2s_kd"] == pytest.approx(1 / kd, rel=ON_PAPER)


@pytest.mark.parametrize("fused", [False, True])
def test_the_loss_of_v2_worked_out_by_hand(fused: bool) -> None:
    """Of 2 pairs the first alone is mapped, and agrees: 1 in the micro-batch; 10 labels and 20 in the step.

    ln(5/4) / 1 + FIRST / 1 + S2T_FIRST / 1
    """
    hand = two_ids()
    objective = hand.objective(preset("dskd_v2"), fused=fused)
    loss = objective(hand.case.batch(), Reduction({"labels": 10, "pairs": 20})).loss
    assert loss.item() == pytest.approx(math.log(5 / 4) + FIRST + S2T_FIRST, rel=1e-12)


# ---- Projectors ------------------------------------------------------------------------------------------


def solved(case: Leaves, **options: Any) -> tuple[Objective, DualSpaceProjectors]:
    objective = Objective([ungated(**options)], case.head("student"), case.model())
    projectors = objective.built["0"]
    assert isinstance(projectors, DualSpaceProjectors)
    return objective, projectors


def test_a_solved_projector_is_solved_again_every_so_many_steps_of_training() -> None:
    case = case_of("plain")
    objective, projectors = solved(case, refresh_every=3)
    for training, steps, changes in ((True, range(7), [3, 6]), (False, range(9, 10), [])):
        objective.train(training)
        found = []
        for step in steps:
            for _ in range(2):  # two micro-batches, the first of which solves
                before = projectors.student_to_teacher.clone()
                objective(case.batch(), step=step)
                found += [step] if not torch.equal(before, projectors.student_to_teacher) else []
            with torch.no_grad():
                case.by_name["student_weight"].mul_(1.1)
        assert found == changes


@pytest.mark.parametrize("step", [None, 0])
def test_what_was_solved_as_it_was_made_is_solved_again_only_where_the_head_is_another(
    step: int | None,
) -> None:
    case = case_of("plain")
    objectives = [solved(case, refresh_every=5) for _ in range(2)]
    expected = [projectors.student_to_teacher.clone() for _, projectors in objectives]
    for moved, (objective, projectors) in enumerate(objectives):
        with torch.no_grad():
            projectors.student_to_teacher.zero_()
            case.by_name["student_weight"].mul_(1 + moved)
        objective(case.batch(), step=step)
        assert projectors.student_to_teacher.any() == bool(moved)
        if moved:
            torch.testing.assert_close(projectors.student_to_teacher, 2 * expected[0], rtol=1e-4, atol=1e-5)


def test_without_steps_it_looks_at_how_often_the_head_was_written_to() -> None:
    case = case_of("plain")
    objective, projectors = solved(case, refresh_every=2)
    found = []
    for write in range(5):
        before = projectors.student_to_teacher.clone()
        for _ in range(2):
            objective(case.batch())
        found.append(not torch.equal(before, projectors.student_to_teacher))
        with torch.no_grad():
            case.by_name["student_weight"].mul_(1.1)
        assert write < 5
    assert found == [False, False, True, False, True]


def test_a_projector_of_the_teacher_that_is_solved_is_weighted_by_what_the_teacher_expects() -> None:
    case = case_of("plain")
    objective, projectors = solved(case, teacher_to_student="solved")
    objective(case.batch(), step=0)
    head, hidden = case.head("teacher"), case.by_name["teacher_hidden"]
    overlap = case.teachers["teacher"].maps.overlap
    assert overlap is not None
    assert projectors.teacher_probability_sums is not None
    expected = head.logits(hidden).softmax(-1).sum(0)[overlap[:, 0]].detach()
    torch.testing.assert_close(projectors.teacher_probability_sums, expected)


@pytest.mark.parametrize(
    ("pairs", "widths", "chunk_memory", "read"),
    [
        (37, (7, 3), 10**6, True),
        (37, (7, 3), 6 * 3 * 8, True),
        (37, (7, 3), 6 * 3 * 8 - 1, False),  # the head [6, 3] does not fit
        (3, (7, 3), 10**6, True),  # 3 x 7 < 2 x 3 x 4
        (2, (7, 3), 10**6, False),
        (37, (3, 3), 10**6, False),
        (37, (3, 7), 10**6, False),
    ],
)
def test_a_head_is_multiplied_by_a_projector_where_that_saves_products(
    pairs: int, widths: tuple[int, int], chunk_memory: int, read: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_leaves(16, labels=pairs + 3, pairs=pairs, widths=widths)
    through, seen = Head.through, list[Head]()

    def noted(head: Head, *more: Any) -> Head:
        seen.append(head)
        return through(head, *more)

    monkeypatch.setattr(Head, "through", noted)
    objective = objective_of(case, ungated(), chunk_memory=chunk_memory)
    expected = objective_of(case, ungated(), fused=False)(case.batch()).loss
    assert not seen
    torch.testing.assert_close(objective(case.batch()).loss, expected, rtol=1e-12, atol=0)
    assert len(seen) == read


def test_where_the_teacher_is_known_no_such_head_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dskd.nn.losses.known_teacher._TOKENS", 16)
    monkeypatch.setattr("dskd.nn.losses.known_teacher._ROWS", 20)
    case = random_leaves(16, labels=40, pairs=37, widths=(7, 3), sizes=(70, 61))
    through, sizes = Head.through, list[int]()

    def noted(head: Head, *more: Any) -> Head:
        sizes.append(len(head.weight))
        return through(head, *more)

    monkeypatch.setattr(Head, "through", noted)
    objective_of(case, ungated())(case.batch(known=1.0))
    assert sizes == 2 * [16, 16, 16, 16, 6]


# ---- Options that are refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gate": "open"}, r"^gate='open'; it is one of \(None, 'prediction', 'gold'\)$"),
        ({"spaces": "none"}, r"^spaces='none'; it is one of \('both', 'student', 'teacher'\)$"),
        (
            {"t2s_target": "exact"},
            r"^t2s_target='exact'; it is one of \('prediction', 'gold', 'distribution'\)$",
        ),
        ({"target": "gold"}, r"^target='gold'; it is one of \('projected', 'exact'\)$"),
        ({"columns": "some"}, r"^columns='some'; it is one of \('all', 'overlap'\)$"),
        ({"s2t_columns": "some"}, r"^s2t_columns='some'; it is one of \('all', 'overlap'\)$"),
        ({"normaliser": "mean"}, r"^normaliser='mean'; it is one of \('pairs', 'labels', 'micro_batch'\)$"),
        ({"divergence": "l2"}, r"^there is no divergence 'l2'; take one of kl, "),
        ({"divergence": None}, r"^there is no divergence None; take one of kl, "),
        ({"s2t_divergence": "l2"}, r"^s2t_divergence='l2'; it is one of \(None, 'kl', "),
        ({"temperature": 0.0}, r"^temperature=0.0; it is a number above 0$"),
        ({"temperature": math.nan}, r"^temperature=nan; it is a number above 0$"),
        ({"s2t_weight": -0.1}, r"^s2t_weight=-0.1; it is a number from 0 on$"),
        ({"s2t_weight": math.inf}, r"^s2t_weight=inf; it is a number from 0 on$"),
        ({"refresh_every": 0}, r"^refresh_every=0; it is a number from 1 on$"),
        *(
            ({"target": "exact", "t2s_target": name}, rf"^t2s_target='{name}' is of P_ts, .* there is none: ")
            for name in ("gold", "distribution")
        ),
        (
            {"target": "projected", "spaces": "teacher", "t2s_target": "gold"},
            r"^t2s_target='gold' is of P_ts, .* spaces='teacher', there is none: ",
        ),
        ({"teacher_to_student": "solved"}, r"^teacher_to_student='solved' is of P_ts, .* there is none: "),
        ({"gate_threshold": 1.1}, r"^gate_threshold=1.1; it is a share, from 0 to 1$"),
        ({"gate_threshold": -0.1}, r"^gate_threshold=-0.1; it is a share, from 0 to 1$"),
        ({"gate_threshold": math.nan}, r"^gate_threshold=nan; it is a share, from 0 to 1$"),
        *(
            (
                {"target": "exact", "columns": "all", "divergence": name},
                rf"^divergence='{name}' is infinite .*columns='overlap'",
            )
            for name in ("reverse_kl", "adaptive_kl")
        ),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DualSpace(**given)


def test_what_is_infinite_outside_the_overlap_is_allowed_on_it() -> None:
    case = case_of("plain")
    options = ungated(target="exact", columns="overlap", divergence="reverse_kl")
    assert objective_of(case, options)(case.batch()).sums["t2s_kd"].isfinite()


@pytest.mark.parametrize(
    ("given", "speaks"),
    [
        ({}, False),
        ({"columns": "overlap"}, True),
        ({"s2t_columns": "overlap"}, True),
        ({"target": "exact"}, True),
        ({"t2s_target": "distribution"}, True),
        ({"spaces": "teacher", "target": "exact"}, False),
        ({"spaces": "student", "s2t_columns": "overlap"}, False),
    ],
    ids=str,
)
def test_options_that_speak_of_the_overlap_need_one(given: dict[str, Any], speaks: bool) -> None:
    assert ungated(**given).needs.overlap == speaks


@pytest.mark.parametrize("overlap", [None, torch.empty(0, 2, dtype=torch.int64)], ids=["none", "empty"])
def test_without_tokens_in_common_there_is_no_dual_space(overlap: Tensor | None) -> None:
    case = case_of("plain")
    maps = VocabularyMaps(to_student=torch.arange(6) % 5, overlap=overlap)
    model = replace(case.model(), maps=maps)
    for options in (DualSpace(), ungated()):
        with pytest.raises(ValueError, match=r"tokens? .*in common|tokens that both vocabularies have"):
            Objective([options], case.head("student"), model)
