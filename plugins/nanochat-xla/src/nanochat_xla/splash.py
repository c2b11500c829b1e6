"""Splash attention as two functions of jax arrays: forward, and backward from what it saved.

The kernels are those of `jax.experimental.pallas.ops.tpu.splash_attention` (flash attention,
arXiv:2205.14135, that skips the blocks which a static mask hides). This module gives them rows of
any length, documents and a backward pass that does not run the forward kernel again. It knows
neither torch nor which stack calls it, and touches no device: it runs where it is compiled.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as upstream
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as infos

from nanochat_xla.blocks import LANES, Blocks, is_full, padded_length

PADDING = -1
"""The document of positions that only fill a row up."""


class Masks(NamedTuple):
    """Which blocks each of the three kernels visits, as numpy arrays, and the mask within one."""

    forward: Any
    dq: Any
    dkv: Any
    function: Any


@lru_cache(maxsize=64)
def block_masks(length: int, window: int | None, blocks: Blocks) -> Masks:
    """The masks of causal attention over rows of `length`, a multiple of every block.

    Upstream's `make_splash_mha` would put them on jax's default device, which is the TPU that
    torch holds.
    """
    shape = (length, length)
    one = (
        masks.CausalMask(shape)
        if window is None or is_full(length, window)
        else masks.LocalMask(shape, (window, 0), 0)
    )
    mask = masks.MultiHeadMask([one])  # of one head: the kernels use it for every other
    forward, function = infos.process_mask(mask, (blocks.q, blocks.kv))
    dq, _ = infos.process_mask(mask, (blocks.q_back, blocks.kv_back))
    dkv, _ = infos.process_mask_dkv(mask, (blocks.q_back, blocks.kv_back))
    return Masks(forward, dq, dkv, function)


def forward(
    q: Array,
    k: Array,
    v: Array,
    documents: Array | None = None,
    *,
    window: int | None,
    scale: float,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[Array, Array]:
    """Causal self-attention: the output and what the backward pass needs of it.

    q is (B, T, H, D), k and v are (B, T, H_kv, D) with H a multiple of H_kv; `documents` is
    (B, T) int32, and positions see each other only where its numbers are equal. `window` is the
    number of earlier positions seen (None: all); `blocks` come from `blocks.choose`. `interpret`
    runs the kernels on a CPU. Returns (B, T, H, D) in q's dtype and the logarithms of the sums of
    exponentials (B, H, T) in float32.
    """
    _, length, _, width = q.shape
    padded = padded_length(length)
    found = block_masks(padded, window, blocks)
    kernel = upstream.SplashAttentionKernel(
        found.forward, None, None, **_options(found, blocks, interpret), save_residuals=True
    )
    out, (lse,) = jax.vmap(kernel)(
        _scaled(_to_kernel(q, padded), scale),
        _to_kernel(k, padded),
        _to_kernel(v, padded),
        _segments(documents, padded),
    )
    return _from_kernel(out, length, width), lse[..., :length]


def backward(
    grad: Array,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    documents: Array | None = None,
    *,
    window: int | None,
    scale: float,
    blocks: Blocks,
    interpret: bool = False,
) -> tuple[Array, Array, Array]:
    """The gradients by q, k and v, from that of the output and what `forward` returned.

    Shapes and options are those of `forward`; each gradient has the shape and dtype of its factor.
    """
    _, length, _, width = q.shape
    padded = padded_length(length)
    found = block_masks(padded, window, blocks)
    options = _options(found, blocks, interpret)
    sinks = (None,) if _has_sinks() else ()

    def of_one_row(
        grad: Array, q: Array, k: Array, v: Array, out: Array, lse: Array, ids: Any
    ) -> tuple[Array, Array, Array]:
        saved = (q, k, v, ids, *sinks, out, lse, found.dq, found.dkv)
        gradients = upstream._splash_attention_bwd(
            save_residuals=False, **options, res=saved, do=grad
        )
        return gradients[3:6]

    dq, dk, dv = jax.vmap(of_one_row)(
        _to_kernel(grad, padded),
        _scaled(_to_kernel(q, padded), scale),
        _to_kernel(k, padded),
        _to_kernel(v, padded),
        _to_kernel(out, padded),
        jnp.pad(lse, ((0, 0), (0, 0), (0, padded - length))),
        _segments(documents, padded),
    )
    dq = _scaled(dq, scale)  # the kernels know only the scaled queries
    return tuple(_from_kernel(x, length, width) for x in (dq, dk, dv))  # type: ignore[return-value]


@lru_cache(maxsize=1)
def _has_sinks() -> bool:
    """Later versions of jax know attention sinks, which take a place among what is saved."""
    return "sinks" in inspect.signature(upstream._splash_attention_forward).parameters


@lru_cache(maxsize=1)
def _head_multiple() -> int:
    """jax 0.7 asks for heads of whole lanes, later versions also take half of them."""
    return LANES if jax.__version_info__ < (0, 8) else LANES // 2


def _options(found: Masks, blocks: Blocks, interpret: bool) -> dict[str, Any]:
    sizes = upstream.BlockSizes(
        block_q=blocks.q,
        block_kv=blocks.kv,
        block_q_dkv=blocks.q_back,
        block_kv_dkv=blocks.kv_back,
        block_q_dq=blocks.q_back,
        block_kv_dq=blocks.kv_back,
    )
    return {
        "mask_value": upstream.DEFAULT_MASK_VALUE,
        "is_mqa": False,
        "block_sizes": sizes,
        "residual_checkpoint_name": None,
        "mask_function": found.function,
        "attn_logits_soft_cap": None,
        "interpret": interpret,
    }


def _to_kernel(x: Array, padded: int) -> Array:
    """(B, T, H, D) to (B, H, T, D), with zeros after the last position and the last number.

    Causality hides the added positions from all others, and their gradient is zero.
    """
    _, length, _, width = x.shape
    more = -width % _head_multiple()
    return jnp.pad(x, ((0, 0), (0, padded - length), (0, 0), (0, more))).swapaxes(1, 2)


def _from_kernel(x: Array, length: int, width: int) -> Array:
    return x.swapaxes(1, 2)[:, :length, :, :width]


def _scaled(x: Array, scale: float) -> Array:
    return (x.astype(jnp.float32) * scale).astype(x.dtype)


def _segments(documents: Array | None, padded: int) -> upstream.SegmentIds | None:
    if documents is None:
        return None
    more = ((0, 0), (0, padded - documents.shape[1]))
    ids = jnp.pad(documents, more, constant_values=PADDING)
    return upstream.SegmentIds(q=ids, kv=ids)
