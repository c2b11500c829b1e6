"""Compares a provider with float64 on the machine at hand: outputs, gradients and decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from nanochat.builtin import sdpa
from nanochat.errors import NanochatError
from nanochat_fa3.ops import Operators

ALLOWED = 2e-2
"""Relative error, as a quotient of norms. bfloat16 leaves 2e-3 to 6e-3; a window that is one
position off or a missing scale leaves 0.1 and more."""

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 2, 200, 4, 2, 128
WINDOWS = (None, 37)
# Lengths of documents in each of the rows.
DOCUMENTS = ((200,), (90, 1, 109))
SCALE = 0.11


@dataclass(frozen=True)
class Measured:
    """The relative error of one result. NaN counts as infinite."""

    what: str
    error: float

    @property
    def ok(self) -> bool:
        return self.error <= ALLOWED

    def __str__(self) -> str:
        return f"{self.what} is off by {self.error:.2g}"


def require(operators: Operators, title: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raise NanochatError with the measured errors unless every result is within `ALLOWED`."""
    try:
        wrong = [m for m in measure(operators, device, dtype) if not m.ok]
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NanochatError(
            f"{title} does not run on this {device.type} device: {first}", _remedy()
        ) from error
    if wrong:
        listed = ", ".join(str(m) for m in wrong[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise NanochatError(
            f"{title} computes wrong results on this {device.type} device: {listed}{more}, "
            f"relative to float64, where {ALLOWED:g} is allowed",
            _remedy(),
        )


def _remedy() -> str:
    return "Use --attention flex or sdpa, or name another provider in NANOCHAT_FA3_PROVIDER"


@torch.enable_grad()
def measure(operators: Operators, device: torch.device, dtype: torch.dtype) -> list[Measured]:
    """Errors of the output, of each gradient and of decoding, by windows and with documents."""
    found: list[Measured] = []
    generator = torch.Generator().manual_seed(0)

    def draw(length: int, heads: int) -> Tensor:
        # Rounded to the dtype first, so that both sides start from the same numbers.
        x = torch.randn(BATCH, length, heads, HEAD_DIM, generator=generator, dtype=torch.float64)
        return x.to(dtype).double()

    numbers = [torch.repeat_interleave(torch.tensor(lengths)) for lengths in DOCUMENTS]
    packed = torch.stack(numbers).int()
    for window, documents in product(WINDOWS, (None, packed)):
        seen = "all positions" if window is None else f"window {window}"
        seen = seen if documents is None else f"{seen}, documents"
        exact = [draw(LENGTH, h).requires_grad_() for h in (HEADS, KV_HEADS, KV_HEADS)]
        weight = draw(LENGTH, HEADS)
        want = sdpa.attention(*exact, window=window, scale=SCALE, documents=documents)
        wanted = torch.autograd.grad(want, exact, weight)
        given = [x.detach().to(device, dtype).requires_grad_() for x in exact]
        runs = (None, None) if documents is None else operators.runs(documents.to(device))
        got, _ = operators.forward(*given, *runs, window, SCALE)
        gradients = torch.autograd.grad(got, given, weight.to(device, dtype))
        found.append(Measured(f"the output ({seen})", _error(got, want)))
        for name, one, other in zip("qkv", gradients, wanted, strict=True):
            found.append(Measured(f"the gradient of {name} ({seen})", _error(one, other)))
        if documents is None:
            found += _decoding(operators, draw, window, seen, device, dtype)
    return found


def _decoding(
    operators: Operators,
    draw: Callable[[int, int], Tensor],
    window: int | None,
    seen: str,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Measured]:
    filled = torch.tensor([5, 90], dtype=torch.int32)
    for new in (1, 3):
        caches = [draw(128, KV_HEADS) for _ in "kv"]
        q, k, v = (draw(new, heads) for heads in (HEADS, KV_HEADS, KV_HEADS))
        given = [x.to(device, dtype) for x in (q, *caches, k, v)]
        got = operators.decode(*given, filled.to(device), window, SCALE)
        want = sdpa.attention_with_kvcache(
            q, caches[0], caches[1], k, v, cache_seqlens=filled, window=window, scale=SCALE
        )
        yield Measured(f"decoding of {new} ({seen})", _error(got, want))
        for name, one, other in zip("kv", given[1:3], caches, strict=True):
            yield Measured(f"the {name} cache ({seen})", _error(one, other))


def _error(got: Tensor, want: Tensor) -> float:
    want = want.detach()
    error = float((got.detach().cpu().double() - want).norm() / want.norm())
    return error if error == error else float("inf")
