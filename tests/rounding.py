"""What rounding may cost: bounds that follow from the numbers computed with, for any machine's kernels.

Which library multiplies, how wide its registers are and how many threads it has decide in which order a sum
is made, and of which polynomial an exponential. So two errors of one machine are two draws, and a test that
compares them holds on that machine only. Here a bound follows from three things: the unit roundoff u of the
dtype (no operation is off by more than u of its result, an exponential or logarithm by 2 u), how many
operations a number goes through, and how far that moves the result, which float64 says.

Sums. Roundings are taken as independent, uniform within u. Then n numbers, added in whatever order, are off
by at most `c sqrt(n / 3) u` times the sum of their sizes, but with a probability of `2 exp(-c^2 / 2)` (Higham
and Mary, "A new approach to probabilistic rounding error analysis", 2019, with the variance of a uniform
error in place of its bound). The worst case, `n u`, no order reaches. `CERTAIN` is the c that is taken.

There are two ways to a bound:

* `divergence_bounds`: of what has a short closed form, term by term.
* `losses_by_rounding`: of a whole loss, by its definition in float64, of which each product with a head is
  disturbed at random by what it may round (Monte Carlo arithmetic, Parker 1997). It draws nothing from the
  kernels of a machine.

tests/test_rounding.py shows that faults are larger than either allows.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from dskd.nn import DIVERGENCES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from dskd.nn.divergences import Divergence

__all__ = [
    "ON_PAPER",
    "DivergenceBounds",
    "assert_loses_no_more",
    "assert_within",
    "divergence_bounds",
    "losses_by_rounding",
    "probabilities_bound",
    "product_bound",
    "unit",
]

CERTAIN = 6.0
"""Deviations by which nothing is off: one in 10^8 is, of kernels and not of runs of the same ones."""


def unit(dtype: torch.dtype) -> float:
    """The unit roundoff: a rounded number is off by so much of itself, at most."""
    return torch.finfo(dtype).eps / 2


def summed(count: int) -> float:
    """By how many roundings of the sum of their sizes a sum of so many numbers is off, in any order."""
    return CERTAIN * math.sqrt(count / 3)


def added(errors: Tensor) -> Tensor:
    """How far a sum over the last dimension is off, of numbers that are off by so much, each by itself."""
    length: Tensor = errors.norm(dim=-1)
    return CERTAIN * length / math.sqrt(3)


ON_PAPER = 1024 * unit(torch.float64)
"""Relative, 1.1e-13: what a number that was worked out on paper may be off in float64.

Such numbers come of at most a hundred operations, on terms at most ten times as large as they are.
"""


def assert_within(found: Tensor, expected: Tensor, bound: Tensor) -> None:
    off = (found.double() - expected).abs()
    assert (off <= bound).all(), f"off by {(off / bound).max():.3g} times what rounding may do"


def product_bound(rows: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """How far `rows weight^T + bias` may be off, `[m, n]` in float64, where it is given in this dtype.

    Products are added up in float32, or in float64 where they are wide: `summed` roundings of the sum of the
    sizes of all terms. The product is rounded to the dtype, again with the bias, and again as it is copied to
    where it belongs.
    """
    rows, weight = rows.double(), weight.double()
    sizes, made = rows.abs() @ weight.abs().T, (rows @ weight.T).abs()
    if bias is not None:
        sizes, made = sizes + bias.double().abs(), made + bias.double().abs()
    added_in = torch.promote_types(dtype, torch.float32)
    return summed(rows.shape[1] + 1) * unit(added_in) * sizes + 3 * unit(dtype) * made


# ---- Divergences -----------------------------------------------------------------------------------------

OPERATIONS = 16
"""A number of a closed form goes through no more, exponentials and logarithms counted twice.

The longest is js by autograd: a mixture of exponentials, its logarithm, differences, products, and back.
"""

MASKED = 1e29
"""Logits below minus this are no numbers of the computation: what is masked has no probability."""


@dataclass(frozen=True)
class DivergenceBounds:
    """How far a divergence a token, `[n]`, and its gradient by the student's logits, `[n, V]`, may be off."""

    items: Tensor
    gradient: Tensor


