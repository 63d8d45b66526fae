"""Dual-space distillation against its formulas: one pair and one number at a time, in float64.

This is what `dual_space` is held against; the fused form is held against `dual_space`, in
tests/test_dual_space_fused.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from dskd.nn import (
    DIVERGENCES,
    DSKD_UNGATED,
    DSKD_V1,
    DSKD_V2,
    DSKD_V2_SAME_VOCABULARY,
    DualSpaceLoss,
    DualSpaceOptions,
    Projectors,
    Reduction,
    TermSums,
    VocabularyMaps,
    dual_space,
)
from leaves import TRAINED, TRANSFORMS, Leaves, Transforms, gradients, random_leaves
from rounding import ON_PAPER, assert_loses_no_more, losses_by_rounding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from dskd.nn.divergences import Divergence

UNMAPPED = -1


def ungated(**given: Any) -> DualSpaceOptions:
    """As published, without the gate, but for these."""
    return replace(DSKD_UNGATED, **given)


LN2, LN3 = math.log(2), math.log(3)

SEEDS = {"plain": 0, "bias and scale": 4, "soft cap": 0, "unreachable ids": 0, "all of these": 1}


def case_of(name: str) -> Leaves:
    """14 labels, 12 pairs, D = 4 and d = 3, 6 teacher ids and 5 student ids."""
    return random_leaves(SEEDS[name], transforms=TRANSFORMS[name])


def by_library(case: Leaves, options: DualSpaceOptions = DSKD_UNGATED) -> TermSums:
    return dual_space(
        case.states(), case.by_name["to_student"], case.by_name["to_teacher"], case.maps, options
    )


# ---- The formulas ----------------------------------------------------------------------------------------


@dataclass
class Expected:
    """Terms and counts by the formulas."""

    terms: dict[str, Tensor]
    unmapped: int = 0
    agreed: int = 0
    gated: int = 0


def by_definition(case: Leaves, options: DualSpaceOptions) -> Expected:  # noqa: C901, PLR0915 - all of them
    """Formula by formula, for one pair after the other; `sg` is `.detach()`."""
    leaf = case.by_name
    weight = {side: list(leaf[f"{side}_weight"]) for side in ("teacher", "student")}
    bias = {side: list(leaf[f"{side}_bias"]) for side in ("teacher", "student")}

    def logits(side: str, hidden: Tensor, *, frozen: bool) -> dict[int, Tensor]:
        """Of all ids."""
        transforms, made = getattr(case, side), {}
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
        return {token: made[token] for token in made if token not in getattr(case, side).unreachable}

    labels, to_student = case.labels.tolist(), case.maps.to_student.tolist()
    overlap = [] if case.maps.overlap is None else case.maps.overlap.tolist()
    zero = torch.zeros((), dtype=torch.float64)
    expected = Expected({"cross_entropy": zero})
    for position, label in enumerate(labels):
        z = logits("student", leaf["student_hidden"][position], frozen=False)
        expected.terms["cross_entropy"] = expected.terms["cross_entropy"] - log_softmax(z)[label]

    said, predicted, gold, made = [], [], [], []
    for pair, position in enumerate(case.paired.tolist()):
        z_t = meant("teacher", logits("teacher", leaf["teacher_hidden"][pair].detach(), frozen=True))
        z_s = meant("student", logits("student", leaf["student_hidden"][position], frozen=False))
        z_ts = meant("student", logits("student", leaf["to_student"][pair], frozen=True))
        z_st = meant("teacher", logits("teacher", leaf["to_teacher"][pair], frozen=True))
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

OPTIONS: dict[str, DualSpaceOptions] = {
    "defaults": DualSpaceOptions(),
    "ungated": ungated(),
    "v1": DSKD_V1,
    "v2": DSKD_V2,
    "v2, same vocabulary": DSKD_V2_SAME_VOCABULARY,
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
    "another divergence in the teacher's space": ungated(
        divergence="js", mix=0.2, s2t_divergence="adaptive_kl"
    ),
}


def assert_equal(case: Leaves, options: DualSpaceOptions) -> None:
    """Every term, its gradients with respect to every leaf, and the counts."""
    found, expected = by_library(case, options), by_definition(case, options)
    assert set(found.sums) == set(expected.terms)
    for name, term in expected.terms.items():
        torch.testing.assert_close(found.sums[name], term, rtol=1e-11, atol=1e-12)
        mine, theirs = (gradients(one, case.trained, retain_graph=True) for one in (found.sums[name], term))
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)  # names the leaf that differs
    counts = {"unmapped": expected.unmapped}
    if options.spaces != "teacher":
        if options.target == "projected" or options.gate is not None:
            counts["agreed"] = expected.agreed
        if options.gate is not None:
            counts["gated"] = expected.gated
    assert {name: int(count) for name, count in found.counts.items()} == counts


@pytest.mark.parametrize("case", SEEDS)
def test_the_cases_have_pairs_on_both_sides_of_every_choice(case: str) -> None:
    made = case_of(case)
    pairs = len(made.paired)
    for by in ("prediction", "gold"):
        options = ungated(gate=by, t2s_target=by)
        expected = by_definition(made, options)
        assert 0 < expected.unmapped < pairs
        assert 0 < expected.agreed < pairs
        assert 0 < expected.gated < pairs
    dropped = by_definition(made, ungated(gate="gold", drop_unmapped=True))
    assert 0 < dropped.gated < pairs


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("case", SEEDS)
def test_terms_gradients_and_counts_equal_the_formulas(case: str, options: DualSpaceOptions) -> None:
    assert_equal(case_of(case), options)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_equals_its_formula(name: Divergence, temperature: float) -> None:
    options = ungated(divergence=name, temperature=temperature, gate="gold", t2s_target="gold")
    assert_equal(case_of("all of these"), options)
    assert_equal(case_of("plain"), replace(options, columns="overlap", s2t_columns="overlap"))


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_unreachable_ids_get_no_gradient_in_distillation_and_change_nothing(side: str) -> None:
    transforms = Transforms(bias=True, unreachable=(4,))
    case = random_leaves(5, transforms=(transforms, transforms))
    before = by_library(case).sums
    terms = [name for name in before if name != "cross_entropy"]
    for name in terms:
        assert gradients(before[name], case.trained, retain_graph=True)["student_weight"][4].eq(0).all()
    with torch.no_grad():
        case.by_name[f"{side}_weight"][4] = 9.0
        case.by_name[f"{side}_bias"][4] = 100.0
    after = by_library(case).sums
    for name in terms:
        torch.testing.assert_close(after[name], before[name])


def test_a_prediction_is_never_an_unreachable_id() -> None:
    case = random_leaves(6)
    with torch.no_grad():
        case.by_name["teacher_bias"][1] = 100.0  # the largest of all, and unmapped
    masked = replace(case, teacher=Transforms(bias=True, unreachable=(1,)))
    plain = replace(case, teacher=Transforms(bias=True))
    expected = by_definition(masked, ungated()).unmapped
    assert by_library(plain).counts["unmapped"].item() == len(case.paired)
    assert by_library(masked).counts["unmapped"].item() == expected < len(case.paired)


def test_temperature_is_of_the_divergences_alone() -> None:
    case = case_of("plain")
    for trained_by in ("prediction", "distribution"):
        cold, warm = (
            by_library(case, ungated(temperature=temperature, t2s_target=trained_by)).sums
            for temperature in (1.0, 3.0)
        )
        for name in ("cross_entropy", "t2s_kl" if trained_by == "distribution" else "t2s_ce"):
            assert torch.equal(cold[name], warm[name])
        assert warm["t2s_kd"] < cold["t2s_kd"]
        assert warm["s2t_kd"] < cold["s2t_kd"]


def test_the_exact_target_on_the_overlap_is_the_limit_of_a_perfect_projector() -> None:
    """Where z_ts says on O what the teacher says there, both targets are the same."""
    case = case_of("plain")
    assert case.maps.overlap is not None
    of_teacher, of_student = case.maps.overlap.T
    z_t = case.head("teacher").logits(case.by_name["teacher_hidden"])[:, of_teacher]
    rows = case.by_name["student_weight"][of_student]
    perfect = torch.linalg.solve(rows, z_t.T).T.detach()
    found = [
        dual_space(case.states(), perfect, case.by_name["to_teacher"], case.maps, options).sums["t2s_kd"]
        for options in (
            ungated(columns="overlap"),
            ungated(columns="overlap", target="exact"),
        )
    ]
    torch.testing.assert_close(found[0], found[1])


# ---- What each term moves --------------------------------------------------------------------------------

TABLE = {
    "cross_entropy": {"student_hidden", "student_weight", "student_bias"},
    "t2s_ce": {"to_student"},
    "t2s_kl": {"to_student"},
    "t2s_kd": {"student_hidden", "student_weight", "student_bias"},
    "s2t_kd": {"to_teacher"},
}
"""Of the student and what carries states; to_teacher is made of the student's states, and P_st."""

