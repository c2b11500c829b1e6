"""The run folder: where it is, who may write to it, and the checkpoint that a run continues."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nanochat.errors import UsageError
from nanochat.train import checkpoint
from nanochat.train.config import NO_RUN_NAME, TrainConfig
from nanochat.train.record import LOG

CHECKPOINTS = "checkpoints"
RUNS = "runs"


@dataclass(frozen=True)
class Resume:
    """A run to continue: its folder, and the checkpoint, None if it never wrote one."""

    folder: Path
    checkpoint: Path | None
    meta: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the run that is continued, as far as they are carried over."""
        carried = {f.name for f in fields(TrainConfig)} - {"resume", "output", "verbose"}
        return {k: v for k, v in self.meta.get("settings", {}).items() if k in carried}


def default_folder(run: str, depth: int) -> Path:
    """runs/NAME, and runs/d20 for a run without a name."""
    return Path(RUNS) / (f"d{depth}" if run in (NO_RUN_NAME, "") else run)


def new_folder(output: str, run: str, depth: int) -> Path:
    """A folder for a new run. Raises UsageError if the one asked for holds a run already.

    Where none was asked for, runs/NAME-2 and so on keep what is in runs/NAME.
    """
    if output:
        folder = Path(output)
        if holds_run(folder):
            raise UsageError(
                f"{folder} already holds a run",
                "Continue it with --resume, or give another --output",
            )
        return folder
    base = default_folder(run, depth)
    return next(folder for folder in _numbered(base) if not holds_run(folder))


def holds_run(folder: Path) -> bool:
    """True if a run has recorded or saved something there. Raises UsageError if it is a file."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"the run folder {folder} is a file", "Give another --output")
    log = folder / LOG
    recorded = log.is_file() and log.stat().st_size > 0
    return recorded or bool(checkpoint.steps(folder / CHECKPOINTS))


def find_resume(asked: str, output: str, run: str, depth: int) -> Resume:
    """The run and checkpoint that `--resume asked` means: auto, a step, or a folder.

    `auto` takes the newest checkpoint, and starts anew where there is none. Raises UsageError if a
    step or a folder that was asked for is not there.
    """
    if asked == "auto" or re.fullmatch(r"\d+", asked):
        folder = Path(output) if output else _newest(default_folder(run, depth))
        checkpoints = folder / CHECKPOINTS
        if checkpoints.is_dir() and os.environ.get("RANK", "0") == "0":
            with claimed(folder):
                checkpoint.recover(checkpoints)
        step = checkpoint.latest(checkpoints) if asked == "auto" else int(asked)
        if step is None:
            return Resume(folder, None, {})
        place = checkpoint.step_folder(checkpoints, step)
        if not place.is_dir():
            known = ", ".join(str(s) for s in checkpoint.steps(checkpoints)) or "none"
            raise UsageError(f"{checkpoints} has no checkpoint of step {step}", f"It has: {known}")
    else:
        place = Path(asked)
        if not place.is_dir():
            raise UsageError(f"--resume {asked}: there is no such folder")
        if not (place / checkpoint.META).exists():
            checkpoints = place / CHECKPOINTS if (place / CHECKPOINTS).is_dir() else place
            step = checkpoint.latest(checkpoints)
            if step is None:
                raise UsageError(f"--resume {asked}: there is no checkpoint in it")
            place = checkpoint.step_folder(checkpoints, step)
        if not output and place.parent.name != CHECKPOINTS:
            raise UsageError(f"{place} is in no run folder", "Give --output as well")
        folder = Path(output) if output else place.parent.parent
    meta = checkpoint.read_meta(place)
    _check_free(folder, place, int(meta["step"]))
    return Resume(folder, place, meta)


def _check_free(folder: Path, place: Path, step: int) -> None:
    """Raise UsageError if going on in a folder would mix two runs, or lose one."""
    checkpoints = folder / CHECKPOINTS
    if not checkpoints.is_dir() or not place.parent.samefile(checkpoints):
        if holds_run(folder):
            raise UsageError(
                f"{folder} already holds another run than {place}", "Give another --output"
            )
    elif step < max(checkpoint.steps(checkpoints)):
        raise UsageError(
            f"{checkpoints} has newer checkpoints than step {step}, which going on would mix up",
            f"Branch off with --resume {place} --output NEW, or delete the newer ones",
        )


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder and keep other processes from writing a run into it meanwhile."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"the run folder {folder} cannot be written to: {error.strerror}",
            "Give another --output",
        ) from error
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"another process is training into {folder}",
                "Wait for it, or give another --output",
            ) from error
        except OSError:
            pass  # a file system without locks: nothing can be promised there
        yield
    finally:
        os.close(descriptor)


def _numbered(base: Path) -> Iterator[Path]:
    yield base
    number = 2
    while True:
        yield base.with_name(f"{base.name}-{number}")
        number += 1


def _newest(base: Path) -> Path:
    """The last of runs/NAME, runs/NAME-2 ... that holds a run; runs/NAME if none does."""
    newest = base
    for folder in _numbered(base):
        if not holds_run(folder):
            return newest
        newest = folder
    raise AssertionError("unreachable")
