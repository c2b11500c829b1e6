"""The first and the last things that a run says and writes."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanochat.data.loader import LoaderStats
from nanochat.errors import NanochatError
from nanochat.model.gpt import GPT
from nanochat.train.folder import Resume
from nanochat.train.horizon import Horizon
from nanochat.train.meter import Meter
from nanochat.train.progress import Progress, duration
from nanochat.train.record import LOG, read_log
from nanochat.train.stopping import Stopped, StopRequest
from nanochat.train.uploads import Uploads


def announce(
    progress: Progress, model: GPT, horizon: Horizon, folder: Path, resume: Resume | None
) -> None:
    """Say what is about to be trained, how long, and where it is kept."""
    counts = model.parameter_counts()
    parts = ", ".join(f"{k.replace('_', ' ')} {v:,}" for k, v in counts.items() if k != "total")
    progress.say(f"model: {counts['total']:,} parameters ({parts})")
    progress.say(
        f"training: {horizon.num_iterations:,} steps of {horizon.total_batch_size:,} tokens "
        f"({horizon.accumulation_steps} accumulated), rates x{horizon.lr_scale:.4f}, "
        f"weight decay {horizon.weight_decay:.4f}"
    )
    if resume is not None and resume.checkpoint is not None:
        progress.say(f"continuing {resume.checkpoint}")
    elif resume is not None:
        progress.say(f"there is no checkpoint in {folder} yet: starting at step 0")
    progress.say(f"run folder: {folder}")


def stopped(
    stop: StopRequest, step: int, saved: str, folder: Path, uploads: Uploads | None = None
) -> Stopped:
    """The error that ends a run which a signal stopped. `saved` is its last checkpoint, if any.

    Waits for its upload, as long as the machine lasts.
    """
    sent = uploads.finish() if uploads is not None else ""
    number = signal.Signals(stop.signal or signal.SIGTERM)
    because = f" ({stop.because})" if stop.because else ""
    told = f"stopped by {number.name}{because} after {step} steps"
    if not saved:
        return Stopped(number, f"{told}, nothing was saved")
    inside = Path(saved).parent.parent == folder
    remedy = f"Continue with --resume {folder if inside else saved}"
    if uploads is not None and uploads.done is not None:
        remedy += ", on another machine with the same command and --resume auto"
    return Stopped(
        number, f"{told}, the last checkpoint is {saved}" + (f", {sent}" if sent else ""), remedy
    )


def await_uploads(uploads: Uploads | None, saved: str) -> None:
    """Wait for the last upload of a run that came to its end. Raises NanochatError if it failed."""
    if uploads is not None:
        sent = uploads.finish()
        if uploads.failure:
            raise NanochatError(
                f"the run came to its end, its last checkpoint is {saved}, {sent}",
                "Upload it by the same command with --resume auto",
            )


def finish(
    folder: Path, meter: Meter, memory: int | None, data: LoaderStats, progress: Progress
) -> None:
    """Write summary.json and the loss curve, and sum up the run in a line."""
    summary = {**meter.as_dict(), "memory_peak": memory, "data": asdict(data)}
    write_json(folder / "summary.json", summary)
    try:
        from nanochat.train.plot import plot_loss

        plot_loss(read_log(folder / LOG), folder / "loss.png", folder.name)
        progress.say(f"loss curve: {folder / 'loss.png'}")
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        progress.say("no loss curve: matplotlib is not installed (pip install matplotlib)")
    parts = [f"trained {meter.updates:,} steps in {duration(meter.seconds)}"]
    if meter.val_bpb is not None:
        parts.append(f"validation {meter.val_bpb:.4f} bits per byte")
    if meter.core_metric is not None:
        parts.append(f"CORE {meter.core_metric:.4f}")
    if memory is not None:
        parts.append(f"peak memory {memory / 2**30:.2f} GiB")
    progress.say(", ".join(parts))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
