"""Divergences of a student's distribution from a teacher's, per token.

Each is here twice: as a definition, of which autograd finds the gradient, and in place with its gradient in
closed form, for a loss that never holds all logits (`divergence_and_gradient`). The tests hold the second
against the first. p is the teacher's distribution, q the student's.

The student is the first argument, as the input of `torch.nn.functional.kl_div`; the formulas have p first, as
the papers do. The other way round KL is silently the reverse one: give them by name where that may happen.

Both are computed in float32 or wider, whatever they are given: in bfloat16 13 to 28 % of a gradient were lost
(by hand).

A logarithm may be minus infinity, as of a masked vocabulary: 0 log 0 is 0. `js`, the skewed ones and `tvd`
are finite then; KL(p, q) is where q has probability wherever p has. Where it has not, the divergence is plus
infinity and has no slope: its gradient is 0, so that such a row can still be left out of a sum. A probability
that underflows is none. On a CPU all this costs next to nothing where there is no infinity: the sums tell.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from dskd.nn import kernels
from dskd.nn.elementwise import probabilities, row_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = [
    "DIVERGENCES",
    "Divergence",
    "adaptive_kl",
    "checked_divergence",
    "divergence",
    "divergence_and_gradient",
    "js",
    "kl",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "tvd",
]

Divergence: TypeAlias = Literal["kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "adaptive_kl", "tvd"]

_MIX: Mapping[str, float] = {"js": 0.5, "skew_kl": 0.1, "skew_reverse_kl": 0.1, "adaptive_kl": 0.5}
"""The defaults of `mix`, of the divergences that have one."""

_LARGEST = 1024
"""In so many of a row's largest probabilities the head of `adaptive_kl` is looked for before it is sorted."""

_NEXT_TO_NOTHING = -1e30
"""A finite logarithm of no probability."""


