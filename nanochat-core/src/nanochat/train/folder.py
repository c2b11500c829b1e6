"""The run folder: where it is, who may write to it, and the checkpoint that a run continues."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nanochat.errors import UsageError
from nanochat.train import checkpoint
from nanochat.train.config import NO_RUN_NAME, TrainConfig
from nanochat.train.record import LOG
from nanochat.train.remote import CHECKPOINTS, NotWhole, RemoteRun, fetch

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
        carried = {f.name for f in fields(TrainConfig)} - {
            "resume",
            "output",
            "verbose",
            "checkpoint_bucket",
        }
        return {k: v for k, v in self.meta.get("settings", {}).items() if k in carried}


def default_folder(run: str, depth: int) -> Path:
    """runs/NAME, and runs/d20 for a run without a name."""
    return Path(RUNS) / (f"d{depth}" if run in (NO_RUN_NAME, "") else run)


def new_folder(output: str, run: str, depth: int, bucket: str = "") -> Path:
    """A folder for a new run. Raises UsageError if the one asked for holds a run already, here or
    under its name in the bucket.

    Where none was asked for, runs/NAME-2 and so on keep what is in runs/NAME.
    """
    if output:
        folder = Path(output)
        if holds_run(folder) or _steps_in(bucket, folder):
            place = folder if holds_run(folder) else RemoteRun.of(bucket, folder).address
            raise UsageError(
                f"{place} already holds a run",
                "Continue it with --resume, or give another --output",
            )
        return folder
    base = default_folder(run, depth)
    return next(f for f in _numbered(base) if not (holds_run(f) or _steps_in(bucket, f)))


def _steps_in(bucket: str, folder: Path) -> list[int]:
    """The complete checkpoints that a bucket has of the run in a folder."""
    return RemoteRun.of(bucket, folder).steps() if bucket else []


def holds_run(folder: Path) -> bool:
    """True if a run has recorded or saved something there. Raises UsageError if it is a file."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"the run folder {folder} is a file", "Give another --output")
    log = folder / LOG
    recorded = log.is_file() and log.stat().st_size > 0
    return recorded or bool(checkpoint.steps(folder / CHECKPOINTS))


def find_resume(
    asked: str,
    output: str,
    run: str,
    depth: int,
    bucket: str = "",
    say: Callable[[str], None] = print,
) -> Resume:
    """The run and checkpoint that `--resume asked` means: auto, a step, a folder or an address.

    `auto` takes the newest checkpoint, in the folder or in the bucket, and starts anew where there
    is none; what is in the bucket is brought here first. Raises UsageError if a step, a folder or
    an address that was asked for is not there.
    """
    if asked == "auto" or re.fullmatch(r"\d+", asked):
        base = default_folder(run, depth)
        folder = Path(output) if output else _newest(base, bucket)
        remote = RemoteRun.of(bucket, folder) if bucket else None
        step = None if asked == "auto" else int(asked)
        if remote is not None and step is not None:
            _check_free_there(bucket, folder, step, remote.address_of(step))
        place = _find_here_or_there(folder, remote, step, say)
        if place is None:
            return Resume(folder, None, {})
    elif "://" in asked:
        above, name, step = _split_address(asked)
        folder = Path(output) if output else Path(RUNS) / name
        if step is not None:
            _check_free_there(bucket, folder, step, asked)
        place = _find_here_or_there(folder, RemoteRun(above, name), step, say)
        if place is None:
            raise UsageError(f"--resume {asked}: there is no complete checkpoint in it")
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
    step = int(meta["step"])
    _check_free(folder, place, step)
    if asked != "auto":  # which passes over what is newer there but not whole
        branch = place.parent.parent.absolute() != folder.absolute()
        _check_free_there(bucket, folder, -1 if branch else step, asked)
    return Resume(folder, place, meta)


def _find_here_or_there(
    folder: Path, remote: RemoteRun | None, step: int | None, say: Callable[[str], None]
) -> Path | None:
    """The checkpoint of a step (None: the newest whole one) in a run folder, brought there first
    where only the address has it. Raises UsageError if neither has the step."""
    checkpoints = folder / CHECKPOINTS
    with _in_turn(folder) if remote is not None else nullcontext():
        if checkpoints.is_dir() and os.environ.get("RANK", "0") == "0":
            with claimed(folder):
                checkpoint.recover(checkpoints)
        here = checkpoint.steps(checkpoints)
        there = remote.steps() if remote is not None else []
        if step is None:
            newest = max(here, default=-1)
            for newer in sorted((s for s in there if s > newest), reverse=True):
                assert remote is not None
                try:
                    return fetch(remote, newer, folder, say)
                except NotWhole as error:
                    say(f"{remote.address_of(newer)} is not taken: {error}")
            return checkpoint.step_folder(checkpoints, newest) if here else None
        if remote is not None and step in there and step not in here:
            try:
                return fetch(remote, step, folder, say)
            except NotWhole as error:
                raise UsageError(f"{remote.address_of(step)} cannot be taken: {error}") from error
    place = checkpoint.step_folder(checkpoints, step)
    if not place.is_dir():
        where = f"{checkpoints} has" if remote is None else f"{folder} and {remote.address} have"
        known = ", ".join(str(s) for s in sorted({*here, *there})) or "none"
        raise UsageError(
            f"{where} no checkpoint of step {step}",
            f"{'They have' if remote is not None else 'It has'}: {known}",
        )
    return place


def _split_address(address: str) -> tuple[str, str, int | None]:
    """The address above a run, the run's name, and the step, of .../RUN[/checkpoints[/step_N]]."""
    rest = address.rstrip("/")
    step = checkpoint.step_of(rest.rpartition("/")[2])
    if step is not None:
        rest = rest.rpartition("/")[0]
    above, _, name = rest.removesuffix(f"/{CHECKPOINTS}").rpartition("/")
    if not name or above.endswith(("/", ":")):
        raise UsageError(f"--resume {address} names no run", "Give SCHEME://BUCKET/RUN")
    return above, name, step


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


def _check_free_there(bucket: str, folder: Path, step: int, source: str) -> None:
    """As `_check_free`, for what a bucket has of the run in a folder; for a branch `step` is -1."""
    newest = max(_steps_in(bucket, folder), default=-1)
    if newest <= step:
        return
    address = RemoteRun.of(bucket, folder).address
    if step < 0:
        raise UsageError(
            f"{address} already holds another run than {source}", "Give another --output"
        )
    raise UsageError(
        f"{address} has a newer checkpoint (of step {newest}) than step {step}, which going on "
        "would mix up",
        f"Continue with --resume auto, or branch off with --resume {source} --output NEW",
    )


@contextmanager
def _in_turn(folder: Path) -> Iterator[None]:
    """Wait until no other process of this host is here: one of its ranks brings a checkpoint, and
    the others find it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    with open(folder / ".arriving", "w") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _newest(base: Path, bucket: str) -> Path:
    """The last of runs/NAME, runs/NAME-2 ... that holds a run, here or in the bucket; runs/NAME if
    none does."""
    newest = base
    for folder in _numbered(base):
        if not (holds_run(folder) or _steps_in(bucket, folder)):
            return newest
        newest = folder
    raise AssertionError("unreachable")
