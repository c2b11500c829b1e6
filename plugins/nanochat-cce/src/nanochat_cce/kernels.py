"""The kernels of cut-cross-entropy behind one pair of calls, for its release and its main branch.

Its public function is not used: it is an autograd function that torch.compile cannot keep in one
graph, it waits for the GPU to count the targets, and it decides which gradients are needed from
`requires_grad`, which tensors inside a custom operator no longer carry.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanochat_cce.upstream import MAIN


class Upstream(NamedTuple):
    """The functions that start its kernels; `info` makes the TensorInfo of its main branch."""

    log_sum_exp: Callable[..., Any]
    target_logits: Callable[..., Any]
    gradients: Callable[..., Any]
    info: Callable[[torch.dtype, bool], Any] | None


@lru_cache(maxsize=1)
def load() -> Upstream:
    """Import cut_cross_entropy, and with it Triton."""
    from cut_cross_entropy.cce_backward import cce_backward_kernel
    from cut_cross_entropy.cce_lse_forward import cce_lse_forward_kernel
    from cut_cross_entropy.indexed_dot import indexed_neg_dot_forward_kernel

    utils: Any = import_module("cut_cross_entropy.utils")  # of which no checker sees both forms
    newer = inspect.signature(cce_backward_kernel).parameters.keys() >= MAIN
    return Upstream(
        cce_lse_forward_kernel,
        indexed_neg_dot_forward_kernel,
        cce_backward_kernel,
        utils.TensorInfo if newer else None,
    )


def forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, averages: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss and the log-sum-exp of each row (N,), and if asked the mean logit of each word (V,).

    Everything is contiguous and every target a word. All results are float32.
    """
    upstream = load()
    found = upstream.log_sum_exp(
        e=hidden, c=weight, softcap=softcap, return_logit_avg=averages, valids=None
    )
    lse, mean_logits = found if averages else (found, None)
    # The cap is ours, because upstream compiles its own in the middle of the operator.
    negative = upstream.target_logits(
        e=hidden, c=weight, inds=targets, softcap=None, valids=None, out_dtype=torch.float32
    )
    if softcap is not None:
        negative = softcap * torch.tanh(negative / softcap)
    return lse + negative, lse, mean_logits


def backward(
    grad_losses: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    mean_logits: Tensor | None,
    *,
    softcap: float | None,
    filter_eps: float | None,
    accumulate_float32: bool,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of hidden and weight, in their dtypes, where they are needed.

    `grad_losses` is the gradient of each row's loss (N,), or one for all (1,). An ignored row has
    an infinite `lse` and a target that is no word: its softmax is zero. `mean_logits` orders the
    words, so that those of small probability share tiles, which the filter then skips.
    """
    upstream = load()
    arguments: dict[str, Any] = {
        "do": grad_losses,
        "e": hidden,
        "lse": lse,
        "valids": None,
        "softcap": softcap,
        "filter_eps": filter_eps,
        "targets": targets,
        "vocab_ordering": None if mean_logits is None else mean_logits.argsort().to(torch.int32),
        "grad_scale": 1.0,
    }
    if upstream.info is None:
        # This version asks the weight itself whether its gradient is needed.
        asked = weight.detach().requires_grad_(needs[1])
        grad_hidden, grad_weight = upstream.gradients(c=asked, **arguments)
    else:
        grad_hidden, grad_weight, _ = upstream.gradients(
            c=weight,
            e_info=upstream.info(hidden.dtype, needs[0]),
            c_info=upstream.info(weight.dtype, needs[1]),
            dlse=None,
            bias=None,
            bias_info=None,
            accum_e_fp32=accumulate_float32,
            accum_c_fp32=accumulate_float32,
            filter_e_grad=filter_eps is not None,
            filter_c_grad=filter_eps is not None,
            **arguments,
        )
    return (
        grad_hidden.to(hidden.dtype) if needs[0] else None,
        grad_weight.to(weight.dtype) if needs[1] else None,
    )
