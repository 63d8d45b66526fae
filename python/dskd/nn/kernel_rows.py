"""The kernels of `dskd.nn.kernels`: one program a row, blocks of the vocabulary, float32.

A row is read once for what its softmax is divided by, kept as its largest number and the logarithm of a sum
of exponentials beside that; once for the sums of a divergence; and once for the gradient. Behind the end of a
row stands minus infinity, which has no probability, as an id that no tokenizer can emit has none.

Of what has no probability nothing is summed: 0 log 0 is 0. Where one side has probability and the other none,
a KL is infinite; such a row gets gradient 0. A row with a logit that is no number has a divergence that is
none, on whichever side it is.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["divergence_rows", "softmax_rows"]

_LEAST = tl.constexpr(-3.0e38)
"""A largest number to begin with: finite, so that nothing is the difference of two infinities."""

_TINY = tl.constexpr(1.1754943508222875e-38)
"""The smallest normal float32, for logarithms."""


@triton.jit
def divergence_rows(
    student,
    teacher,
    gradient,
    items,
    student_stride,
    teacher_stride,
    gradient_stride,
    columns,
    factor,
    mix,
    NAME: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`items[row]`, and `gradient[row]`, which may lie where the student's logits are."""
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    gradient += row * gradient_stride
    student_largest, student_log_sum = _normaliser(student, columns, factor, BLOCK)
    teacher_largest, teacher_log_sum = _normaliser(teacher, columns, factor, BLOCK)

    terms = tl.zeros([BLOCK], tl.float32)
    slopes = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        log_q = _quotients(student, start, columns, factor, BLOCK) - student_largest - student_log_sum
        log_p = _quotients(teacher, start, columns, factor, BLOCK) - teacher_largest - teacher_log_sum
        term, slope = _of_token(log_q, log_p, mix, NAME)
        terms += term
        slopes += slope
    item = tl.sum(terms)
    slope_sum = tl.sum(slopes)
    tl.store(items + row, item)

    is_endless = item == float("inf")
    for start in range(0, columns, BLOCK):
        log_q = _quotients(student, start, columns, factor, BLOCK) - student_largest - student_log_sum
        log_p = _quotients(teacher, start, columns, factor, BLOCK) - teacher_largest - teacher_log_sum
        term, slope = _of_token(log_q, log_p, mix, NAME)
        made = tl.where(is_endless, 0.0, slope - tl.exp(log_q) * slope_sum)
        at = start + tl.arange(0, BLOCK)
        tl.store(gradient + at, made, mask=at < columns)


@triton.jit
def softmax_rows(logits, probs, largest, log_sum, stride, probs_stride, columns, factor, BLOCK: tl.constexpr):
    """`probs[row]`, which may lie where the logits are, and what the row is divided by."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    probs += row * probs_stride
    row_largest, row_log_sum = _normaliser(logits, columns, factor, BLOCK)
    tl.store(largest + row, row_largest)
    tl.store(log_sum + row, row_log_sum)
    for start in range(0, columns, BLOCK):
        log_p = _quotients(logits, start, columns, factor, BLOCK) - row_largest - row_log_sum
        at = start + tl.arange(0, BLOCK)
        tl.store(probs + at, tl.exp(log_p), mask=at < columns)


@triton.jit
def _quotients(row, start, columns, factor, BLOCK: tl.constexpr):
    """`logits / temperature` of a block; a division would take most of the instructions."""
    at = start + tl.arange(0, BLOCK)
    return tl.load(row + at, mask=at < columns, other=float("-inf")) * factor


@triton.jit
def _normaliser(row, columns, factor, BLOCK: tl.constexpr):
    """The largest quotient of a row, and the logarithm of the sum of exponentials beside it, in one pass."""
    largest = _LEAST
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        block = _quotients(row, start, columns, factor, BLOCK)
        above = tl.maximum(largest, tl.max(block))
        total = total * tl.exp(largest - above) + tl.exp(block - above)
        largest = above
    return largest, tl.log(tl.sum(total))


@triton.jit
def _at_least_tiny(values):
    """What has a logarithm, and may be divided by; a plain maximum would make it of what is no number too."""
    return tl.maximum(values, _TINY, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _of_token(log_q, log_p, mix, NAME: tl.constexpr):
    """What a token adds to the divergence, and `q dD/dq`, up to a multiple of q.

    With the sum of these slopes the gradient is `slope - q sum`, from which a multiple of q is gone.
    """
    q = tl.exp(log_q)
    p = tl.exp(log_p)
    if NAME == "kl":
        term = tl.where(p == 0, 0.0, p * (log_p - log_q))
        slope = -p
    elif NAME == "reverse_kl":
        term = tl.where(q == 0, 0.0, q * (log_q - log_p))
        slope = term
    elif NAME == "js":
        log_m = tl.log(_at_least_tiny(mix * p + (1 - mix) * q))
        of_q = tl.where(q == 0, 0.0, q * (log_q - log_m))
        term = mix * tl.where(p == 0, 0.0, p * (log_p - log_m)) + (1 - mix) * of_q
        slope = (1 - mix) * of_q
    elif NAME == "skew_kl":
        ratio = p / _at_least_tiny(mix * p + (1 - mix) * q)
        term = p * tl.log(_at_least_tiny(ratio))
        slope = -(1 - mix) * q * ratio
    elif NAME == "skew_reverse_kl":
        ratio = q / _at_least_tiny(mix * q + (1 - mix) * p)
        term = q * tl.log(_at_least_tiny(ratio))
        slope = term - mix * q * (ratio - 1)
    else:
        tl.static_assert(NAME == "tvd")
        difference = q - p
        term = tl.abs(difference) / 2
        slope = tl.where(difference > 0, q, tl.where(difference < 0, -q, 0.0)) / 2
    return term, slope