def divergence_bounds(
    name: Divergence,
    student_logits: Tensor,
    teacher_logits: Tensor,
    mix: float | None = None,
    *,
    dtype: torch.dtype,
) -> DivergenceBounds:
    """Of logits of any dtype, with which is computed in this one, by the definition or in place.

    A divergence is a sum over tokens of `f(log p, log q)`. With `g = df/dlog q`, its gradient is
    `g - q sum(g)`. What is off, to first order in u:

    1. log p and log q, each by itself and all of a row together, see `_Logarithms`. They move a sum by its
       slopes, and g by its own, which autograd finds: g of a token depends on nothing but that token.
    2. What is made of them. g is a product of p or q with numbers of which the largest are those of g itself,
       the divergence and 1: `OPERATIONS` roundings. A mixture, and the weights in it, are exponentials of
       logarithms and off by a rounding of these, twice.
    3. Sums over tokens, of terms that are no larger than p, q and the slopes together.

    Two have steps at which a rounding moves more than it is:

    4. `tvd` has the sign of `q - p`, which may be either where they are as near as both are off: so is g.
    5. `adaptive_kl` has a head, in which a token is or is not: see `_share_off`.
    """
    u, weight = unit(dtype), 0.5 if mix is None else mix
    student, teacher = (_Logarithms.of(logits, u) for logits in (student_logits, teacher_logits))
    p, q = teacher.probs, student.probs
    slopes = _Slopes.of(name, student, teacher, mix)
    g = slopes.by_q

    logarithms = teacher.log_probs.abs() + student.log_probs.abs()
    made = OPERATIONS * (g.abs() + q * (1 + slopes.items.abs()[:, None])) + 2 * g.abs() * logarithms
    made = u * (made + 2 * q * (student.log_probs.abs() - math.log(min(weight, 0.1))))
    if name == "tvd":
        made = made + q * ((p - q).abs() <= p * teacher.off + q * student.off)
    adding = summed(g.shape[-1]) * u * (slopes.by_p.abs() + g.abs() + p + q).sum(-1)

    items = teacher.moves(slopes.by_p) + student.moves(g) + added(made) + added(OPERATIONS * u * p) + adding
    total, total_off = (
        g.sum(-1, keepdim=True).abs(),
        teacher.moves(slopes.of_g[0]) + student.moves(slopes.of_g[1]) + added(made) + adding,
    )
    gradient = slopes.of_g[0].abs() * teacher.off + slopes.of_g[1].abs() * student.off + made
    gradient = gradient + q * (total_off[:, None] + total * (student.off + OPERATIONS * u))
    if name == "adaptive_kl":
        share, backward = _share_off(student, teacher, weight, dtype), _kl(student, teacher)
        items = items + share * (_kl(teacher, student) - backward).abs()
        apart = q * (student.log_probs - teacher.log_probs - backward[:, None]) - (q - p)
        gradient = gradient + share[:, None] * apart.abs()
    least = 1e3 * torch.finfo(dtype).tiny  # smaller numbers have fewer digits
    return DivergenceBounds(items + least, gradient + least)


@dataclass(frozen=True)
class _Logarithms:
    """Log-probabilities in float64 and how far they may be off: so much, and exponentials so many times.

    They are `z - max - log sum exp(z - max)`; what makes probabilities of them may be a softmax once more.
    Each is off by itself, `alone`: by a rounding for each of three differences of such sizes, and by
    exponentials. All of a row are off together, `shared`: twice by the logarithm of a sum, and of its terms,
    which are off by a rounding of their logarithms; and by the largest logit and that logarithm, where these
    are added first.
    """

    log_probs: Tensor
    probs: Tensor
    alone: Tensor
    shared: Tensor

    @classmethod
    def of(cls, logits: Tensor, u: float) -> _Logarithms:
        logits = logits.detach().double()
        log_probs = logits.log_softmax(-1)
        probs = log_probs.exp()
        seen = logits.abs().where(logits > -MASKED, 0)
        largest = seen.amax(-1, keepdim=True) if logits.numel() else seen.sum(-1, keepdim=True)
        mean = (probs * log_probs).sum(-1, keepdim=True).abs()
        total = logits.logsumexp(-1, keepdim=True).abs()
        shared = u * (2 * summed(logits.shape[-1]) + largest + total + 2 * mean + OPERATIONS)
        return cls(log_probs, probs, u * (3 * log_probs.abs() + 4), shared)

    @property
    def off(self) -> Tensor:
        return self.alone + self.shared

    def moves(self, slopes: Tensor) -> Tensor:
        """How far that moves a sum over a row, of which these are the slopes: `[n]`."""
        return added(slopes * self.alone) + slopes.sum(-1).abs() * self.shared.squeeze(-1)


