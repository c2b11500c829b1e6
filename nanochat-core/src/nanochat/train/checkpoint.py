"""Checkpoints: folders `step_000100` of model.safetensors, optimizer.safetensors and meta.json.

A checkpoint appears whole or not at all. It is written into a temporary folder beside its place,
flushed to the disk and renamed; a process killed at any moment leaves the old or the new one. Only
`save` and `load` need torch; finding checkpoints and reading meta.json do not.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.errors import NanochatError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MODEL, OPTIMIZER, META = "model.safetensors", "optimizer.safetensors", "meta.json"
_NAME = re.compile(r"step_(\d{6,})")
_WRITING, _REPLACED, _DELETING = ".writing-", ".replaced-", ".deleting-"


@dataclass(frozen=True)
class Checkpoint:
    """What `load` returns: state dictionaries, and everything else as meta.json has it."""

    model: dict[str, Tensor]
    optimizer: Any
    meta: dict[str, Any]


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return folder / f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """The step whose checkpoint a folder of that name is; None for other names."""
    found = _NAME.fullmatch(name)
    return int(found.group(1)) if found else None


def steps(folder: Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, in order."""
    if not folder.is_dir():
        return []
    found = ((step_of(p.name), p) for p in folder.iterdir())
    return sorted(step for step, p in found if step is not None and (p / META).is_file())


def latest(folder: Path) -> int | None:
    """The newest whole checkpoint, or None."""
    return max(steps(folder), default=None)


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """meta.json of a checkpoint. Raises NanochatError if it cannot be used."""
    path = checkpoint / META
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{checkpoint} is not a checkpoint: it has no {META}") from error
    except (OSError, ValueError) as error:
        raise NanochatError(
            f"{path} is damaged: {error}", "Delete this checkpoint and resume from another"
        ) from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise NanochatError(
            f"{path} is of another format than this version reads ({FORMAT})",
            "Use the version of nanochat that wrote it",
        )
    return meta


def save(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any] | None,
    meta: Mapping[str, Any],
    *,
    keep: int = 0,
    written: Callable[[int, Path], None] | None = None,
) -> Path:
    """Write the checkpoint of a step and return its folder; then delete all but `keep` (0: none).

    `written(step, folder)` is called where the files lie once they are written, before they are
    flushed to the disk, which may take longer than a machine lasts after its notice; they are moved
    then. Raises NanochatError on a full disk; what was there before stays as it was.
    """
    from nanochat.train.tensors import pack

    folder.mkdir(parents=True, exist_ok=True)
    recover(folder)
    tensors: dict[str, Tensor] = {}
    plain = pack(optimizer, tensors) if optimizer is not None else None
    place = step_folder(folder, step)
    writing = folder / f"{_WRITING}{place.name}"
    try:
        _require_space(folder, [*model.values(), *tensors.values()])
        _write(writing, model, tensors, {**meta, "format": FORMAT, "optimizer": plain})
        if written is not None:
            written(step, writing)
        _flush(writing)
        put(writing, place)
    except OSError as error:
        shutil.rmtree(writing, ignore_errors=True)
        raise _not_written(folder, place, error) from error
    if keep:
        for old in steps(folder)[:-keep]:
            if old != step:
                _delete(step_folder(folder, old))
    return place


def _write(
    writing: Path, model: Mapping[str, Tensor], optimizer: dict[str, Tensor], meta: dict[str, Any]
) -> None:
    from nanochat.train.tensors import write_tensors

    writing.mkdir()
    write_tensors(writing / MODEL, model)
    if meta["optimizer"] is not None:
        write_tensors(writing / OPTIMIZER, optimizer)
    # Non-standard NaN and Infinity in JSON are read back by Python alone: fine for our own file.
    with open(writing / META, "w", encoding="utf-8") as file:
        json.dump(meta, file, indent=1)
        file.write("\n")


def _flush(writing: Path) -> None:
    from nanochat.train.tensors import flush

    for path in sorted(writing.iterdir()):
        flush(path)
    sync_folder(writing)


def begin(place: Path) -> Path:
    """An empty folder beside a checkpoint's place, from where `put` moves it there."""
    writing = place.with_name(f"{_WRITING}{place.name}")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    return writing


def put(writing: Path, place: Path) -> None:
    """Move a finished checkpoint to its place. No system replaces a full folder in one step, so
    one that is there moves aside first, from where `recover` fetches it if this is cut short."""
    replaced = place.with_name(f"{_REPLACED}{place.name}")
    if place.exists():
        os.rename(place, replaced)
    os.rename(writing, place)
    sync_folder(place.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _delete(place: Path) -> None:
    """Delete a checkpoint so that half of one is never taken for a whole one."""
    deleting = place.with_name(f"{_DELETING}{place.name}")
    os.rename(place, deleting)
    shutil.rmtree(deleting, ignore_errors=True)


def recover(folder: Path) -> None:
    """Tidy up after a writer that died. Call it only where nobody else writes."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(_REPLACED):
            place = folder / path.name.removeprefix(_REPLACED)
            if place.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.rename(path, place)
        elif path.name.startswith((_WRITING, _DELETING)):
            shutil.rmtree(path, ignore_errors=True)


def load(checkpoint: Path, device: Any = "cpu", *, optimizer: bool = True) -> Checkpoint:
    """Read a checkpoint, its model's tensors onto `device` and its optimiser's onto the host.

    Raises NanochatError, naming the file, if one is missing or damaged.
    """
    from nanochat.train.tensors import read_tensors, unpack

    meta = read_meta(checkpoint)
    model = read_tensors(checkpoint / MODEL, device)
    plain = meta.pop("optimizer", None)
    state = None
    if optimizer and plain is not None:
        tensors = read_tensors(checkpoint / OPTIMIZER)
        try:
            state = unpack(plain, tensors)
        except KeyError as error:
            raise NanochatError(
                f"{checkpoint / OPTIMIZER} lacks {error}", "Resume from another checkpoint"
            ) from error
    return Checkpoint(model=model, optimizer=state, meta=meta)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _require_space(folder: Path, tensors: list[Tensor]) -> None:
    """Refuse before writing what cannot fit, so that a disk is not filled for nothing."""
    needed = sum(t.numel() * t.element_size() for t in tensors)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed / 2**20:.0f} MiB needed, {free / 2**20:.0f} MiB free")


def _not_written(folder: Path, place: Path, error: OSError) -> NanochatError:
    left = latest(folder)
    kept = f"; {step_folder(folder, left)} is whole" if left is not None else ""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    why = f"the disk is full ({error.strerror})" if full else str(error)
    resume = f"continue with --resume --output {folder.parent}" if left is not None else "run again"
    return NanochatError(
        f"the checkpoint {place} could not be written: {why}{kept}",
        f"Free some space, then {resume}" if full else f"Mend it, then {resume}",
    )
