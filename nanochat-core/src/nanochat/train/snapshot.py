"""What a checkpoint says of a run beside its tensors, and how a run takes it up again."""

from __future__ import annotations

import base64
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat import __version__
from nanochat.data.loader import merge_states
from nanochat.errors import NanochatError, UsageError
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.plan import Plan
from nanochat.runtime import Runtime
from nanochat.train import checkpoint
from nanochat.train.config import TrainConfig
from nanochat.train.horizon import Horizon
from nanochat.train.meter import Meter


@dataclass
class Snapshots:
    """Saves a run at a step. All ranks call it; the first one writes."""

    folder: Path
    config: TrainConfig
    plan: Plan
    runtime: Runtime
    model: GPT
    optimizer: MuonAdamW
    horizon: Horizon
    fingerprint: str
    meter: Meter
    written: Callable[[int, Path], None] | None = None
    """See `checkpoint.save`."""

    def save(self, step: int, position: dict[str, Any] | None) -> Path | None:
        """Write the checkpoint of a step; its folder on the first rank, None on the others.

        `position` is where this rank's data go on. Raises NanochatError on a full disk.
        """
        state = self.optimizer.state_dict()  # gathered: all ranks take part
        positions = self.runtime.all_gather_object(position)
        place = None
        if self.runtime.rank == 0:
            meta = {
                "step": step,
                "settings": self.config.as_dict(),
                "model": asdict(self.model.config),
                "horizon": asdict(self.horizon),
                "plan": self.plan.as_dict(),
                "versions": versions(self.plan),
                "tokenizer": self.fingerprint,
                "ranks": self.runtime.world_size,
                "data": merge_states(positions),
                "loop": self.meter.as_dict(),
                "rng": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode("ascii"),
                "time": time.time(),
            }
            place = checkpoint.save(
                self.folder,
                step,
                self.model.state_dict(),
                state,
                meta,
                keep=self.config.keep_checkpoints,
                written=self.written,
            )
        self.runtime.barrier()
        return place


def versions(plan: Plan) -> dict[str, str]:
    """What computed a checkpoint: nanochat, torch, Python and the plan's distributions."""
    return {
        **{c.distribution: c.version for c in plan},
        "nanochat-core": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def check_same(
    meta: Mapping[str, Any], model: GPTConfig, fingerprint: str, horizon: Horizon
) -> None:
    """Raises UsageError if a checkpoint is of another model, tokenizer or batch than this run."""
    different = [
        f"{name} is {value} here and {meta['model'].get(name)} in the checkpoint"
        for name, value in asdict(model).items()
        if meta["model"].get(name) != value
    ]
    before = meta["horizon"]["total_batch_size"]
    if horizon.total_batch_size != before:
        different.append(
            f"total_batch_size is {horizon.total_batch_size} here and {before} in the checkpoint"
        )
    if not different and fingerprint != meta["tokenizer"]:
        different.append("the tokenizer is another than the checkpoint was trained with")
    if different:
        raise UsageError(
            f"this run cannot continue that checkpoint: {'; '.join(different)}",
            "Leave those settings out to take the checkpoint's, or start anew without --resume",
        )
    if meta["step"] > horizon.num_iterations:
        raise UsageError(
            f"the checkpoint is of step {meta['step']}, beyond the {horizon.num_iterations} steps "
            "of this run",
            "Give more --num-iterations, or continue an earlier checkpoint",
        )


def restore(source: Path, model: GPT, optimizer: MuonAdamW, runtime: Runtime) -> Meter:
    """Put a checkpoint into a model and its optimiser. Raises NanochatError if it does not fit."""
    loaded = checkpoint.load(source, runtime.load_device)
    try:
        model.load_state_dict(loaded.model)
    except RuntimeError as error:
        raise NanochatError(
            f"{source / checkpoint.MODEL} does not fit the model: {str(error).splitlines()[-1]}",
            "Use the version of nanochat that wrote it",
        ) from error
    if loaded.optimizer is None:
        raise NanochatError(f"{source} has no state of the optimiser", "Resume from another")
    optimizer.load_state_dict(loaded.optimizer)
    state = bytearray(base64.b64decode(loaded.meta["rng"]))
    torch.set_rng_state(torch.frombuffer(state, dtype=torch.uint8))
    return Meter.from_dict(loaded.meta["loop"])