@dataclass(frozen=True)
class _Slopes:
    """Divergences, their slopes by log p and log q, and the slopes by these of the second of them."""

    items: Tensor
    by_p: Tensor
    by_q: Tensor
    of_g: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, name: Divergence, student: _Logarithms, teacher: _Logarithms, mix: float | None) -> _Slopes:
        leaves = [side.log_probs.clone().requires_grad_() for side in (student, teacher)]
        items = DIVERGENCES[name](*leaves, **({} if mix is None else {"mix": mix}))
        by_q, by_p = torch.autograd.grad(items.sum(), leaves, create_graph=True)
        found = torch.autograd.grad(by_q.sum(), leaves, allow_unused=True)
        right, left = (torch.zeros_like(by_q) if one is None else one for one in found)
        return cls(items.detach(), by_p.detach(), by_q.detach(), (left.detach(), right.detach()))


def _kl(left: _Logarithms, right: _Logarithms) -> Tensor:
    return (left.probs * (left.log_probs - right.log_probs)).sum(-1)


def _share_off(student: _Logarithms, teacher: _Logarithms, threshold: float, dtype: torch.dtype) -> Tensor:
    """How far the share of `adaptive_kl`, which is at most 1, may be off: `[n]`.

    Each gap `|p - q|` is off by what p and q are. A token may be in the head or not where the sum of p up to
    it is as near to the threshold as it may be off, or its p as near to the one there: any may be the last.
    """
    p, q, u, columns = teacher.probs, student.probs, unit(dtype), teacher.probs.shape[-1]
    gaps = (p - q).abs()
    gaps_off = teacher.moves(p) + student.moves(q) + summed(columns) * u * (p + q).sum(-1)
    ordered = p.sort(dim=-1, stable=True)
    sums, alone = ordered.values.cumsum(-1), teacher.alone.gather(-1, ordered.indices)
    near = 128 * torch.finfo(dtype).eps + teacher.moves(p)[:, None] + summed(columns) * u
    last = (sums <= threshold).sum(-1, keepdim=True).clamp(max=columns - 1)
    ties = (ordered.values - ordered.values.gather(-1, last)).abs() <= 2 * alone * ordered.values
    ties &= ties.scatter(-1, last, value=False).any(-1, keepdim=True)  # with others than itself
    unsure = gaps.gather(-1, ordered.indices) * (((sums - threshold).abs() <= near) | ties)
    whole = gaps.sum(-1).clamp(min=torch.finfo(torch.float64).tiny)
    return ((2 * gaps_off + unsure.sum(-1)) / whole + OPERATIONS * u).clamp(max=1)


def probabilities_bound(logits: Tensor, *, dtype: torch.dtype) -> Tensor:
    """How far probabilities made of log-probabilities in this dtype may be off, `[n, V]` in float64."""
    made = _Logarithms.of(logits, unit(dtype))
    return made.probs * made.off + torch.finfo(dtype).tiny


# ---- Whole losses ----------------------------------------------------------------------------------------

DRAWS = 8
"""Of disturbances, of which the mean and the deviation are taken."""

MORE = 2.0
"""A form may be off by so many times what the definition may be.

A gradient by the weights is rounded once for each chunk and once as it is given back, where the definition
rounds it once; as roundings add up by their squares, that is sqrt(2). The rest is for what eight draws say.
"""


