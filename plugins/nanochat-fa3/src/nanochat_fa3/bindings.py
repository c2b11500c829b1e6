"""Each provider behind the same three calls. Imports torch and, in `bind`, the provider.

Functions of a provider are called by keyword only, and their signatures are read when they are
bound: an argument that was renamed or is missing ends in a message then, not in the tenth step.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nanochat.caches import cache_folder
from nanochat.errors import NanochatError
from nanochat_fa3.providers import (
    FA4_INSTALL,
    HUB_KERNELS,
    WHEEL,
    Provider,
    Selection,
    minus_one_window,
    none_window,
)


@dataclass(frozen=True)
class Kernel:
    """A provider's functions. Windows are nanochat's: earlier positions seen, or None for all.

    forward(q, k, v, window, scale) -> out, lse (float32 (B, H, T))
    backward(dout, q, k, v, out, lse, window, scale) -> dq, dk, dv
    decode(q, k_cache, v_cache, k, v, cache_seqlens, window, scale) -> out, caches written in place
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
    forward = _Function(module, "_flash_attn_forward", name)
    backward = _Function(module, "_flash_attn_backward", name)
    decode = _Function(module, "flash_attn_with_kvcache", name)
    forward.must_take(("q", "k", "v", "softmax_scale", "causal"))
    backward.must_take(("dout", "q", "k", "v", "out", "softmax_lse", "dq", "dk", "dv"))
    backward.must_take(("softmax_scale",))
    decode.must_take(("q", "k_cache", "v_cache", "k", "v", "cache_seqlens", "softmax_scale"))
    decode.must_take(("causal", "window_size"))
    for function in (forward, backward):
        function.must_take_one_of(("window_size_left", "window_size"))
        function.must_take_one_of(("causal", "is_causal"))

    def run_forward(
        q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        answer = forward(q=q, k=k, v=v, softmax_scale=scale, **_cuda_arguments(window))
        out, lse = answer[0], answer[1]
        if lse.dim() != 3 or lse.dtype != torch.float32:
            raise NanochatError(
                f"{name} returned {tuple(lse.shape)} {lse.dtype} where the log-sum-exp (B, H, T) "
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
        window: int | None,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        backward(
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
    forward = _Function(module, "_flash_attn_fwd", name)
    backward = _Function(module, "_flash_attn_bwd", name)
    varlen = _Function(module, "flash_attn_varlen_func", name)
    shared = ("q", "k", "v", "softmax_scale", "causal", "window_size_left", "window_size_right")
    forward.must_take((*shared, "return_lse"))
    backward.must_take((*shared, "out", "dout", "lse"))
    varlen.must_take(("q", "k", "v", "softmax_scale", "causal", "window_size", "seqused_k"))

    def run_forward(
        q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float
    ) -> tuple[Tensor, Tensor]:
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
        )
        return answer[0], answer[1]

    def run_backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
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


# Arguments of older versions that have no default and mean nothing here.
_MEANINGLESS = frozenset(
    "k_new v_new qv out out_ cu_seqlens_q cu_seqlens_k cu_seqlens_k_new seqused_q seqused_k "
    "sequed_q sequed_k max_seqlen_q max_seqlen_k page_table kv_batch_idx leftpad_k rotary_cos "
    "rotary_sin seqlens_rotary q_descale k_descale v_descale rng_state".split()
)


class _Function:
    """A function of a provider that is called by keyword, with those it takes of what is given."""

    def __init__(self, module: ModuleType, name: str, provider: str) -> None:
        self.label = f"{provider}'s {name}"
        function = getattr(module, name, None)
        if not callable(function):
            raise NanochatError(
                f"{module.__name__} has no {name}: it is an unknown version of {provider}",
                "Set NANOCHAT_FA3_PROVIDER to another provider, or install another version",
            )
        self.call: Callable[..., Any] = function
        # A custom operator of torch hides its signature behind (*args, **kwargs).
        self.parameters = inspect.signature(getattr(function, "_init_fn", function)).parameters

    def must_take(self, names: Collection[str]) -> None:
        missing = [name for name in names if name not in self.parameters]
        if missing:
            raise self._stranger(f"does not take {', '.join(missing)}")

    def must_take_one_of(self, names: Collection[str]) -> None:
        if not any(name in self.parameters for name in names):
            raise self._stranger(f"takes neither {' nor '.join(names)}")

    def __call__(self, **given: Any) -> Any:
        arguments = {n: given[n] for n in self.parameters if n in given}
        for name, parameter in self.parameters.items():
            if name not in arguments and parameter.default is inspect.Parameter.empty:
                if name not in _MEANINGLESS:
                    raise self._stranger(f"wants {name}")
                arguments[name] = None
        return self.call(**arguments)

    def _stranger(self, what: str) -> NanochatError:
        return NanochatError(
            f"{self.label} {what}: it is an unknown version",
            "Set NANOCHAT_FA3_PROVIDER to another provider, or install another version",
        )


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
