"""The place that a run writes to: whether it may, what is cleared, and when it is complete."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanochat_chunker.errors import UsageError
from nanochat_chunker.settings import Settings
from nanochat_chunker.writers import Row, write_json, write_jsonl, write_parquet, write_text

COMPLETE = "_COMPLETE"
MANIFEST = "manifest.json"
VALIDATION = "val_shard.parquet"
# There while a run is on; left behind by a killed run, it tells the next that the folder is ours.
LOCK = ".nanochat-chunker.lock"
PROGRAM = "nanochat-chunker"
_OURS = re.compile(rf"shard_\d{{5,}}\.parquet|{VALIDATION}|{MANIFEST}|{COMPLETE}|\..+\.tmp")

# Gives the documents whose places in the shuffled order lie in [start, stop).
Rows = Callable[[int, int], Iterator[Row]]


class Output:
    """A folder of shards or a JSONL file."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.path = settings.output
        self.manifest = (
            self.path.with_suffix(".manifest.json") if settings.jsonl else self.path / MANIFEST
        )
        self._validation = self.path.with_suffix(".val.jsonl")

    def check(self) -> None:
        """Raises `UsageError` where the run may not write. Changes nothing."""
        path, overwrite = self.path, self._settings.overwrite
        if "://" in str(path) or re.match(r"[a-z0-9]+:/", str(path)):
            raise UsageError(
                f"--output {path} is not a local path", "Give a local path and copy it"
            )
        if self._settings.jsonl:
            if path.is_dir():
                raise UsageError(f"--output {path} is a folder", "Give another name")
            if path.exists() and not overwrite:
                raise UsageError(f"{path} exists", "Give another --output, or --overwrite")
            return
        if path.exists() and not path.is_dir():
            raise UsageError(
                f"--output {path} is a file", "Give a folder, or a name that ends in .jsonl"
            )
        if not path.is_dir():
            return
        if (path / COMPLETE).exists() and not overwrite:
            raise UsageError(f"{path} is complete", "Give another --output, or --overwrite")
        names = sorted(entry.name for entry in path.iterdir())
        if names and not (path / LOCK).exists() and not self._has_our_manifest():
            raise UsageError(
                f"{path} holds files that are not from nanochat-chunker, {names[0]} for one",
                "Give another --output",
            )

    def _has_our_manifest(self) -> bool:
        try:
            program = json.loads(self.manifest.read_text(encoding="utf-8"))["program"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return bool(program == PROGRAM)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder for what lies between reading and writing, gone when the block ends.

        Holds the lock: two runs to one output end in a `UsageError` for the second.
        """
        folder = self.path.parent if self._settings.jsonl else self.path
        created = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        name = f".{self.path.name}.lock" if self._settings.jsonl else LOCK
        prefix = f".{self.path.name}.work-" if self._settings.jsonl else ".work-"
        lock = folder / name
        try:
            with _locked(lock, self.path):
                for left in folder.glob(f"{prefix}*"):  # by a run that was killed
                    shutil.rmtree(left)
                work = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
                try:
                    yield work
                finally:
                    shutil.rmtree(work, ignore_errors=True)
                    if self._settings.jsonl or self._may_forget():
                        lock.unlink(missing_ok=True)
        finally:
            if created and not any(folder.iterdir()):
                folder.rmdir()

    def _may_forget(self) -> bool:
        """Whether the lock file is not needed to know the folder as ours."""
        return (self.path / COMPLETE).exists() or not any(
            _OURS.fullmatch(entry.name) for entry in self.path.iterdir()
        )

    def _clear(self) -> None:
        """Removes what an earlier run wrote, the mark of completeness first."""
        (self.path / COMPLETE).unlink(missing_ok=True)
        for entry in sorted(self.path.iterdir()):
            if _OURS.fullmatch(entry.name):
                entry.unlink()

    def write(self, rows: Rows, train: int, validation: int, manifest: dict[str, Any]) -> None:
        """Writes the documents held out, the others, the manifest, then what completes it."""
        total = validation + train
        if self._settings.jsonl:
            self.path.unlink(missing_ok=True)
            self._validation.unlink(missing_ok=True)
            if validation:
                write_jsonl(self._validation, rows(0, validation))
            write_json(self.manifest, manifest)
            write_jsonl(self.path, rows(validation, total))
            return
        self._clear()
        level, size = self._settings.zstd_level, self._settings.documents_per_shard
        if validation:
            write_parquet(self.path / VALIDATION, rows(0, validation), level)
        for number, start in enumerate(range(validation, total, size)):
            stop = min(start + size, total)
            write_parquet(self.path / f"shard_{number:05d}.parquet", rows(start, stop), level)
        write_json(self.manifest, manifest)
        write_text(self.path / COMPLETE, "")


@contextmanager
def _locked(lock: Path, output: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # Windows: there two runs to one output are the user's care
        lock.touch()
        yield
        return
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another run is writing {output}", "Wait for it, or give another --output"
            ) from None
        yield
    finally:
        os.close(handle)
