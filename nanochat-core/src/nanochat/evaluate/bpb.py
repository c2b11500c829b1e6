"""Bits per byte: a validation loss that does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nanochat.errors import NanochatError
from nanochat.runtime import Runtime


def bits_per_byte(
    model_call: Callable[..., Tensor],
    batches: Iterable[tuple[Any, ...]],
    token_bytes: Tensor,
    runtime: Runtime,
    ignore_index: int = -1,
) -> float:
    """The cross-entropy of all targets in bits, over the bytes of text that they stand for.

    `model_call(inputs, targets, reduction="none")` returns nats (B * T,) float32 and ignores
    targets of `ignore_index`. Each batch starts with inputs and targets, (B, T) int64, here or on
    the device. `token_bytes` is (vocab_size,), 0 for special tokens: targets of no bytes count
    neither in the nats nor in the bytes. The result is that of all ranks' batches together, NaN
    if the model's losses are. Raises NanochatError if there is not one byte to count.
    """
    sizes = runtime.place_whole(torch.as_tensor(token_bytes).to(torch.int64))

    def measure(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The nats of a batch, and the bytes."""
        size = sizes[targets.clamp(min=0)].masked_fill(targets == ignore_index, 0)
        # Targets without bytes are hidden from the model too, so that its loss skips them.
        losses = model_call(inputs, targets.masked_fill(size == 0, ignore_index), reduction="none")
        return losses.float().view(-1).masked_fill(size.view(-1) == 0, 0.0).sum(), size.sum()

    nats: list[Tensor] = []
    counts: list[Tensor] = []
    step = runtime.compile_step(measure)
    with runtime.no_grad():
        for batch in batches:
            # Two numbers a batch stay on the device: nothing waits for them until the end.
            of_batch = step(runtime.place(batch[0]), runtime.place(batch[1]))
            nats.append(of_batch[0])
            counts.append(of_batch[1])

    totals = torch.zeros(2, dtype=torch.float64)
    if nats:
        totals[0] = torch.stack(nats).cpu().double().sum()
        totals[1] = torch.stack(counts).cpu().sum()
    if runtime.world_size > 1:
        totals = runtime.all_reduce_sum(totals.to(runtime.device)).cpu()
    all_nats, all_bytes = totals.tolist()
    if all_bytes == 0:
        raise NanochatError(
            "bits per byte cannot be computed: there is not one byte of text to evaluate on",
            "Check that the validation split has documents and that enough tokens are asked for",
        )
    return all_nats / (math.log(2) * all_bytes)