HOWEVER: dict[str, DualSpaceOptions] = {
    **{name: OPTIONS[name] for name in ("ungated", "v1", "v2", "distribution", "overlap in both")},
    **{f"exact, {columns}": ungated(target="exact", columns=columns) for columns in ("all", "overlap")},
    **{name: ungated(divergence=name, gate="gold") for name in DIVERGENCES},
}


@pytest.mark.parametrize("options", HOWEVER.values(), ids=HOWEVER)
def test_every_term_moves_what_the_table_says_and_nothing_of_the_teacher(options: DualSpaceOptions) -> None:
    case = random_leaves(7, transforms=TRANSFORMS["bias and scale"])
    for term, value in by_library(case, options).sums.items():
        found = gradients(value, case.by_name, retain_graph=True)
        assert {name for name, one in found.items() if one.ne(0).any()} == TABLE[term], term


@pytest.mark.parametrize("options", HOWEVER.values(), ids=HOWEVER)
@pytest.mark.parametrize("trained", [True, False])
def test_with_projectors_the_terms_move_those_that_are_trained(
    trained: bool, options: DualSpaceOptions
) -> None:
    """A projector that is solved is a buffer: nothing moves it, and s2t_kd moves the student's body."""
    case, module = with_projectors(trained=trained)
    projectors = module.projectors
    leaves = {**case.by_name, **dict(projectors.named_parameters())}
    states, wanted = case.states(), {name: set(moved) for name, moved in TABLE.items()}
    for name in ("t2s_ce", "t2s_kl"):
        wanted[name] = {"teacher_to_student", "teacher_to_student_bias"} & set(leaves)
    wanted["s2t_kd"] = {"student_hidden", "student_to_teacher", "student_to_teacher_bias"} & set(leaves)
    terms = dual_space(
        states,
        projectors.to_student(states.teacher_hidden.detach()),
        projectors.to_teacher(states.student_hidden[states.paired]),
        case.maps,
        options,
    )
    for term, value in terms.sums.items():
        found = gradients(value, leaves, retain_graph=True)
        assert {name for name, one in found.items() if one.ne(0).any()} == wanted[term], term


