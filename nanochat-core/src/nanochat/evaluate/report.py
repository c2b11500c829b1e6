"""What a command can find out about an opened checkpoint. Importing this imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanochat.data.packing import LongDocuments
    from nanochat.evaluate.core_bundle import Bundle
    from nanochat.generate.load import Opened

Say = Callable[[str], None]
"""Shows a line to people."""


@dataclass(frozen=True)
class Request:
    """What is to be evaluated; `kinds` are keys of `EVALUATIONS`.

    Bits per byte need `data_dir`, the CORE metric `bundle`. `streaming` and `long_documents` are
    those of the training run: which documents are held out, and what becomes of long ones.
    """

    kinds: tuple[str, ...]
    data_dir: Path | None
    streaming: bool
    long_documents: LongDocuments
    eval_tokens: int
    batch_size: int
    bundle: Bundle | None
    max_per_task: int
    prompts: tuple[str, ...]
    max_tokens: int


def evaluate(opened: Opened, request: Request, say: Say) -> dict[str, Any]:
    """Everything that was requested, as plain values by kind. All ranks call it."""
    return {kind: EVALUATIONS[kind](opened, request, say) for kind in request.kinds}


def _bpb(opened: Opened, request: Request, say: Say) -> float | None:
    import torch

    from nanochat.data.loader import validation_batches
    from nanochat.evaluate.bpb import bits_per_byte

    assert request.data_dir is not None
    runtime = opened.runtime
    batches = validation_batches(
        request.data_dir,
        opened.tokenizer,
        batch_size=request.batch_size,
        sequence_len=opened.model.config.sequence_len,
        tokens=request.eval_tokens,
        rank=runtime.rank,
        world_size=runtime.world_size,
        streaming=request.streaming,
        pinned=runtime.pinned,
        long_documents=request.long_documents,
        notify=say,
    )
    sizes = torch.from_numpy(opened.tokenizer.token_bytes())
    found = bits_per_byte(opened.model, batches, sizes, runtime)
    say(f"validation: {found:.6f} bits per byte")
    return found if math.isfinite(found) else None  # JSON has no NaN


def _core(opened: Opened, request: Request, say: Say) -> dict[str, Any]:
    from nanochat.evaluate.core_metric import TaskResult, evaluate_core

    assert request.bundle is not None

    def report(task: TaskResult) -> None:
        say(
            f"{task.label}: accuracy {task.accuracy:.4f}, centred {task.centered:.4f} "
            f"({task.examples} examples)"
        )

    result = evaluate_core(
        opened.model,
        opened.tokenizer,
        request.bundle,
        opened.runtime,
        request.max_per_task,
        report=report,
    )
    say(f"CORE: {result.core_metric:.4f}")
    return {
        "core_metric": result.core_metric,
        "accuracy": result.results,
        "centered": result.centered,
    }


def _samples(opened: Opened, request: Request, say: Say) -> list[dict[str, str]]:
    """Greedy continuations, on the first rank alone."""
    from nanochat.generate.engine import Engine

    if opened.runtime.rank != 0:
        return []
    tokenizer = opened.tokenizer
    engine = Engine(opened.model, tokenizer, opened.runtime)
    samples = []
    for prompt in request.prompts:
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
        [continuation] = engine.generate(ids, max_tokens=request.max_tokens, temperature=0.0)
        text = tokenizer.decode(continuation)
        samples.append({"prompt": prompt, "text": text})
        say(f"sample: {prompt!r} -> {text!r}")
    return samples


EVALUATIONS: Mapping[str, Callable[[Opened, Request, Say], Any]] = {
    "bpb": _bpb,
    "core": _core,
    "sample": _samples,
}
"""In the order in which they are done."""
