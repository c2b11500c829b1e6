"""Trains nanochat-core, or karpathy/nanochat, on the very same rows and compares what they learn.

    python compare_quality.py prepare --data-dir SHARDS --tokenizer FOLDER --tokens 60e6 --rows DIR
    python compare_quality.py train --rows DIR --depth 12 --steps 768
    python compare_quality.py train --rows DIR --depth 12 --steps 768 --reference CHECKOUT

`prepare` packs documents into rows with nanochat's own loader, once for both. `train` runs the
trainer's model, optimiser and schedules over them in order, with the settings that each has by
default, and prints one JSON line with the loss along the way and the validation bits per byte.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from compare_karpathy import ours, reference

REFERENCE_BATCH = 2**19


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("prepare")
    packing.add_argument("--data-dir", type=Path, required=True)
    packing.add_argument("--tokenizer", type=Path, required=True)
    packing.add_argument("--tokens", type=float, required=True)
    packing.add_argument("--length", type=int, default=2048)
    packing.add_argument("--rows", type=Path, required=True)
    training = commands.add_parser("train")
    training.add_argument("--rows", type=Path, required=True)
    training.add_argument("--reference", type=Path)
    training.add_argument("--depth", type=int, default=12)
    training.add_argument("--batch", type=int, default=32)
    training.add_argument("--steps", type=int, default=768)
    training.add_argument("--pattern", default="SSSL")
    training.add_argument("--attention", default="auto")
    training.add_argument("--loss", default="auto")
    training.add_argument("--quantization", default="none")
    training.add_argument("--fp8", action="store_true", help="the reference's --fp8")
    training.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    prepare(options) if options.command == "prepare" else train(options)


def prepare(options: argparse.Namespace) -> None:
    from nanochat.data.loader import TrainLoader
    from nanochat.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(options.tokenizer)
    options.rows.mkdir(parents=True, exist_ok=True)
    for split, tokens in (("train", int(options.tokens)), ("val", 10**9)):
        batches = []
        with TrainLoader(
            options.data_dir,
            tokenizer,
            batch_size=16,
            sequence_len=options.length,
            split=split,
            long_documents="split",
            encoder_threads=8,
        ) as loader:
            for batch in loader:
                rows = np.concatenate([batch.inputs.numpy(), batch.targets.numpy()[:, -1:]], axis=1)
                batches.append(rows.astype(np.uint16))
                if sum(b.shape[0] for b in batches) * options.length >= tokens:
                    break
        rows = np.concatenate(batches)
        np.save(options.rows / f"{split}.npy", rows)
        print(f"{split}: {rows.shape[0]} rows of {options.length} tokens", flush=True)
    np.save(options.rows / "token_bytes.npy", tokenizer.token_bytes())


def train(options: argparse.Namespace) -> None:
    import torch

    rows = np.load(options.rows / "train.npy", mmap_mode="r")
    held_out = np.load(options.rows / "val.npy")
    token_bytes = np.load(options.rows / "token_bytes.npy")
    length = rows.shape[1] - 1
    needed = options.steps * options.batch
    if len(rows) < needed:
        sys.exit(f"error: {needed} rows are needed, {options.rows} has {len(rows)}")
    tokens_per_step = options.batch * length
    torch.manual_seed(options.seed)
    torch.cuda.manual_seed(options.seed)
    shape = SimpleNamespace(
        **{**vars(options), "length": length, "vocab": len(token_bytes), "accumulate": 1}
    )
    if options.reference:
        trainer, model, compiled, optimizer = reference(shape, rate=batch_scale(tokens_per_step))
    else:
        trainer, model, compiled, optimizer = ours(shape, rate=batch_scale(tokens_per_step))

    def batch_at(table: np.ndarray, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = table[index * options.batch : (index + 1) * options.batch].astype(np.int64)
        on_gpu = torch.from_numpy(part).cuda(non_blocking=True)
        return on_gpu[:, :-1].contiguous(), on_gpu[:, 1:].contiguous()

    losses: list[torch.Tensor] = []
    began = time.perf_counter()
    for step in range(options.steps):
        loss = compiled(*batch_at(rows, step))
        loss.backward()
        apply_schedule(optimizer, step, options.steps, tokens_per_step)
        optimizer.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began

    sizes = torch.from_numpy(token_bytes.astype(np.int64)).cuda()
    nats, size = 0.0, 0
    with torch.no_grad():
        for index in range(len(held_out) // options.batch):
            inputs, targets = batch_at(held_out, index)
            per_token = row_losses(model, inputs, targets, bool(options.reference))
            counted = sizes[targets.flatten()]
            nats += float((per_token.double() * (counted > 0)).sum())
            size += int(counted.sum())
    curve = [round(float(loss), 4) for loss in losses]
    print(
        json.dumps(
            {
                **trainer,
                "depth": options.depth,
                "pattern": options.pattern,
                "steps": options.steps,
                "tokens": options.steps * tokens_per_step,
                "validation_bits_per_byte": round(nats / math.log(2) / size, 5),
                "mean_loss_of_last_20": round(sum(curve[-20:]) / 20, 5),
                "loss_every_50": curve[::50],
                "last_losses": curve[-20:],
                "seconds": round(seconds, 1),
                "torch": torch.__version__,
                "device": torch.cuda.get_device_name(),
            }
        ),
        flush=True,
    )


def row_losses(model, inputs, targets, is_reference: bool):
    if is_reference:
        return model(inputs, targets, loss_reduction="none").flatten()
    return model(inputs, targets, reduction="none")


def batch_scale(tokens_per_step: int) -> float:
    """Both trainers scale learning rates with the square root of the batch."""
    return math.sqrt(tokens_per_step / REFERENCE_BATCH)


def apply_schedule(optimizer, step: int, steps: int, tokens_per_step: int) -> None:
    """Both trainers' schedules, which are the same; the groups of both carry the same words."""
    warmup, warmdown = 40, round(0.65 * steps)
    left = steps - step
    if step < warmup:
        rate = (step + 1) / warmup
    else:
        rate = 1.0 if left >= warmdown else left / warmdown * 0.95 + 0.05
    momentum = 0.85 + min(step / 400, 1.0) * 0.12
    if step >= 400 and left < warmdown:
        momentum = 0.97 - 0.07 * (1 - left / warmdown)
    decay = 0.28 * batch_scale(tokens_per_step) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate
        if group["kind"] == "muon":
            group["momentum"] = momentum
            group["weight_decay"] = decay


if __name__ == "__main__":
    main()