def with_projectors(
    *, trained: bool = True, options: DualSpaceOptions | None = None, **more: Any
) -> tuple[Leaves, DualSpaceLoss]:
    """A case and a module; both projectors are trained and have a bias, or both are solved."""
    case = random_leaves(8, transforms=TRANSFORMS["bias and scale"])
    assert case.maps.overlap is not None
    kind: Any = "trained" if trained else "solved"
    projectors = Projectors(
        case.by_name["teacher_weight"].detach(),
        case.by_name["student_weight"],
        case.maps.overlap,
        student_to_teacher=kind,
        teacher_to_student=kind,
        bias=trained,
    )
    return case, DualSpaceLoss(projectors.double(), case.maps, options, **more)


# ---- Nothing aligned -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("labels", [0, 3])
@pytest.mark.parametrize("case", SEEDS)
def test_without_pairs_every_term_is_a_zero_connected_to_all_that_it_would_move(
    case: str, labels: int, options: DualSpaceOptions
) -> None:
    made = random_leaves(labels=labels, pairs=0, transforms=TRANSFORMS[case])
    found = by_library(made, options)
    terms = {name: term for name, term in found.sums.items() if labels == 0 or name != "cross_entropy"}
    assert {name: term.item() for name, term in terms.items()} == dict.fromkeys(terms, 0.0)
    assert {name: count.item() for name, count in found.counts.items()} == dict.fromkeys(found.counts, 0)
    for name, term in terms.items():
        leaves = {leaf: made.by_name[leaf] for leaf in TABLE[name] & set(made.trained)}
        connected = torch.autograd.grad(term, list(leaves.values()), allow_unused=True, retain_graph=True)
        for leaf, gradient in zip(leaves, connected, strict=True):
            assert gradient is not None, f"{leaf} is not connected to {name}"
            assert gradient.eq(0).all(), f"{leaf}: {gradient}"


