"""Where an output lies: a local folder or an fsspec address, and files that appear there whole."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from nanochat_chunker.errors import UsageError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:::|://)")
# Where a file appears when its upload ends, and not before.
_WHOLE_UPLOADS = frozenset(
    ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory", "oss")
)


class Store(Protocol):
    """A folder. `name` is that of a file directly in it."""

    def exists(self, name: str = "") -> bool: ...

    def is_folder(self, name: str = "") -> bool: ...

    def names(self) -> list[str]: ...

    def size(self, name: str) -> int | None: ...

    def read_text(self, name: str) -> str: ...

    def remove(self, name: str) -> None: ...

    def write(self, name: str, fill: Callable[[Path], None]) -> None:
        """`fill` writes a local file, which then appears under `name` at once."""
        ...


def is_address(output: str) -> bool:
    return _ADDRESS.match(output) is not None


def store_for(folder: str, scratch: Path) -> Store:
    """The store at a local folder or an address; `scratch` is where uploads are prepared."""
    return RemoteStore(folder, scratch) if is_address(folder) else LocalStore(Path(folder))


def open_address(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address or a local path, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"cannot open {address}: {error}",
            "Check the address, and install the package for its kind (s3fs, gcsfs ...)",
        ) from None
    return system, path


def write_text(store: Store, name: str, text: str) -> None:
    """Writes a small file."""
    store.write(name, lambda path: _fill(path, text))


def _fill(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


class LocalStore:
    """A folder of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def exists(self, name: str = "") -> bool:
        return (self.folder / name).exists()

    def is_folder(self, name: str = "") -> bool:
        return (self.folder / name).is_dir()

    def names(self) -> list[str]:
        return sorted(entry.name for entry in self.folder.iterdir())

    def size(self, name: str) -> int | None:
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def read_text(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)

    def write(self, name: str, fill: Callable[[Path], None]) -> None:
        with _atomic(self.folder / name) as temporary:
            fill(temporary)


class RemoteStore:
    """A folder behind an fsspec address, such as s3://bucket/folder."""

    def __init__(self, address: str, scratch: Path) -> None:
        self._system, self._folder = open_address(address)
        self._scratch = scratch
        protocol = self._system.protocol
        kinds = {protocol} if isinstance(protocol, str) else set(protocol)
        self._whole_uploads = bool(kinds & _WHOLE_UPLOADS)

    def _path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}" if name else self._folder

    def exists(self, name: str = "") -> bool:
        return bool(self._system.exists(self._path(name)))

    def is_folder(self, name: str = "") -> bool:
        return bool(self._system.isdir(self._path(name)))

    def names(self) -> list[str]:
        entries: list[Any] = self._system.ls(self._folder, detail=False)
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    def size(self, name: str) -> int | None:
        self._system.invalidate_cache()
        return int(self._system.size(self._path(name))) if self.exists(name) else None

    def read_text(self, name: str) -> str:
        return bytes(self._system.cat_file(self._path(name))).decode()

    def remove(self, name: str) -> None:
        if self.exists(name):
            self._system.rm_file(self._path(name))

    def write(self, name: str, fill: Callable[[Path], None]) -> None:
        local = self._scratch / f"upload-{name}"
        try:
            fill(local)
            self._system.makedirs(self._folder, exist_ok=True)
            if self._whole_uploads:
                self._system.put_file(str(local), self._path(name))
            else:
                self._system.put_file(str(local), self._path(f".{name}.tmp"))
                self._system.mv(self._path(f".{name}.tmp"), self._path(name))
        finally:
            local.unlink(missing_ok=True)


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path` that takes its place, durably, when the block ends."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
