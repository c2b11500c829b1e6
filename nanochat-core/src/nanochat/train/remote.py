"""The checkpoints of a run at an fsspec address: complete, or not there.

    ADDRESS/RUN/checkpoints/step_000100/{model,optimizer}.safetensors, meta.json, manifest.json
    ADDRESS/RUN/log.jsonl

manifest.json is written last and holds the size and the SHA-256 of every other file: where it is
missing an upload was cut short, and the step does not count. The layout is that of a run folder, so
that one copied back by other means can be resumed as well.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nanochat.errors import NanochatError
from nanochat.train import checkpoint
from nanochat.train.bucket import has_folders, open_address, reason, unusable
from nanochat.train.record import LOG
from nanochat.train.transfer import Opened, Transfer, digest_of, send, side_by_side

CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"
FORMAT = 1
STREAMS = 8
PART = 64 * 2**20
"""Files are sent in parts at least that large where the store can put them together again."""


class NotWhole(Exception):
    """A step at an address that must not be taken: cut short, damaged or of another format."""


@dataclass(frozen=True)
class Manifest:
    """The files of a complete checkpoint: name -> (bytes, SHA-256)."""

    step: int
    files: Mapping[str, tuple[int, str]]

    @property
    def size(self) -> int:
        return sum(size for size, _ in self.files.values())

    def encode(self) -> bytes:
        files = {name: {"size": s, "sha256": d} for name, (s, d) in self.files.items()}
        plain = {"format": FORMAT, "step": self.step, "files": files, "time": time.time()}
        return json.dumps(plain, indent=1).encode()

    @classmethod
    def decode(cls, encoded: bytes) -> Manifest:
        """Raises NotWhole if it is damaged, cut short or of another format."""
        try:
            plain = json.loads(encoded)
            if plain["format"] != FORMAT:
                raise NotWhole(f"its {MANIFEST} is of another format than {FORMAT}")
            files = {n: (int(f["size"]), str(f["sha256"])) for n, f in plain["files"].items()}
            return cls(int(plain["step"]), files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotWhole(f"its {MANIFEST} is damaged") from error


class RemoteRun:
    """One run at an address. Opening it raises UsageError if nothing can read such addresses."""

    def __init__(self, bucket: str, run: str) -> None:
        self.address = f"{bucket}/{run}"
        self._fs: Any  # what it can do depends on the store
        self._fs, self._path = open_address(self.address)

    @classmethod
    def of(cls, bucket: str, folder: Path) -> RemoteRun:
        """Where a bucket keeps the run of a local folder: under the same name."""
        return cls(bucket, folder.resolve().name)

    def address_of(self, step: int) -> str:
        return f"{self.address}/{CHECKPOINTS}/{checkpoint.step_folder(Path(), step).name}"

    def _folder_of(self, step: int) -> str:
        return f"{self._path}/{CHECKPOINTS}/{checkpoint.step_folder(Path(), step).name}"

    @staticmethod
    def open(step: int, folder: Path) -> Opened:
        """What `upload` sends of a local checkpoint. Close it after that."""
        return Opened(step, folder, without=MANIFEST)

    def probe(self) -> None:
        """Write, list, read and delete a few bytes. Raises UsageError with what would mend it."""
        path = f"{self._path}/.probe-{uuid.uuid4().hex}"
        try:
            self._write(path, b"probe")
            self._fs.invalidate_cache()
            listed = self._fs.find(self._path)
            if self._fs.cat_file(path) != b"probe" or path not in listed:
                raise OSError("what was written was not found again")
            self._fs.rm_file(path)
        except Exception as error:
            raise unusable(self.address, "written to", error) from error

    def steps(self) -> list[int]:
        """The steps whose upload was finished, in order. Raises UsageError if it cannot tell."""
        return sorted(step for step, files in self._listing().items() if MANIFEST in files)

    def manifest(self, step: int) -> Manifest:
        """What a step consists of. Raises NotWhole if it is not whole."""
        files = self._listing().get(step, {})
        if MANIFEST not in files:
            raise NotWhole("its upload was cut short")
        manifest = Manifest.decode(self._fs.cat_file(f"{self._folder_of(step)}/{MANIFEST}"))
        for name, (size, _) in manifest.files.items():
            if files.get(name) != size:
                raise NotWhole(f"its {name} has {files.get(name, 'no')} bytes instead of {size}")
        return manifest

    def upload(self, opened: Opened, transfer: Transfer) -> None:
        """Send a whole local checkpoint. Cut short at any moment, it does not count there.

        Raises Cancelled, and what the file system raises.
        """
        step, sources = opened.step, opened.sources
        folder = self._folder_of(step)
        transfer.total = opened.size
        if self._fs.exists(f"{folder}/{MANIFEST}"):
            self._fs.rm_file(f"{folder}/{MANIFEST}")
        if has_folders(self._fs):
            self._fs.makedirs(folder, exist_ok=True)
        digests: dict[str, str] = {}
        jobs: list[Callable[[], None]] = [
            lambda s=source: digests.update({s.name: s.digest(transfer)}) for source in sources
        ]
        parts: dict[str, list[str]] = {}
        for source in sources:
            target = f"{folder}/{source.name}"
            ranges = self._ranges(source.size)
            names = [target] if len(ranges) == 1 else [f"{target}.part{start}" for start in ranges]
            if len(names) > 1:
                parts[target] = names
            for name, (start, size) in zip(names, ranges.items(), strict=True):
                jobs.append(partial(send, self._fs, source, name, transfer, start, size))
        side_by_side(jobs, STREAMS)
        for target, names in parts.items():
            self._fs.merge(target, names)
        sizes = self._listing().get(step, {})
        for source in sources:
            if sizes.get(source.name) != source.size:
                raise OSError(
                    f"{source.name} arrived with {sizes.get(source.name, 'no')} bytes instead of "
                    f"{source.size}"
                )
        transfer.check()
        manifest = Manifest(step, {s.name: (s.size, digests[s.name]) for s in sources})
        self._write(f"{folder}/{MANIFEST}", manifest.encode())
        for name in (name for names in parts.values() for name in names):
            self._fs.rm_file(name)

    def _ranges(self, size: int) -> dict[int, int]:
        """start -> bytes of the parts in which a file is sent, one where parts cannot be joined."""
        count = min(STREAMS, size // PART) if hasattr(self._fs, "merge") else 1
        if count < 2:
            return {0: size}
        length = -(-size // count)
        return {start: min(length, size - start) for start in range(0, size, length)}

    def download(self, step: int, checkpoints: Path) -> Path:
        """Bring a step into a local folder, where it appears whole or not at all.

        Raises NotWhole if it is not whole, and NanochatError if the disk is full.
        """
        manifest = self.manifest(step)
        place = checkpoint.step_folder(checkpoints, step)
        writing = checkpoint.begin(place)
        free = shutil.disk_usage(checkpoints).free
        if free < manifest.size:
            raise NanochatError(
                f"{self.address_of(step)} needs {manifest.size / 2**20:.0f} MiB, and {checkpoints} "
                f"has {free / 2**20:.0f} MiB left",
                "Free some space, then run the command again",
            )
        try:
            side_by_side(
                [
                    partial(self._fetch, f"{self._folder_of(step)}/{name}", writing / name, *facts)
                    for name, facts in manifest.files.items()
                ],
                STREAMS,
            )
            checkpoint.put(writing, place)
        finally:
            shutil.rmtree(writing, ignore_errors=True)
        return place

    def _fetch(self, path: str, target: Path, size: int, digest: str) -> None:
        self._fs.get_file(path, str(target))
        if target.stat().st_size != size or digest_of(target) != digest:
            raise NotWhole(f"its {target.name} is not what was sent")

    def put_log(self, log: Path) -> None:
        """Send the records of the run, which resuming does not need but a loss curve does."""
        if log.exists():
            self._write(f"{self._path}/{LOG}", log.read_bytes())

    def get_log(self, log: Path) -> None:
        """Bring the records here, if there are any."""
        path = f"{self._path}/{LOG}"
        if self._fs.exists(path):
            temporary = log.with_name(f".{log.name}.tmp")
            self._fs.get_file(path, str(temporary))
            temporary.replace(log)

    def tidy(self, step: int, keep: int) -> None:
        """After `step` is complete: delete what was cut short before it, and all but `keep` of the
        complete ones (0: none of them)."""
        listing = self._listing()
        complete = sorted(s for s, files in listing.items() if MANIFEST in files)
        for old in sorted(listing):
            spent = keep and old in complete[:-keep]
            if old < step and (old not in complete or spent):
                self._delete(old, listing[old])
            elif old < step:  # parts whose deletion was cut short
                for name in (name for name in listing[old] if ".part" in name):
                    self._fs.rm_file(f"{self._folder_of(old)}/{name}")

    def _delete(self, step: int, files: Mapping[str, int]) -> None:
        """The manifest first, so that half a step is never taken for a whole one."""
        for name in sorted(files, key=lambda name: name != MANIFEST):
            self._fs.rm_file(f"{self._folder_of(step)}/{name}")
        if has_folders(self._fs):
            self._fs.rmdir(self._folder_of(step))

    def _write(self, path: str, data: bytes) -> None:
        if has_folders(self._fs):
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(path, data)

    def _listing(self) -> dict[int, dict[str, int]]:
        """step -> the names and sizes of its files. Raises UsageError if the store does not say."""
        root = f"{self._path}/{CHECKPOINTS}"
        try:
            self._fs.invalidate_cache()
            found = self._fs.find(root, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise unusable(self.address, "listed", error) from error
        listing: dict[int, dict[str, int]] = {}
        for path, about in found.items():
            folder, _, name = path.rpartition("/")
            step = checkpoint.step_of(folder.rpartition("/")[2])
            if step is not None and folder.rpartition("/")[0].endswith(f"/{CHECKPOINTS}"):
                listing.setdefault(step, {})[name] = int(about["size"])
        return listing


def fetch(
    remote: RemoteRun, step: int, folder: Path, say: Callable[[str], None], *, tries: int = 4
) -> Path:
    """Bring a step and the run's records into a local run folder, trying again where that helps.

    Raises NotWhole if what is there is not whole, NanochatError if it cannot be brought.
    """
    began = time.monotonic()
    attempt = 0
    while True:
        try:
            place = remote.download(step, folder / CHECKPOINTS)
            remote.get_log(folder / LOG)
            break
        except (NanochatError, NotWhole):
            raise
        except Exception as error:
            attempt += 1
            told = f"{remote.address_of(step)} could not be downloaded: {reason(error)}"
            if attempt == tries:
                raise NanochatError(told, "Run the command again once it can") from error
            say(f"{told}; trying again in {2**attempt}s")
            time.sleep(2**attempt)
    seconds = time.monotonic() - began
    size = sum(p.stat().st_size for p in place.iterdir())
    say(f"downloaded {remote.address_of(step)} to {place}: {amount(size, seconds)}")
    return place


def amount(size: int, seconds: float) -> str:
    """12.3 MiB in 4.5s (2.7 MiB/s)."""
    mib = size / 2**20
    return f"{mib:,.1f} MiB in {seconds:.1f}s ({mib / max(seconds, 1e-9):,.0f} MiB/s)"