@pytest.mark.parametrize("gate", [None, "prediction"])
def test_with_nothing_but_unmapped_predictions_the_first_two_terms_are_connected_zeros(gate: Any) -> None:
    case = case_of("plain")
    maps = VocabularyMaps(to_student=torch.full((6,), UNMAPPED))
    found = by_library(replace(case, maps=maps), ungated(gate=gate))
    assert found.sums["t2s_ce"].item() == 0
    (carried,) = torch.autograd.grad(found.sums["t2s_ce"], case.by_name["to_student"], allow_unused=True)
    assert carried is not None
    assert carried.eq(0).all()
    assert found.counts["unmapped"].item() == len(case.paired)
    assert (found.sums["t2s_kd"].item() == 0) == (gate is not None)
    assert found.sums["s2t_kd"] > 0


# ---- By hand ---------------------------------------------------------------------------------------------


def by_hand(numbers: Mapping[str, list[list[float]]], labels: list[int], maps: VocabularyMaps) -> Leaves:
    """A case of these numbers, whose pairs are its positions."""
    leaves = {
        name: torch.tensor(values, dtype=torch.float64, requires_grad=True)
        for name, values in numbers.items()
    }
    for side in ("teacher", "student"):
        leaves[f"{side}_bias"] = torch.zeros(len(leaves[f"{side}_weight"]), dtype=torch.float64)
    return Leaves(leaves, torch.tensor(labels), torch.arange(len(labels)), maps)


def two_ids() -> Leaves:
    """Two ids and one column on each side, so that every softmax is of `(0, number)`.

    pair    h_t   p_t           z_ts          softmax       h_s   p_s           z_st = h_s    said  y
    first   ln2   (1/3, 2/3)    (0, 2 ln2)    (1/5, 4/5)    ln3   (1/4, 3/4)    (0, ln3)      1     1
    second  -ln2  (2/3, 1/3)    (0, -2 ln2)   (4/5, 1/5)    0     (1/2, 1/2)    (0, 0)        0     none
    """
    numbers = {
        "teacher_hidden": [[LN2], [-LN2]],
        "student_hidden": [[LN3], [0.0]],
        "teacher_weight": [[0.0], [1.0]],
        "student_weight": [[0.0], [1.0]],
        "to_student": [[2 * LN2], [-2 * LN2]],
        "to_teacher": [[LN3], [0.0]],
    }
    return by_hand(numbers, [1, 0], VocabularyMaps(to_student=torch.tensor([UNMAPPED, 1])))


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
    found = by_library(two_ids(), ungated(**options))
    # labels 1 and 0: ln(4/3) + ln 2
    assert found.sums["cross_entropy"].item() == pytest.approx(math.log(8 / 3), rel=ON_PAPER)
    assert found.sums["t2s_ce"].item() == pytest.approx(t2s_ce, rel=ON_PAPER)
    assert found.sums["t2s_kd"].item() == pytest.approx(t2s_kd, rel=ON_PAPER)
    assert found.sums["s2t_kd"].item() == pytest.approx(s2t_kd, rel=ON_PAPER)
    assert found.counts["unmapped"].item() == 1
    assert found.counts["agreed"].item() == agreed


@pytest.mark.parametrize("squared", [False, True])
def test_the_divergence_at_a_temperature_worked_out_by_hand(squared: bool) -> None:
    """At 2 the first softmaxes are of ln2 and ln3 / 2, the last of ln2 / 2: squares of one another."""
    options = ungated(temperature=2.0, gate="prediction", scale_by_temperature_squared=squared)
    found = by_library(two_ids(), options)
    q = math.sqrt(3) / (1 + math.sqrt(3))
    kd = math.log(1 / 3 / (1 - q)) / 3 + math.log(2 / 3 / q) * 2 / 3
    assert found.sums["t2s_kd"].item() == pytest.approx(kd * (4 if squared else 1), rel=ON_PAPER)
    assert found.sums["t2s_ce"].item() == pytest.approx(math.log(5 / 4), rel=ON_PAPER)


