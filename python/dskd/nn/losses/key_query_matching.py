"""Keys and queries of cross-model attention made alike in distribution (arXiv 2603.22056).

Queries come of the student's embeddings through a trained map, keys are the teacher's embeddings. Where the
two lie apart attention finds little; here the query map is trained to bring them together, against a
discriminator (`adversarial`), or by what it costs to carry one to the other (`transport`). What the public
code does in place of the first is `frozen`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = [
    "Discriminator",
    "KeyQueryMatching",
    "Matched",
    "MatchingVariant",
    "adversarial_matching",
    "frozen_matching",
    "reverse_gradient",
    "transport_matching",
]

MatchingVariant: TypeAlias = Literal["adversarial", "transport", "frozen"]


# ---- networks --------------------------------------------------------------------------------------------


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is that of minus the identity."""

    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


def reverse_gradient(values: Tensor) -> Tensor:
    """The same values: what makes them is trained to raise what those after them are trained to lower."""
    reversed_: Tensor = _Reversed.apply(values)
    return reversed_


class _Highway(nn.Module):
    """`x' = g * ReLU(Hx) + (1 - g) * x`, `g = sigmoid(Hx)`.

    One linear map H is both gate and transform, as the paper writes it; highway networks have one for each.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, values: Tensor) -> Tensor:
        mapped = self.linear(values)
        gate = mapped.sigmoid()
        carried: Tensor = gate * mapped.relu() + (1 - gate) * values
        return carried


class Discriminator(nn.Module):
    """Highway, `Linear(width, inner)`, LeakyReLU of slope 0.1, dropout, `Linear(inner, outputs)`.

    With one output, what tells keys (positive) from queries (negative): the logit of a key. With more, an
    embedding; the critic and the navigators of `transport_matching` are such.

    Args:
        width: 2D, of keys and queries.
        outputs: how many numbers.
        inner: the width inside.
        dropout: the share of the inner numbers that are dropped in training.
    """

    def __init__(self, width: int, outputs: int = 1, *, inner: int = 768, dropout: float = 0.1) -> None:
        """See the class."""
        super().__init__()
        self.layers = nn.Sequential(
            _Highway(width),
            nn.Linear(width, inner),
            nn.LeakyReLU(0.1),
            nn.Dropout(dropout),
            nn.Linear(inner, outputs),
        )

    def forward(self, values: Tensor) -> Tensor:
        """`[n, width] -> [n, outputs]`."""
        made: Tensor = self.layers(values)
        return made


# ---- the losses ------------------------------------------------------------------------------------------


class Matched(NamedTuple):
    """A term of matching.

    Attributes:
        name: `kq_name` in the log.
        over: `queries`, the student's positions, or `keys`, the teacher's.
        sum: over them.
        counts: numbers for the log, by name.
    """

    name: str
    over: Literal["queries", "keys"]
    sum: Tensor
    counts: Mapping[str, Tensor]


def adversarial_matching(
    queries: Tensor, keys: Tensor, discriminator: Callable[[Tensor], Tensor], *, rate: float = 0.01
) -> list[Matched]:
    """The discriminator learns to tell keys from queries, the queries learn that it cannot (GA).

        kq_keys    = rate * sum over keys of    BCE(D(k), 1)
        kq_queries = rate * sum over queries of BCE(D(GRL(q)), 0)

    GRL is the identity whose gradient is reversed: one backward moves the discriminator down the loss and the
    queries up. The discriminator is meant to be in an optimizer; `frozen_matching` is the public code's.

    The paper has means over the positions: `kq_keys` is to be divided by the number of teacher positions,
    `kq_queries` by that of student positions.

    Args:
        queries: `[n, 2D]`.
        keys: `[m, 2D]`; no gradient flows to them.
        discriminator: `[.., 2D] -> [.., 1]`, the logit of being a key.
        rate: the weight of both terms (`kq_rate`).

    Returns:
        Two terms; counts `kq_right_keys` and `kq_right_queries` (that the discriminator takes for what they
        are).
    """
    of_keys, of_queries = discriminator(keys.detach()), discriminator(reverse_gradient(queries))
    right_keys, right_queries = (of_keys > 0).sum(), (of_queries <= 0).sum()
    return [  # -log sigmoid(x), and -log(1 - sigmoid(x))
        Matched("keys", "keys", rate * functional.softplus(-of_keys).sum(), {"kq_right_keys": right_keys}),
        Matched(
            "queries",
            "queries",
            rate * functional.softplus(of_queries).sum(),
            {"kq_right_queries": right_queries},
        ),
    ]


def frozen_matching(
    queries: Tensor, keys: Tensor, discriminator: Callable[[Tensor], Tensor], *, rate: float = 1.0
) -> list[Matched]:
    """What the public code of GA comes to, in which the discriminator learns nothing.

        kq_queries = rate * mean over queries of BCE(D(q), 1)
        kq_keys    = rate * mean over keys    of BCE(D(k), 0)

    There keys and queries change places at one call: D is to take queries for keys and keys for none, and the
    reversed gradient goes to the keys, which nothing moves. And D is in no optimizer: it stays as it was
    drawn. So queries go where a random discriminator says "key", and `kq_keys` moves nothing.

    These are means of the micro-batch already. The code divides them once more, by the labels of the step.

    Args:
        queries: `[n, 2D]`.
        keys: `[m, 2D]`; no gradient flows to them.
        discriminator: `[.., 2D] -> [.., 1]`, of which nothing is trained.
        rate: the weight of both terms (`kq_rate`; the script has 1).

    Returns:
        Two terms.
    """
    of_keys, of_queries = discriminator(keys.detach()), discriminator(queries)
    queries_, keys_ = functional.softplus(-of_queries), functional.softplus(of_keys)
    return [
        Matched("keys", "keys", rate * keys_.sum() / max(len(keys), 1), {}),
        Matched("queries", "queries", rate * queries_.sum() / max(len(queries), 1), {}),
    ]


def transport_matching(
    queries: Tensor,
    keys: Tensor,
    critic: Callable[[Tensor], Tensor],
    navigators: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    *,
    rate: float = 0.01,
) -> list[Matched]:
    """What it costs to carry queries to keys and keys to queries (CT), as we read it.

    C is the critic, F and B are the navigators forth and back, w their number of outputs:

        c_ij     = 1 - cos(C(q_i), C(k_j))                                  half the squared distance of the
                                                                            two at length 1
        f(j | i) = softmax over j of -|F(q_i) - F(k_j)|^2 / sqrt(w)
        b(i | j) = softmax over i of -|B(q_i) - B(k_j)|^2 / sqrt(w)

        kq_forward  = rate * sum over queries i of sum over j of f(j | i) c_ij
        kq_backward = rate * sum over keys    j of sum over i of b(i | j) c_ij

    Forth, every query has to be near some key; back, every key near some query. As in arXiv 2012.14100, from
    which conditional transport is, the queries and the navigators lower the cost and the critic raises it, by
    gradient reversal around the critic. All queries and keys of the micro-batch meet, across rows: it is
    distributions that are compared, and what is compared depends on how large a micro-batch is.

    Divided by their numbers of queries and keys, the two are means.

    Args:
        queries: `[n, 2D]`.
        keys: `[m, 2D]`; no gradient flows to them.
        critic: `[.., 2D] -> [.., any]`.
        navigators: F and B, `[.., 2D] -> [.., w]`.
        rate: the weight of both terms.

    Returns:
        Two terms.
    """
    keys = keys.detach()
    # Reversed twice is not reversed: of all that the critic's output depends on, the critic alone is.
    criticised = reverse_gradient(critic(reverse_gradient(queries))), reverse_gradient(critic(keys))
    towards, along = (functional.normalize(points, dim=-1) for points in criticised)
    cost = 1 - towards @ along.mT
    forth, back = (_closeness(navigator(queries), navigator(keys)) for navigator in navigators)
    return [
        Matched("forward", "queries", rate * (forth.softmax(1) * cost).sum(), {}),
        Matched("backward", "keys", rate * (back.softmax(0) * cost).sum(), {}),
    ]


def _closeness(left: Tensor, right: Tensor) -> Tensor:
    """Minus the squared distances `[n, m]` of points `[n, w]` and `[m, w]`, over sqrt(w) as in attention."""
    squares = left.square().sum(-1)[:, None] + right.square().sum(-1) - 2 * left @ right.mT
    return -squares / math.sqrt(left.shape[-1])


class KeyQueryMatching(nn.Module):
    """Keeps the networks and the rate of `adversarial_matching`, `transport_matching` or `frozen_matching`.

    Args:
        width: 2D, of keys and queries.
        variant: which of them; what `frozen` keeps is not trained.
        rate: the weight of the terms (`kq_rate`).
        inner: the width inside every network, and of what critic and navigators give.
        dropout: inside every network.

    Raises:
        ValueError: a variant that there is not, or a rate below 0.
    """

    def __init__(
        self,
        width: int,
        *,
        variant: MatchingVariant = "adversarial",
        rate: float = 0.01,
        inner: int = 768,
        dropout: float = 0.1,
    ) -> None:
        """See the class."""
        super().__init__()
        if variant not in get_args(MatchingVariant):
            raise ValueError(f"variant={variant!r} is none of {get_args(MatchingVariant)}")
        if not 0 <= rate < math.inf:
            raise ValueError(f"rate={rate} is not a number from 0 on; 0.01 is the published one")
        self.variant = variant
        self.rate = rate
        names = ["critic", "forth", "back"] if variant == "transport" else ["discriminator"]
        outputs = inner if variant == "transport" else 1
        self.networks = nn.ModuleDict(
            {name: Discriminator(width, outputs, inner=inner, dropout=dropout) for name in names}
        )
        self.networks.requires_grad_(variant != "frozen")

    def forward(self, queries: Tensor, keys: Tensor) -> list[Matched]:
        """The terms of queries `[n, 2D]` and keys `[m, 2D]`."""
        of = self.networks
        if self.variant == "adversarial":
            return adversarial_matching(queries, keys, of["discriminator"], rate=self.rate)
        if self.variant == "frozen":
            return frozen_matching(queries, keys, of["discriminator"], rate=self.rate)
        navigators = of["forth"], of["back"]
        return transport_matching(queries, keys, of["critic"], navigators, rate=self.rate)