def kl(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """`KL(p, q) = sum of p (log p - log q)`: `[..., V] -> [...]`."""
    log_q, log_p = _wide(student_log_probs, teacher_log_probs)
    return _expected(log_p.exp(), log_p - log_q)


def reverse_kl(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """`KL(q, p) = sum of q (log q - log p)`: `[..., V] -> [...]`."""
    return kl(teacher_log_probs, student_log_probs)


def js(student_log_probs: Tensor, teacher_log_probs: Tensor, *, mix: float | None = None) -> Tensor:
    """`beta KL(p, m) + (1 - beta) KL(q, m)`, `m = beta p + (1 - beta) q`: `[..., V] -> [...]`.

    The generalised Jensen-Shannon divergence (arXiv 2306.13649).

    Raises:
        ValueError: `mix`, which is beta, 0.5 unless given, is not between 0 and 1.
    """
    beta = _checked("js", mix)
    log_q, log_p = _wide(student_log_probs, teacher_log_probs)
    middle = _log_mixture(log_p, log_q, beta)
    return beta * kl(middle, log_p) + (1 - beta) * kl(middle, log_q)


def skew_kl(student_log_probs: Tensor, teacher_log_probs: Tensor, *, mix: float | None = None) -> Tensor:
    """`KL(p, lambda p + (1 - lambda) q)`: `[..., V] -> [...]`.

    Of DistiLLM (arXiv 2402.03898).

    Raises:
        ValueError: `mix`, which is lambda, 0.1 unless given, is not between 0 and 1.
    """
    skew = _checked("skew_kl", mix)
    log_q, log_p = _wide(student_log_probs, teacher_log_probs)
    return kl(_log_mixture(log_p, log_q, skew), log_p)


def skew_reverse_kl(
    student_log_probs: Tensor, teacher_log_probs: Tensor, *, mix: float | None = None
) -> Tensor:
    """`KL(q, (1 - lambda) p + lambda q)`: `[..., V] -> [...]`.

    Of DistiLLM (arXiv 2402.03898).

    Raises:
        ValueError: `mix`, which is lambda, 0.1 unless given, is not between 0 and 1.
    """
    skew = _checked("skew_reverse_kl", mix)
    log_q, log_p = _wide(student_log_probs, teacher_log_probs)
    return kl(_log_mixture(log_q, log_p, skew), log_q)


def adaptive_kl(student_log_probs: Tensor, teacher_log_probs: Tensor, *, mix: float | None = None) -> Tensor:
    """`a KL(p, q) + (1 - a) KL(q, p)`, a by where p and q are apart: `[..., V] -> [...]`.

    AKL (arXiv 2404.02657). Tokens are sorted by p, the least first, equal ones by their ids. The tail is
    where the cumulative p is at most `mix`, the head is the rest. `a` is the sum of `|p - q|` over the head
    by that over all, a constant to autograd; 0.5 where p equals q. A KL that counts 0 times is not looked at.

    Raises:
        ValueError: `mix`, 0.5 unless given, is not between 0 and 1.
    """
    threshold = _checked("adaptive_kl", mix)
    log_q, log_p = _wide(student_log_probs, teacher_log_probs)
    p, q = log_p.exp(), log_q.exp()
    with torch.no_grad():
        gaps = (p - q).abs()
        share = _share((gaps * _head(p, threshold)).sum(-1), gaps.sum(-1)).unsqueeze(-1)
    items = _expected(share * p, log_p - log_q) + _expected((1 - share) * q, log_q - log_p)
    return items.masked_fill(items.isinf(), math.inf)  # where either is, neither has a slope


def tvd(student_log_probs: Tensor, teacher_log_probs: Tensor) -> Tensor:
    """`sum of |p - q| / 2`, the total variation distance: `[..., V] -> [...]`.

    The gradient of `abs` at 0 is taken as 0. (f-DISTILL, arXiv 2307.15190.)
    """
    log_q, log_p = _wide(student_log_probs, teacher_log_probs)
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


DIVERGENCES: Mapping[Divergence, Callable[..., Tensor]] = {
    "kl": kl,
    "reverse_kl": reverse_kl,
    "js": js,
    "skew_kl": skew_kl,
    "skew_reverse_kl": skew_reverse_kl,
    "adaptive_kl": adaptive_kl,
    "tvd": tvd,
}


def divergence(
    name: Divergence,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mix: float | None = None,
) -> Tensor:
    """`D(softmax(teacher_logits / temperature), softmax(student_logits / temperature))`.

    Args:
        name: one of `DIVERGENCES`.
        student_logits: `[..., V]`; minus infinity where there is no probability.
        teacher_logits: the same shape.
        temperature: of both softmaxes, positive.
        mix: beta of `js`, lambda of `skew_kl` and `skew_reverse_kl`, the threshold of `adaptive_kl`; between
            0 and 1, None for the default of each. The others have none.

    Returns:
        `[...]`, a divergence a token, float32 or wider.

    Raises:
        ValueError: the name is unknown, `mix` is out of its range or the divergence has none; the temperature
            is not positive and finite; the shapes differ.
    """
    options = checked_divergence(name, mix)
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature={temperature}; it is a number above 0, and 1 for the logits as they are"
        )
    _refuse_other_shapes(student_logits, teacher_logits)
    logits = _wide(student_logits, teacher_logits)
    student, teacher = ((each / temperature).log_softmax(-1) for each in logits)
    return DIVERGENCES[name](student, teacher, **options)


@torch.no_grad()
def divergence_and_gradient(
    name: Divergence, student_log_probs: Tensor, teacher_log_probs: Tensor, *, mix: float | None = None
) -> tuple[Tensor, Tensor]:
    """The divergences of tokens, and the gradient of each with respect to the student's logits.

    It equals, at a fraction of the passes over memory:

        items = DIVERGENCES[name](student_logits.log_softmax(-1), teacher_log_probs)
        (gradient,) = torch.autograd.grad(items.sum(), student_logits)

    With a temperature, log probabilities are of logits divided by it; divide the gradient by it once more.
    With `g = q dD/dq`, the gradient through the softmax is `g - q sum(g)`.

    **Both arguments are overwritten**; the gradient lies in the memory of `student_log_probs`. They must not
    overlap, nor be expanded views. One in half precision, or narrower than the other, is copied first.
    Nothing is recorded for autograd.

    Args:
        name: one of `DIVERGENCES`.
        student_log_probs: `[n, V]`, of a softmax.
        teacher_log_probs: the same shape.
        mix: see `divergence`.

    Returns:
        `[n]`, a divergence a token, and `[n, V]`, their gradients, float32 or wider.

    Raises:
        ValueError: see `divergence`.
    """
    options = checked_divergence(name, mix).values()
    _refuse_other_shapes(student_log_probs, teacher_log_probs)
    student, teacher = _wide(student_log_probs.detach(), teacher_log_probs.detach())
    blocks = [_IN_PLACE[name](student[rows], teacher[rows], *options) for rows in row_blocks(student)]
    items = torch.cat(blocks)
    if not _are_finite(items):
        student.masked_fill_(items.isinf()[:, None], 0)
    return items, student


@torch.no_grad()
def gradient_by_logits(
    name: Divergence,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    mix: float | None = None,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor]:
    """`divergence_and_gradient` of the softmaxes of `logits / temperature`; on a GPU in one kernel.

    Args:
        name: of the divergence.
        student_logits: `[n, V]`, float32 or float64.
        teacher_logits: the same shape and dtype.
        temperature: of both, positive.
        mix: see `divergence`.
        overwrite: whether the student's logits may be written on.

    Returns:
        `[n]` and `[n, V]`, the gradient by the quotient: divide it by the temperature once more.
    """
    weight = checked_divergence(name, mix).get("mix")
    if name in kernels.DIVERGENCES and kernels.takes(student_logits, teacher_logits):
        out = student_logits if overwrite else None
        return kernels.divergence_and_gradient(
            name, student_logits, teacher_logits, temperature=temperature, mix=weight, out=out
        )
    if temperature != 1:
        student_logits, teacher_logits = student_logits / temperature, teacher_logits / temperature
    return divergence_and_gradient(
        name, student_logits.log_softmax(-1), teacher_logits.log_softmax(-1), mix=mix
    )


def checked_divergence(name: Divergence, mix: float | None = None) -> dict[str, float]:
    """The keywords with which the divergence of that name is called.

    Raises:
        ValueError: the name is unknown, `mix` is out of its range or the divergence has none.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"there is no divergence {name!r}; take one of {', '.join(DIVERGENCES)}")
    if name in _MIX:
        return {"mix": _checked(name, mix)}
    if mix is not None:
        raise ValueError(f"mix is {mix}, but {name} has none; leave it None, or take {', '.join(_MIX)}")
    return {}


def _checked(name: str, mix: float | None) -> float:
    if mix is None:
        return _MIX[name]
    if not 0 < mix < 1:
        raise ValueError(
            f"mix of {name} is {mix}; give a number above 0 and below 1, or None for {_MIX[name]}"
        )
    return mix


def _refuse_other_shapes(student: Tensor, teacher: Tensor) -> None:
    if teacher.shape != student.shape:
        raise ValueError(
            f"the student's are {list(student.shape)} and the teacher's {list(teacher.shape)}; both are "
            "[..., V], rows of the same tokens over the same V ids"
        )


def _wide(*sides: Tensor) -> list[Tensor]:
    """In the widest of their dtypes, and float32 at least; where that is theirs, they themselves."""
    dtype = torch.float32
    for side in sides:
        dtype = torch.promote_types(dtype, side.dtype)
    return [side.to(dtype) for side in sides]


def _expected(probs: Tensor, values: Tensor) -> Tensor:
    """`sum of probs values`, of what has probability; infinite, and flat, where such a value is."""
    items = (probs * values).sum(-1)
    if _are_finite(items.detach().flatten()):
        return items
    values = values.masked_fill(probs == 0, 0)
    endless = values.isinf()
    return (probs * values.masked_fill(endless, 0)).sum(-1).masked_fill(endless.any(-1), math.inf)


def _log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """`log(weight p + (1 - weight) q)`, also where both underflow; finite, so that it has a slope."""
    log_p, log_q = _finite(log_p), _finite(log_q)
    return torch.logaddexp(log_p + math.log(weight), log_q + math.log1p(-weight))


def _finite(log_probs: Tensor) -> Tensor:
    if log_probs.numel() == 0 or _are_finite(log_probs.detach().amin(-1).flatten()):
        return log_probs
    return log_probs.clamp(min=_NEXT_TO_NOTHING)


def _are_finite(items: Tensor) -> bool:
    """Whether all of `[n]` are known to be; not on a device for which one would have to wait."""
    return items.is_cpu and math.isfinite(sum(items.tolist()))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, 0.5 where both are 0."""
    return torch.where(whole > 0, part / whole.where(whole > 0, 1), 0.5)


def _head(probs: Tensor, threshold: float) -> Tensor:
    """Which tokens are in the head (see `adaptive_kl`): bool `[..., V]`."""
    ordered = probs.sort(dim=-1, stable=True)
    in_head = ordered.values.cumsum(-1) > _limit(probs, threshold)
    return in_head.scatter(-1, ordered.indices, in_head)


def _limit(probs: Tensor, threshold: float) -> float:
    """The threshold, and what rounding may add to a sum that equals it: `0.1 + 0.2 <= 0.3` is to hold."""
    return threshold + 64 * torch.finfo(probs.dtype).eps


def _head_by_largest(probs: Tensor, threshold: float) -> Tensor:
    """What `_head` returns, of `[n, V]`, where it can be without a sort.

    A head is mostly some hundreds of tokens, and on a CPU to sort a row takes longer than the matrix product
    that made it; the largest are found much sooner.
    """
    largest = probs.topk(min(_LARGEST, probs.shape[-1])).values
    before = largest.cumsum(-1, dtype=torch.float64) - largest
    from_here = probs.sum(-1, keepdim=True, dtype=torch.float64) - before
    size = (from_here > _limit(probs, threshold)).sum(-1, keepdim=True)
    least = largest.gather(-1, (size - 1).clamp_min_(0))
    head = probs >= least
    _drop_ties(head, probs, least, size)
    if largest.shape[-1] < probs.shape[-1]:
        flat = (size == largest.shape[-1]).squeeze(-1)
        head[flat] = _head(probs[flat], threshold)
    return head


def _drop_ties(head: Tensor, probs: Tensor, least: Tensor, size: Tensor) -> None:
    """Leave `size` tokens in each head: of those as probable as its `least`, the ones of the lowest ids go.

    Logits of a model in bfloat16 tie often.
    """
    surplus = head.sum(-1, keepdim=True) - size
    rows = surplus.squeeze(-1).nonzero().squeeze(-1)
    tied = probs[rows] == least[rows]
    head[rows] &= ~(tied & (tied.cumsum(-1) <= surplus[rows]))


# The closed forms, `[n, V] -> [n]`; the gradient takes the place of the student's log probabilities. In each,
# p and q take the place of their logarithms first, once a side. Products are written, then summed: a batched
# dot product would be in TF32 where that is on, and sums a row less exactly. So does a norm: a row of 50,000
# lost 4e-5 of its 1 in float32.


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """`q - p`."""
    terms = teacher - student
    q, p = _probabilities_(student), _probabilities_(teacher)
    q.sub_(p)
    return _summed_(terms.mul_(p), p)


def _reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """`q (log q - log p - KL(q, p))`."""
    terms = torch.sub(student, teacher, out=teacher)
    q = _probabilities_(student)
    items = _summed_(terms.mul_(q), q)
    torch.addcmul(terms, q, items[:, None], value=-1, out=q)
    return items


def _js(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """`(1 - beta) q (log q - log m - KL(q, m))`.

    What all logarithms of a row are off, a softmax of them would leave out of m: by exp it cancels.
    """
    p, q = teacher.exp(), student.exp()
    log_m = _log_(torch.lerp(q, p, beta))
    of_p = _summed_(teacher.sub_(log_m).mul_(p), p)
    of_q = _summed_(student.sub_(log_m).mul_(q), q)
    student.addcmul_(q, of_q[:, None], value=-1).mul_(1 - beta)
    return torch.lerp(of_q, of_p, beta)


def _skew_kl(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    """`(1 - lambda) q (sum of (q p / m) - p / m)`."""
    q, p = _probabilities_(student), _probabilities_(teacher)
    ratio = _over_mixture(p, q, skew)
    products = q * ratio
    q.mul_(products.sum(-1, keepdim=True)).sub_(products).mul_(1 - skew)
    return _log_(ratio).mul_(p).sum(-1)


def _skew_reverse_kl(student: Tensor, teacher: Tensor, skew: float) -> Tensor:
    """`q (h - sum of (q h))`, `h = log(q / m) - lambda (q / m - 1)`, in which a rounded ratio cancels."""
    q, p = _probabilities_(student), _probabilities_(teacher)
    ratio = _over_mixture(q, p, skew)
    excess = (ratio - 1).mul_(q)
    terms = _log_(ratio).mul_(q)
    items = terms.sum(-1)
    terms.sub_(excess, alpha=skew)
    torch.addcmul(terms, q, terms.sum(-1, keepdim=True), value=-1, out=q)
    return items


def _adaptive_kl(student: Tensor, teacher: Tensor, threshold: float) -> Tensor:
    """`a (q - p) + (1 - a) q (log q - log p - KL(q, p))`."""
    terms = student - teacher
    q, p = _probabilities_(student), _probabilities_(teacher)
    head = _head_by_largest(p, threshold)
    forward = _summed_(p * terms, p)[:, None].neg_()
    reverse = _summed_(terms.mul_(q), q)[:, None]
    difference = torch.sub(q, p, out=p)
    gaps = difference.abs()
    whole = gaps.sum(-1, keepdim=True)
    share = _share(gaps.mul_(head).sum(-1, keepdim=True), whole)
    if not _are_finite((forward + reverse)[:, 0]):
        forward.masked_fill_(share == 0, 0)
        for of_reverse in (reverse, terms):
            of_reverse.masked_fill_(share == 1, 0)
    torch.addcmul(terms, q, reverse, value=-1, out=q).lerp_(difference, share)
    return (share * forward + (1 - share) * reverse).squeeze(-1)


def _tvd(student: Tensor, teacher: Tensor) -> Tensor:
    """`q (s - sum of (q s)) / 2`, s the sign of `q - p`."""
    q, p = _probabilities_(student), _probabilities_(teacher)
    difference = torch.sub(q, p, out=p)
    items = difference.abs().sum(-1).div_(2)
    terms = difference.sign_().mul_(q).div_(2)
    torch.addcmul(terms, q, terms.sum(-1, keepdim=True), value=-1, out=q)
    return items


_IN_PLACE: Mapping[Divergence, Callable[..., Tensor]] = {
    "kl": _kl,
    "reverse_kl": _reverse_kl,
    "js": _js,
    "skew_kl": _skew_kl,
    "skew_reverse_kl": _skew_reverse_kl,
    "adaptive_kl": _adaptive_kl,
    "tvd": _tvd,
}


def _probabilities_(log_probs: Tensor) -> Tensor:
    return probabilities(log_probs, out=log_probs)


def _summed_(products: Tensor, probs: Tensor) -> Tensor:
    """`[n]`, of products `[n, V]` with these, as `_expected`; what has no probability is made 0 in them."""
    items = products.sum(-1)
    return items if _are_finite(items) else products.masked_fill_(probs == 0, 0).sum(-1)


def _over_mixture(left: Tensor, right: Tensor, weight: float) -> Tensor:
    """`left / (weight left + (1 - weight) right)`; 0 where both are."""
    mixture = torch.lerp(right, left, weight).clamp_min_(torch.finfo(left.dtype).tiny)
    return torch.div(left, mixture, out=mixture)


def _log_(probs: Tensor) -> Tensor:
    """The logarithm in place; of 0, one that is finite."""
    return probs.clamp_min_(torch.finfo(probs.dtype).tiny).log_()