def test_the_gradients_of_two_pairs_worked_out_by_hand() -> None:
    case = two_ids()
    sums = by_library(case).sums
    ce, kd, s2t = (
        gradients(sums[name], case.trained, retain_graph=True) for name in ("t2s_ce", "t2s_kd", "s2t_kd")
    )
    # softmax minus one-hot: 4/5 - 1; the second pair has no label
    assert ce["to_student"].flatten().tolist() == pytest.approx([-1 / 5, 0])
    # p_s minus softmax(z_ts): 3/4 - 4/5 and 1/2 - 1/5, times the head's row (0, 1)
    assert kd["student_hidden"].flatten().tolist() == pytest.approx([-1 / 20, 3 / 10])
    # the same, times h_s, which is zero in the second pair
    assert kd["student_weight"].flatten().tolist() == pytest.approx([LN3 / 20, -LN3 / 20])
    # 3/4 - 2/3 and 1/2 - 1/3
    assert s2t["to_teacher"].flatten().tolist() == pytest.approx([1 / 12, 1 / 6])


def three_ids() -> Leaves:
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
        "teacher_hidden": [[LN2]],
        "student_hidden": [[LN3]],
        "teacher_weight": [[0.0], [1.0], [2.0]],
        "student_weight": [[0.0], [2.0], [1.0]],
        "to_student": [[2 * LN2]],
        "to_teacher": [[LN3]],
    }
    overlap = torch.tensor([[1, 2], [2, 1]])
    return by_hand(numbers, [0], VocabularyMaps(to_student=torch.tensor([UNMAPPED, 2, 1]), overlap=overlap))


# KL((2/3, 1/3), (3/4, 1/4)), which is also S2T_FIRST
ON_OVERLAP = math.log(8 / 9) * 2 / 3 + math.log(4 / 3) / 3


