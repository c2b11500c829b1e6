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
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The loss of one row of logits (rows, vocab), contiguous, which become their gradient.

    With u = 1 / (1 + exp(2z / c)) the capped logit is c - 2cu and its slope 4u(1 - u). No capped
    logit exceeds c, so c serves as the maximum that keeps exp() in range, and exp(c tanh - c) is
    exp(-2cu): two exponentials an element and no search for the maximum. EVEN: vocab is a multiple
    of BLOCK. The target's own gradient is stored last, which spares a comparison an element.
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
            place = logits_ptr + start + column
            if EVEN:
                z = tl.load(place, eviction_policy="evict_last").to(tl.float32)
            else:
                z = tl.load(
                    place,
                    mask=start + column < vocab,
                    other=float("-inf"),
                    eviction_policy="evict_last",
                ).to(tl.float32)
            if CAPPED:
                e = tl.exp2(outward / (1.0 + tl.exp2(z * inward)))
                sums += e if EVEN else tl.where(start + column < vocab, e, 0.0)
            else:
                higher = tl.maximum(highest, tl.max(z, axis=0))
                sums = sums * tl.exp2((highest - higher) * LOG2_E)
                sums += tl.exp2((z - higher) * LOG2_E)
                highest = higher
        total = tl.sum(sums, axis=0)
        scale = 1.0 / total
        if CAPPED:
            v = 1.0 / (1.0 + tl.exp2(wanted * inward))
            capped = softcap - 2.0 * softcap * v
            own = (tl.exp2(v * outward) * scale - 1.0) * (4.0 * v * (1.0 - v))
        else:
            capped = wanted
            own = tl.exp2((wanted - highest) * LOG2_E) * scale - 1.0
        tl.store(losses_ptr + row, highest + tl.log(total) - capped)
        for start in range(0, vocab, BLOCK):
            place = logits_ptr + start + column
            inside = None if EVEN else start + column < vocab
            z = tl.load(place, mask=inside, eviction_policy="evict_first").to(tl.float32)
            if CAPPED:
                u = 1.0 / (1.0 + tl.exp2(z * inward))
                grad = tl.exp2(u * outward) * (4.0 * scale) * (u - u * u)
            else:
                grad = tl.exp2((z - highest) * LOG2_E) * scale
            tl.store(place, grad.to(logits_ptr.dtype.element_ty), mask=inside)
        tl.debug_barrier()  # the block's store of this element comes first
        tl.store(logits_ptr + target, own.to(logits_ptr.dtype.element_ty))
