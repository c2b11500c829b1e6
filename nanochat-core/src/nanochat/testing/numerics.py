"""How close is close enough: as close to float64 as plain torch in the same dtype, and some slack.

A tolerance fixed by hand is either too wide for float32 or too narrow for bfloat16. Here the plain
formula is computed in the dtype at hand, on the device at hand, and what it loses against float64
is the yardstick. Errors are taken over a whole tensor and of each row (the last dimension), so
that one wrong row among many right ones is seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nanochat.testing.contract import ConformanceError, Measured, Subject, worst

SLACK = 4.0
"""How many times the loss of plain torch is allowed."""


def floor(dtype: torch.dtype, device: torch.device) -> float:
    """The relative error that is allowed however exact plain torch happens to be."""
    if dtype == torch.float32:
        return 2e-6 if device.type == "cpu" else 2e-3  # TF32 rounds to 10 bits
    return float(torch.finfo(dtype).eps) * (1 if dtype == torch.bfloat16 else 2)


def compare(
    subject: Subject,
    what: str,
    got: Tensor | None,
    exact: Tensor,
    plain: Tensor,
    *,
    dtype: torch.dtype | None = None,
    share: float = 0.1,
    unit: float = 0.0,
) -> Measured:
    """Hold a result against float64. Raises ConformanceError where it is too far off.

    `exact` and `plain` are the formula in float64 and in `dtype` (of the computation; by default
    that of `got`). A row's error is relative to its norm, plus `share` of the rows' mean norm,
    plus `unit`: the norm of rows that are alike but not close to zero.
    """
    if got is None:
        raise ConformanceError(f"{what} is None")
    if got.shape != exact.shape:
        raise ConformanceError(f"{what} has the shape {tuple(got.shape)}, not {tuple(exact.shape)}")
    bottom = floor(dtype or got.dtype, got.device)
    stated = subject.stated("output" if "gradient" not in what else "gradient")
    mine, theirs, right = (x.detach().cpu().double() for x in (got, plain, exact))
    if not mine.isfinite().all():
        raise ConformanceError(f"{what} is not finite")
    found = []
    for label, error, reference, slack in (
        (what, *_whole(mine, theirs, right, unit), 1.0),
        (f"the worst row of {what}", *_worst_row(mine, theirs, right, share, unit), 2.0),
    ):
        allowed = max(slack * (SLACK * reference + bottom), stated * slack)
        if not error <= allowed:
            raise ConformanceError(
                f"{label} is {error:.1e} from float64; {allowed:.1e} is allowed (plain torch is "
                f"{reference:.1e} off)"
            )
        found.append(Measured(f"error of {label}", error, allowed))
    return worst(found)


def _whole(mine: Tensor, theirs: Tensor, right: Tensor, unit: float) -> tuple[float, float]:
    rows = right.numel() // max(right.size(-1), 1) if right.dim() else 1
    size = right.norm() + unit * rows**0.5
    return _ratio((mine - right).norm(), size), _ratio((theirs - right).norm(), size)


def _worst_row(
    mine: Tensor, theirs: Tensor, right: Tensor, share: float, unit: float
) -> tuple[float, float]:
    """Each row's error relative to its own size, which may be close to zero in some rows."""
    if right.dim() < 2:  # a scalar, or one number a row
        mine, theirs, right = (x.reshape(-1, 1) for x in (mine, theirs, right))
    norms = right.norm(dim=-1)
    size = norms + share * norms.square().mean().sqrt() + unit
    return _ratio((mine - right).norm(dim=-1), size), _ratio((theirs - right).norm(dim=-1), size)


def _ratio(error: Tensor, size: Tensor) -> float:
    """The largest error / size, where nothing off by nothing is no error."""
    return float(torch.where(error == 0, 0.0, error / size).max())


def row_size(x: Tensor) -> float:
    """The typical norm of a row."""
    return float(x.detach().double().norm(dim=-1).square().mean().sqrt())


def same(what: str, one: Tensor | None, other: Tensor | None) -> None:
    """Raise ConformanceError unless two results are the same to the last bit."""
    if one is None or other is None:
        if one is not other:
            raise ConformanceError(f"{what} is None in one of two runs")
        return
    if not torch.equal(one, other):
        off = (one.double() - other.double()).abs().max().item() if one.shape == other.shape else 0
        raise ConformanceError(f"{what} is not the same as before (up to {off:.1e} apart)")