@pytest.mark.parametrize(
    ("options", "term", "expected"),
    [
        ({}, "cross_entropy", math.log(13)),
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
    found = by_library(three_ids(), ungated(**options))
    assert found.sums[term].item() == pytest.approx(expected, rel=ON_PAPER)


def test_the_gradients_on_shared_ids_worked_out_by_hand() -> None:
    case = three_ids()
    options = ungated(columns="overlap", t2s_target="distribution", s2t_columns="overlap")
    sums = by_library(case, options).sums
    kl_, kd, s2t = (
        gradients(sums[name], case.trained, retain_graph=True) for name in ("t2s_kl", "t2s_kd", "s2t_kd")
    )
    # (4/5, 1/5) - (2/3, 1/3) times the rows 2 and 1
    assert kl_["to_student"].item() == pytest.approx(2 / 15)
    # (3/4, 1/4) - (4/5, 1/5) times the same, and times h_s for the rows; the one that is not shared stays
    assert kd["student_hidden"].item() == pytest.approx(-1 / 20)
    assert kd["student_weight"].flatten().tolist() == pytest.approx([0, -LN3 / 20, LN3 / 20])
    # (3/4, 1/4) - (2/3, 1/3), times the teacher's rows 2 and 1
    assert s2t["to_teacher"].item() == pytest.approx(1 / 12)


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
    found = by_library(three_ids(), ungated(divergence=name, columns="overlap"))
    assert found.sums["t2s_kd"].item() == pytest.approx(BY_HAND[name], rel=1e-12)


def with_ties(labels: list[int], to_student: list[int]) -> Leaves:
    """One pair; three ids on both sides, the last two of which have the same row, so that they tie."""
    numbers = {
        "teacher_hidden": [[LN2]],
        "student_hidden": [[LN3]],
        "teacher_weight": [[0.0], [1.0], [1.0]],
        "student_weight": [[0.0], [1.0], [1.0]],
        "to_student": [[2 * LN2]],
        "to_teacher": [[LN3]],
    }
    return by_hand(numbers, labels, VocabularyMaps(to_student=torch.tensor(to_student)))


def test_of_ids_that_tie_the_teacher_predicts_the_lowest() -> None:
    assert by_library(with_ties([0], [2, 2, UNMAPPED])).counts["unmapped"].item() == 0
    assert by_library(with_ties([0], [2, UNMAPPED, 2])).counts["unmapped"].item() == 1


@pytest.mark.parametrize("gate", ["prediction", "gold"])
def test_of_ids_that_tie_the_projected_teacher_says_the_lowest(gate: Any) -> None:
    lowest, highest = with_ties([1], [0, 1, 2]), with_ties([2], [0, 2, 1])
    for case, count in ((lowest, 1), (highest, 0)):
        counts = by_library(case, ungated(gate=gate)).counts
        assert (counts["gated"].item(), counts["agreed"].item()) == (count, count)


# ---- What terms are divided by ---------------------------------------------------------------------------

EACH = ("t2s_ce", "t2s_kl", "s2t_kd")


@pytest.mark.parametrize(
    ("options", "each", "t2s_kd"),
    # alpha 0.4; 8 labels and 5 pairs in the step, 4 pairs here, of which 2 came through
    [
        (ungated(), 0.4 / 5, 0.4 / 5),
        (ungated(gate="gold"), 0.4 / 5, 0.4 / 5),
        (ungated(normaliser="labels"), 0.4 / 8, 0.4 / 8),
        (ungated(normaliser="micro_batch"), 0.4 / 4, 0.4 / 4),
        (ungated(gated_mean=True), 0.4 / 5, 0.4 / 2),
        (DSKD_V1, 0.4 / 8, 0.4 / 8),
        (DSKD_V2, 0.4 / 4, 0.4 / 2),
        (DSKD_V2_SAME_VOCABULARY, 0.4 / 8, 0.4 / 2),
    ],
)
def test_terms_are_divided_by_what_the_options_name(
    options: DualSpaceOptions, each: float, t2s_kd: float
) -> None:
    weights = options.weights(Reduction(labels=8, pairs=5, alpha=0.4), 4, 2)
    assert weights["cross_entropy"] == pytest.approx(0.6 / 8, rel=ON_PAPER)
    assert [weights[name] for name in EACH] == [pytest.approx(each, rel=ON_PAPER)] * len(EACH)
    assert weights["t2s_kd"] == pytest.approx(t2s_kd, rel=ON_PAPER)
    halved = replace(options, s2t_weight=0.5).weights(Reduction(labels=8, pairs=5, alpha=0.4), 4, 2)
    assert halved == {**weights, "s2t_kd": pytest.approx(each / 2, rel=ON_PAPER)}


@pytest.mark.parametrize("options", [DSKD_V1, DSKD_V2, DSKD_V2_SAME_VOCABULARY, ungated()])
def test_nothing_is_divided_by_zero(options: DualSpaceOptions) -> None:
    weights = options.weights(Reduction(labels=0, pairs=0, alpha=0.5), 0, 0)
    assert set(weights.values()) == {0.5}


def test_the_loss_of_v2_worked_out_by_hand() -> None:
    """Of 2 pairs the first alone is mapped, and agrees: 1 in the micro-batch; 10 labels and 20 in the step.

    0.5 ln(8/3) / 10 + 0.5 (ln(5/4) / 1 + FIRST / 1 + S2T_FIRST / 1)
    """
    case = two_ids()
    projectors = Projectors(
        torch.eye(2), torch.eye(2), torch.tensor([[0, 0], [1, 1]]), student_to_teacher="trained"
    )
    projectors.teacher_to_student = torch.nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64))
    projectors.student_to_teacher = torch.nn.Parameter(torch.tensor([[1.0]], dtype=torch.float64))
    expected = math.log(8 / 3) / 20 + (math.log(5 / 4) + FIRST + S2T_FIRST) / 2
    for fused in (False, True):
        module = DualSpaceLoss(projectors, case.maps, DSKD_V2, fused=fused)
        loss = module(case.states(), Reduction(labels=10, pairs=20, alpha=0.5)).loss
        assert loss.item() == pytest.approx(expected, rel=1e-12)


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
        ({"divergence": "l2"}, r"^divergence='l2'; it is one of \('kl', "),
        ({"divergence": None}, r"^divergence=None; it is one of \('kl', "),
        ({"s2t_divergence": "l2"}, r"^s2t_divergence='l2'; it is one of \('kl', "),
        ({"temperature": 0.0}, r"^temperature=0.0; it is above 0$"),
        ({"temperature": math.nan}, r"^temperature=nan; it is above 0$"),
        ({"s2t_weight": -0.1}, r"^s2t_weight=-0.1; it is a weight, from 0$"),
        ({"s2t_weight": math.inf}, r"^s2t_weight=inf; it is a weight, from 0$"),
        *(
            (
                {"target": "exact", "t2s_target": name},
                rf"^t2s_target='{name}' trains P_ts, .* there is none: ",
            )
            for name in ("gold", "distribution")
        ),
        (
            {"target": "projected", "spaces": "teacher", "t2s_target": "gold"},
            r"^t2s_target='gold' trains P_ts, .* spaces='teacher', there is none: ",
        ),
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
        DualSpaceOptions(**given)


