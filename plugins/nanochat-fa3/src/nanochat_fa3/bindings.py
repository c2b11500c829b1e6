"""Each provider behind the same three calls. Imports torch and, in `bind`, the provider."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nanochat.caches import cache_folder
from nanochat.errors import NanochatError
from nanochat_fa3.functions import Function
from nanochat_fa3.providers import (
    FA4_HEAD_MULTIPLE,
    FA4_INSTALL,
    HUB_KERNELS,
    WHEEL,
    Provider,
    Selection,
    minus_one_window,
    none_window,
)


@dataclass(frozen=True)
class Runs:
    """Documents in one line of positions: where each begins, and the end of the last.

    `starts` is (documents + 1,) int32, `longest` the length of the longest in positions, or more.
    """

    starts: Tensor
    longest: int


@dataclass(frozen=True)
class Kernel:
    """A provider's functions. Windows are nanochat's: earlier positions seen, or None for all.

    forward(q, k, v, runs, window, scale) -> out, lse (float32 (B, H, T))
    backward(dout, q, k, v, out, lse, runs, window, scale) -> dq, dk, dv
    decode(q, k_cache, v_cache, k, v, cache_seqlens, window, scale) -> out, caches written in place

    With `runs` the positions of all rows stand in one line, (B * T, H, D), and lse is (H, B * T).
    """

    name: str
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    decode: Callable[..., Tensor]


def bind(selection: Selection) -> Kernel:
    """Import the selected provider. Raises NanochatError if that fails or it is a stranger."""
    provider = selection.provider
    if provider is None:
        raise NanochatError(selection.reason, selection.remedy)
    if provider.name == "fa4":
        keep_compiled_kernels()
        return bind_fa4(_imported("flash_attn.cute.interface", provider))
    if provider.name == "hub":
        return bind_cuda(_from_hub(selection), provider.name)
    module = "flash_attn_interface" if provider.name == "fa3" else "flash_attn.flash_attn_interface"
    return bind_cuda(_imported(module, provider), provider.name)


def keep_compiled_kernels() -> None:
    """Let FlashAttention-4 keep its kernels between runs, each of which takes it some 10 s.

    It reads both variables when it is imported, by default keeps nothing, and knows a kept kernel
    by its own sources and the versions of its compiler. What the user has set stays.
    """
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED", "1")
    folder = str(cache_folder() / "flash-attn-4")
    os.environ.setdefault("FLASH_ATTENTION_CUTE_DSL_CACHE_DIR", folder)


def bind_cuda(module: ModuleType, name: str) -> Kernel:
    """FlashAttention-2 or -3, which share their names: the `flash_attn_interface` module."""
    forward = Function(module, "_flash_attn_forward", name)
    backward = Function(module, "_flash_attn_backward", name)
    decode = Function(module, "flash_attn_with_kvcache", name)
    forward.must_take(("q", "k", "v", "softmax_scale", "causal"))
    backward.must_take(("dout", "q", "k", "v", "out", "softmax_lse", "dq", "dk", "dv"))
    backward.must_take(("softmax_scale",))
    decode.must_take(("q", "k_cache", "v_cache", "k", "v", "cache_seqlens", "softmax_scale"))
    decode.must_take(("causal", "window_size"))
    for function in (forward, backward):
        function.must_take_one_of(("window_size_left", "window_size"))
        function.must_take_one_of(("causal", "is_causal"))
    # FlashAttention-2 has functions of their own for documents, -3 the same with more arguments.
    apart = "varlen_" if "cu_seqlens_q" not in forward.parameters else ""
    varlen_forward = Function(module, f"_flash_attn_{apart}forward", name)
    varlen_backward = Function(module, f"_flash_attn_{apart}backward", name)
    for function in (varlen_forward, varlen_backward):
        function.must_take(("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"))

    def run_forward(
        q: Tensor, k: Tensor, v: Tensor, runs: Runs | None, window: int | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        call, shape = (forward, "(B, H, T)") if runs is None else (varlen_forward, "(H, B * T)")
        answer = call(
            q=q, k=k, v=v, softmax_scale=scale, **_cuda_arguments(window), **_run_arguments(runs)
        )
        out, lse = answer[0], answer[1]
        if lse.dim() != q.dim() - 1 or lse.dtype != torch.float32:
            raise NanochatError(
                f"{name} returned {tuple(lse.shape)} {lse.dtype} where the log-sum-exp {shape} "
                "in float32 is expected: it is an unknown version",
                f"Else {WHEEL}",
            )
        return out, lse

    def run_backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        runs: Runs | None,
        window: int | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        call = backward if runs is None else varlen_backward
        call(
            dout=dout,
            q=q,
            k=k,
            v=v,
            out=out,
            softmax_lse=lse,
            dq=dq,
            dk=dk,
            dv=dv,
            softmax_scale=scale,
            **_cuda_arguments(window),
            **_run_arguments(runs),
        )
        return dq, dk, dv

    def run_decode(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor,
        v: Tensor,
        cache_seqlens: Tensor,
        window: int | None,
        scale: float,
    ) -> Tensor:
        return decode(
            q=q,
            k_cache=k_cache,
            v_cache=v_cache,
            k=k,
            v=v,
            cache_seqlens=cache_seqlens,
            softmax_scale=scale,
            causal=True,
            window_size=minus_one_window(window),
        )

    return Kernel(name, run_forward, run_backward, run_decode)


def bind_fa4(module: ModuleType, name: str = "fa4") -> Kernel:
    """FlashAttention-4, the module `flash_attn.cute.interface`."""
    forward = Function(module, "_flash_attn_fwd", name)
    backward = Function(module, "_flash_attn_bwd", name)
    varlen = Function(module, "flash_attn_varlen_func", name)
    shared = ("q", "k", "v", "softmax_scale", "causal", "window_size_left", "window_size_right")
    documents = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    forward.must_take((*shared, *documents, "return_lse"))
    backward.must_take((*shared, *documents, "out", "dout", "lse"))
    varlen.must_take(("q", "k", "v", "softmax_scale", "causal", "window_size", "seqused_k"))

    def run_forward(
        q: Tensor, k: Tensor, v: Tensor, runs: Runs | None, window: int | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        if q.size(-1) % FA4_HEAD_MULTIPLE:
            raise NanochatError(
                f"FlashAttention-4 computes wrong gradients for heads of {q.size(-1)}",
                f"Use heads of a multiple of {FA4_HEAD_MULTIPLE}",
            )
        left, right = none_window(window)
        answer = forward(
            q=q,
            k=k,
            v=v,
            softmax_scale=scale,
            causal=True,
            window_size_left=left,
            window_size_right=right,
            return_lse=True,
            **_run_arguments(runs),
        )
        return answer[0], answer[1]

    def run_backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        runs: Runs | None,
        window: int | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        left, right = none_window(window)
        answer = backward(
            q=q,
            k=k,
            v=v,
            out=out,
            dout=dout,
            lse=lse,
            softmax_scale=scale,
            causal=True,
            window_size_left=left,
            window_size_right=right,
            **_run_arguments(runs),
        )
        return answer[0], answer[1], answer[2]

    def run_decode(
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        k: Tensor,
        v: Tensor,
        cache_seqlens: Tensor,
        window: int | None,
        scale: float,
    ) -> Tensor:
        # No call of FlashAttention-4 appends to a cache.
        new = torch.arange(q.size(1), device=q.device)
        index = (cache_seqlens[:, None].long() + new)[:, :, None, None].expand(k.shape)
        k_cache.scatter_(1, index, k)
        v_cache.scatter_(1, index, v)
        answer = varlen(
            q=q,
            k=k_cache,
            v=v_cache,
            seqused_k=(cache_seqlens + q.size(1)).to(torch.int32),
            softmax_scale=scale,
            causal=True,
            window_size=none_window(window),
        )
        return answer[0]

    return Kernel(name, run_forward, run_backward, run_decode)


def _run_arguments(runs: Runs | None) -> dict[str, Any]:
    """What every provider calls the beginnings of documents, where there are any."""
    if runs is None:
        return {}
    return {
        "cu_seqlens_q": runs.starts,
        "cu_seqlens_k": runs.starts,
        "max_seqlen_q": runs.longest,
        "max_seqlen_k": runs.longest,
    }


def _cuda_arguments(window: int | None) -> dict[str, Any]:
    """What the private functions of FlashAttention-2 and -3 take, under all their names."""
    left, right = minus_one_window(window)
    return {
        "causal": True,
        "is_causal": True,
        "window_size_left": left,
        "window_size_right": right,
        "window_size": (left, right),
        "dropout_p": 0.0,
        "softcap": 0.0,
        "alibi_slopes": None,
        "deterministic": False,
        "return_softmax": False,
    }


def _imported(module: str, provider: Provider) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = (
            f"{FA4_INSTALL} --upgrade"
            if provider.name == "fa4"
            else f"It was built for another torch than {torch.__version__}: {WHEEL}"
        )
        raise NanochatError(f"{provider.title} does not import: {first}", remedy) from error


def _from_hub(selection: Selection) -> ModuleType:
    assert selection.family is not None
    wanted = HUB_KERNELS[selection.family]
    named = f"{wanted.repository} (version {wanted.version})"
    try:
        get_kernel = importlib.import_module("kernels").get_kernel
        # Without a version the call raises from kernels 0.12 on, and took any commit before.
        module = get_kernel(wanted.repository, version=wanted.version)
        return getattr(module, "flash_attn_interface", module)
    except (ImportError, OSError, RuntimeError, ValueError, LookupError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NanochatError(
            f"{named} could not be had from the Hugging Face hub: {first}",
            f"Look at the network and HF_HUB_OFFLINE, or {WHEEL}",
        ) from error
