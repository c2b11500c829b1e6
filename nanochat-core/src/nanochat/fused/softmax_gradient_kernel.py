"""The Triton kernel of `softmax_gradient.py`. Importing it imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def softmax_gradient_kernel(
    logits_ptr,
    targets_ptr,
    losses_ptr,
    vocab,
    ignore_index,
    softcap,
    CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The loss of one row of logits (rows, vocab), contiguous, which become their gradient.

    With u = 1 / (1 + exp(2z / c)) the capped logit is c - 2cu and its slope 4u(1 - u). No capped
    logit exceeds c, so c serves as the maximum that keeps exp() in range, and exp(c tanh - c) is
    exp(-2cu): two exponentials an element and no search for the maximum.
    """
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * vocab
    target = tl.load(targets_ptr + row)
    column = tl.arange(0, BLOCK)
    if target == ignore_index:
        for start in range(0, vocab, BLOCK):
            zero = tl.zeros((BLOCK,), logits_ptr.dtype.element_ty)
            tl.store(logits_ptr + start + column, zero, mask=start + column < vocab)
        tl.store(losses_ptr + row, 0.0)
    else:
        wanted = tl.load(logits_ptr + target).to(tl.float32)
        inward = 2.0 * LOG2_E / softcap if CAPPED else 0.0
        outward = -2.0 * LOG2_E * softcap if CAPPED else 0.0
        highest = softcap if CAPPED else float("-inf")
        sums = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocab, BLOCK):
            inside = start + column < vocab
            z = tl.load(
                logits_ptr + start + column,
                mask=inside,
                other=float("-inf"),
                eviction_policy="evict_last",
            ).to(tl.float32)
            if CAPPED:
                u = 1.0 / (1.0 + tl.exp2(z * inward))
                sums += tl.where(inside, tl.exp2(u * outward), 0.0)
            else:
                higher = tl.maximum(highest, tl.max(z, axis=0))
                sums = sums * tl.exp2((highest - higher) * LOG2_E)
                sums += tl.exp2((z - higher) * LOG2_E)
                highest = higher
        total = tl.sum(sums, axis=0)
        if CAPPED:
            wanted = softcap - 2.0 * softcap / (1.0 + tl.exp2(wanted * inward))
        tl.store(losses_ptr + row, highest + tl.log(total) - wanted)
        scale = 1.0 / total
        for start in range(0, vocab, BLOCK):
            inside = start + column < vocab
            z = tl.load(
                logits_ptr + start + column, mask=inside, other=0.0, eviction_policy="evict_first"
            ).to(tl.float32)
            if CAPPED:
                u = 1.0 / (1.0 + tl.exp2(z * inward))
                p = tl.exp2(u * outward) * scale
                grad = tl.where(start + column == target, p - 1.0, p) * (4.0 * u * (1.0 - u))
            else:
                p = tl.exp2((z - highest) * LOG2_E) * scale
                grad = tl.where(start + column == target, p - 1.0, p)
            grad = grad.to(logits_ptr.dtype.element_ty)
            tl.store(logits_ptr + start + column, grad, mask=inside)