def test_what_is_infinite_outside_the_overlap_is_allowed_on_it() -> None:
    options = ungated(target="exact", columns="overlap", divergence="reverse_kl")
    assert by_library(case_of("plain"), options).sums["t2s_kd"].isfinite()


NEEDS_OVERLAP: list[dict[str, Any]] = [
    {"columns": "overlap"},
    {"s2t_columns": "overlap"},
    {"target": "exact"},
    {"t2s_target": "distribution"},
]


@pytest.mark.parametrize("overlap", [None, torch.empty(0, 2, dtype=torch.int64)], ids=["none", "empty"])
@pytest.mark.parametrize("given", NEEDS_OVERLAP, ids=str)
def test_options_that_speak_of_the_overlap_need_one(given: dict[str, Any], overlap: Tensor | None) -> None:
    case = case_of("plain")
    maps = VocabularyMaps(to_student=case.maps.to_student, overlap=overlap)
    options = ungated(**given)
    message = r"give VocabularyMaps\(overlap=aligner.vocabulary_map.overlap\), not empty$"
    with pytest.raises(ValueError, match=message):
        by_library(replace(case, maps=maps), options)
    _, module = with_projectors()
    for fused in (False, True):
        with pytest.raises(ValueError, match=message):
            DualSpaceLoss(module.projectors, maps, options, fused=fused)


@pytest.mark.parametrize("given", [one for one in NEEDS_OVERLAP if "t2s_target" not in one], ids=str)
def test_in_the_other_space_they_need_none(given: dict[str, Any]) -> None:
    space: Any = "student" if "s2t_columns" in given else "teacher"
    maps = VocabularyMaps(to_student=case_of("plain").maps.to_student)
    by_library(replace(case_of("plain"), maps=maps), ungated(spaces=space, **given))


# ---- Dtypes, and the module ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIVERGENCES)
def test_models_in_bfloat16_have_float32_sums_off_by_what_rounding_may_do(
    name: Divergence, device: str
) -> None:
    half = random_leaves(9, device=device).cast(
        {
            "teacher_hidden": torch.bfloat16,
            "student_hidden": torch.bfloat16,
            "teacher_weight": torch.bfloat16,
            "student_weight": torch.bfloat16,
            "to_student": torch.float32,
            "to_teacher": torch.float32,
        }
    )
    options = ungated(divergence=name)
    found, expected = by_library(half, options), by_definition(half.cast(torch.float64), options)
    allowed = losses_by_rounding(lambda: by_library(half, options).sums, expected.terms)
    assert_loses_no_more(found.sums, expected.terms, allowed)
    for term in expected.terms:
        assert found.sums[term].dtype == torch.float32
        moved = gradients(found.sums[term], half.trained, retain_graph=True)
        assert all(item.isfinite().all() for item in moved.values())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("trained", [True, False])
def test_the_module_is_the_function_with_its_options_weighted(
    trained: bool, options: DualSpaceOptions
) -> None:
    case, module = with_projectors(trained=trained, options=options, fused=False)
    projectors, states, reduction = module.projectors, case.states(), Reduction(31, 17, 0.3)
    terms = dual_space(
        states,
        projectors.to_student(states.teacher_hidden.detach()),
        projectors.to_teacher(states.student_hidden[states.paired]),
        case.maps,
        options,
    )
    found = module(states, reduction)
    gated = terms.counts["gated"].item() if "gated" in terms.counts else len(case.paired)
    weights = options.weights(reduction, len(case.paired), int(gated))
    expected = sum(weights[name] * value.item() for name, value in terms.sums.items())
    assert found.loss.item() == pytest.approx(expected, rel=1e-12)
    assert {name: value.item() for name, value in found.sums.items()} == {
        name: value.item() for name, value in terms.sums.items()
    }
    assert found.counts == terms.counts


@pytest.mark.parametrize("trained", [True, False])
def test_the_module_saves_its_projectors_and_not_the_maps(trained: bool) -> None:
    _, module = with_projectors(trained=trained)
    assert set(module.state_dict()) == {f"projectors.{name}" for name in module.projectors.state_dict()}
    assert {"to_student", "overlap"} <= set(dict(module.named_buffers())), "they follow the module"


def test_every_trained_leaf_is_in_the_table() -> None:
    assert set().union(*TABLE.values()) == set(TRAINED)