def losses_by_rounding(
    compute: Callable[[], Mapping[str, Tensor]], exact: Mapping[str, Tensor]
) -> dict[str, float]:
    """How far each of what a definition computes may be off by rounding, as the norm of the difference.

    The definition is run with heads that multiply in float64 and are disturbed at random by what the dtype in
    which they multiply otherwise may round, other linear maps likewise, `DRAWS` times: see `_RoundedProduct`.
    What that moves a result has a mean and a deviation, which is small where many numbers are off, and large
    where it is one number. The mean and `CERTAIN` deviations, `MORE` times, are allowed.

    Args:
        compute: what is compared, by name, by the definition.
        exact: the same in float64.
    """
    generator = torch.Generator().manual_seed(1)
    moved: dict[str, list[float]] = {name: [] for name in exact}

    def of_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = weight.dtype
        if torch.is_autocast_enabled(weight.device.type) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(weight.device.type)
        made: Tensor = _RoundedProduct.apply(hidden, weight, bias, dtype, generator)
        return made

    def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return of_head(hidden, weight, bias).to(weight.dtype)

    heads = patch("dskd.nn.heads.functional", SimpleNamespace(linear=of_head))
    with heads, patch("torch.nn.functional.linear", linear):
        for _ in range(DRAWS):
            found = compute()
            for name, one in exact.items():
                moved[name].append(float((found[name].detach().double() - one.detach()).norm()))
    return {
        name: MORE * (statistics.fmean(norms) + CERTAIN * statistics.stdev(norms))
        for name, norms in moved.items()
    }


def assert_loses_no_more(
    found: Mapping[str, Tensor], exact: Mapping[str, Tensor], allowed: Mapping[str, float]
) -> None:
    """Than is allowed; of what is 0, nothing."""
    for name, one in exact.items():
        gap = float((found[name].detach().double() - one.detach()).norm())
        assert gap <= allowed[name] if one.any() else gap == 0, (name, gap, allowed[name], float(one.norm()))


class _RoundedProduct(torch.autograd.Function):
    """`hidden weight^T + bias` and its gradients, each number off by what its dtype may round.

    Operands and results are off by a rounding of that dtype, results besides by what adding up k terms in
    float32 rounds: `sqrt(k)` roundings of the sum of their sizes, a deviation (see Sums above). What softmax
    and divergence round in float32 is taken as a disturbance of logits and of their gradient: `OPERATIONS`
    roundings of the largest, and `sqrt(V)` for their sums.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        generator: torch.Generator,
    ) -> Tensor:
        ctx.dtypes = [one.dtype for one in (hidden, weight, bias) if one is not None]
        rounded = _Rounding(dtype, generator)
        ctx.rounding = rounded
        hidden, weight = rounded.number(hidden), rounded.number(weight)
        ctx.save_for_backward(hidden, weight)
        made = rounded.product(hidden, weight.T)
        if bias is not None:
            made = rounded.number(made + rounded.number(bias))
        return rounded.by_softmax(made)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        rounded = ctx.rounding
        given = rounded.number(rounded.by_softmax(outer[0]))
        of_bias = rounded.product(torch.ones_like(given[:, :1]).T, given)[0]
        made = [rounded.product(given, weight), rounded.product(given.T, hidden), of_bias]
        found = [one.to(dtype) for one, dtype in zip(made, ctx.dtypes, strict=False)]
        return (*found, *[None] * (5 - len(found)))


@dataclass(frozen=True)
class _Rounding:
    """Disturbs as a dtype rounds, and as sums in float32, or in it where it is wider, do."""

    dtype: torch.dtype
    generator: torch.Generator

    @property
    def _added_in(self) -> float:
        return unit(torch.promote_types(self.dtype, torch.float32))

    def number(self, values: Tensor) -> Tensor:
        values = values.double()
        return values + values * unit(self.dtype) * self._draw(values)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        made, sizes = left @ right, left.abs() @ right.abs()
        adding = math.sqrt(left.shape[1]) * self._added_in
        return self.number(made + adding * sizes * self._draw(made))

    def by_softmax(self, values: Tensor) -> Tensor:
        values = values.double()
        if not values.numel():
            return values
        largest = values.abs().amax(-1, keepdim=True)
        roundings = (OPERATIONS + math.sqrt(values.shape[-1])) * self._added_in
        return values + roundings * largest * self._draw(values)

    def _draw(self, like: Tensor) -> Tensor:
        """Uniform from -1 to 1, as the error of a rounding is."""
        drawn = torch.rand(like.shape, generator=self.generator, dtype=torch.float64)
        return (2 * drawn - 1).to(like.device)
