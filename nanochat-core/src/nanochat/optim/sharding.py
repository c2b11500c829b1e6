"""Averaging gradients over ranks and giving each rank a share of the work (ZeRO-2).

Every function launches its communication at once and returns something to wait for, so that later
communication overlaps with earlier updates. With one rank they do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """This rank's share of dimension 0 of `whole`, to be waited for before use."""

    whole: Tensor
    part: Tensor
    wait: Callable[[], None]


def rows_per_rank(rows: int, world_size: int) -> int:
    return -(-rows // world_size)


def reduce_scatter_mean(whole: Tensor, rank: int, world_size: int) -> Shard:
    """The mean over ranks of this rank's equal share of `whole`, whose rows divide evenly."""
    if world_size == 1:
        return Shard(whole, whole, _nothing)
    rows = whole.size(0) // world_size
    part = torch.empty_like(whole[:rows])
    work = _reduce_scatter(part, whole, op=dist.ReduceOp.SUM, async_op=True)

    def wait() -> None:
        work.wait()
        part.div_(world_size)

    return Shard(whole, part, wait)


def all_reduce_mean(whole: Tensor, world_size: int) -> Shard:
    """The mean over ranks of all of a small tensor, in place."""
    if world_size == 1:
        return Shard(whole, whole, _nothing)
    work = dist.all_reduce(whole, op=dist.ReduceOp.SUM, async_op=True)

    def wait() -> None:
        work.wait()
        whole.div_(world_size)

    return Shard(whole, whole, wait)


def all_gather(whole: Tensor, part: Tensor, world_size: int) -> Callable[[], None]:
    """Fill `whole` from the parts of all ranks. Returns what waits for it."""
    if world_size == 1:
        return _nothing
    work = _all_gather(whole, part.contiguous(), async_op=True)
    return lambda: work.wait() and None


def _reduce_scatter(*args: Any, **options: Any) -> Any:
    new = getattr(dist, "reduce_scatter_single", None)  # its name from torch 2.13 on
    return (new or dist.reduce_scatter_tensor)(*args, **options)


def _all_gather(*args: Any, **options: Any) -> Any:
    new = getattr(dist, "all_gather_single", None)
    return (new or dist.all_gather_into_tensor)(*args, **options)


def _nothing() -> None:
    return None
