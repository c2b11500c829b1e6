"""The place that a run writes to: whether it may, what is cleared, and when it is complete."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanochat_chunker.errors import UsageError
from nanochat_chunker.settings import Settings
from nanochat_chunker.storage import Store, is_address, store_for, write_text

COMPLETE = "_COMPLETE"
MANIFEST = "manifest.json"
VALIDATION = "val_shard.parquet"
# There while a run is on; left behind by a killed run, it tells the next that the folder is ours.
LOCK = ".nanochat-chunker.lock"
PROGRAM = "nanochat-chunker"
_OURS = re.compile(rf"shard_\d{{5,}}\.parquet|{VALIDATION}|{MANIFEST}|{COMPLETE}|\..+\.tmp")


def split_output(output: str) -> tuple[str, str]:
    """The folder (or address) of an output and the name of its JSONL file, '' for shards."""
    if not output.endswith(".jsonl"):
        return output, ""
    if not is_address(output):
        return str(Path(output).parent), Path(output).name
    folder, _, name = output.rpartition("/")
    return folder, name


def manifest_name(jsonl: str) -> str:
    return f"{jsonl.removesuffix('.jsonl')}.manifest.json" if jsonl else MANIFEST


class Output:
    """A folder of shards or a JSONL file, on this machine or at an address."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.name = settings.output
        self._folder, self.jsonl = split_output(settings.output)
        self._remote = is_address(settings.output)
        self._manifest = manifest_name(self.jsonl)
        self.validation = (
            f"{self.jsonl.removesuffix('.jsonl')}.val.jsonl" if self.jsonl else VALIDATION
        )
        self._work = self._work_folder()
        self.store: Store = store_for(self._folder, self._work)

    def _work_folder(self) -> Path:
        """The same for the same output: that is how a run finds what another left."""
        if self._settings.work_dir is not None or self._remote:
            name = hashlib.blake2b(self.name.encode(), digest_size=8).hexdigest()
            above = self._settings.work_dir or Path(tempfile.gettempdir())
            return above / f"{PROGRAM}-{name}"
        return Path(self._folder) / (f".{self.jsonl}.work" if self.jsonl else ".work")

    def check(self) -> None:
        """Raises `UsageError` where the run may not write. Changes nothing."""
        store, overwrite = self.store, self._settings.overwrite
        if self.jsonl:
            if store.is_folder(self.jsonl):
                raise UsageError(f"--output {self.name} is a folder", "Give another name")
            if store.exists(self.jsonl) and not overwrite:
                raise UsageError(f"{self.name} exists", "Give another --output, or --overwrite")
            return
        if not store.exists():
            return
        if not store.is_folder():
            raise UsageError(
                f"--output {self.name} is a file", "Give a folder, or a name that ends in .jsonl"
            )
        if store.exists(COMPLETE) and not overwrite:
            raise UsageError(f"{self.name} is complete", "Give another --output, or --overwrite")
        names = store.names()
        ours = store.exists(LOCK) or self._work.exists() or self._has_our_manifest()
        if names and not ours:
            raise UsageError(
                f"{self.name} holds files that are not from {PROGRAM}, {names[0]} for one",
                "Give another --output",
            )

    def _has_our_manifest(self) -> bool:
        try:
            program = json.loads(self.store.read_text(self._manifest))["program"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return bool(program == PROGRAM)

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder for what lies between reading and writing.

        Gone when the block ends well or with a `UsageError`; kept otherwise, for the same command
        to go on from. Holds the lock: two runs to one output end in a `UsageError` for the second.
        """
        folder = self._work.parent if self._remote or self.jsonl else Path(self._folder)
        created = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        beside = self._remote or self.jsonl
        lock = folder / (f".{self._work.name.strip('.')}.lock" if beside else LOCK)
        try:
            with _locked(lock, self.name):
                self._work.mkdir(parents=True, exist_ok=True)
                keep = True
                try:
                    yield self._work
                    keep = False
                except UsageError:
                    keep = False
                    raise
                finally:
                    if not keep:
                        shutil.rmtree(self._work, ignore_errors=True)
                        if lock.name != LOCK or self._may_forget():
                            lock.unlink(missing_ok=True)
        finally:
            if created and not any(folder.iterdir()):
                folder.rmdir()

    def _may_forget(self) -> bool:
        """Whether the lock file is not needed to know the folder as ours."""
        return self.store.exists(COMPLETE) or not any(
            _OURS.fullmatch(name) for name in self.store.names()
        )

    def clear(self) -> None:
        """Removes what an earlier run wrote, the mark of completeness first."""
        if self.jsonl:
            self.store.remove(self.jsonl)
            self.store.remove(self.validation)
            return
        if not self.store.exists():
            return
        self.store.remove(COMPLETE)
        for name in self.store.names():
            if _OURS.fullmatch(name):
                self.store.remove(name)

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        write_text(
            self.store, self._manifest, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        )

    def complete(self) -> None:
        """Marks a folder of shards as complete."""
        if not self.jsonl:
            write_text(self.store, COMPLETE, "")


def read_manifest(output: str) -> dict[str, Any]:
    """The manifest of an output. Raises `UsageError` where there is none."""
    folder, jsonl = split_output(output)
    store = store_for(folder, Path(tempfile.gettempdir()))
    try:
        manifest = json.loads(store.read_text(manifest_name(jsonl)))
        if manifest["program"] == PROGRAM:
            return dict(manifest)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise UsageError(
        f"{output} has no {manifest_name(jsonl)} of {PROGRAM}",
        "Give an output that a run has completed",
    )


@contextmanager
def _locked(lock: Path, output: str) -> Iterator[None]:
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
