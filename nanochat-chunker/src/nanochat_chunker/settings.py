"""What a run is asked to do."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat_chunker.errors import UsageError

# `.inc` is left out: as often as C++ it is PHP, assembler or Pascal.
DEFAULT_EXTENSIONS = tuple(
    (
        ".c .cc .cpp .cxx .c++ .h .hh .hpp .hxx .h++ .inl .ipp .tpp .tcc .txx .ixx .cppm .cu .cuh"
    ).split()
)
LAYOUTS = ("auto", "one", "many")


def available_cpus() -> int:
    """The number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of the chunker. Raises `UsageError` where a value makes no sense.

    `max_tokens` bounds every document; `max_file_bytes` is the size above which a file is dropped.
    `val_fraction` and `val_documents` are two ways to say how many documents are held out; with
    neither, a folder of shards holds out one document in a hundred and a JSONL file none.
    """

    project_dirs: tuple[Path, ...]
    output: Path
    max_tokens: int = 16384
    max_file_bytes: int = 500_000
    tokenizer: Path | None = None
    extensions: tuple[str, ...] = DEFAULT_EXTENSIONS
    layout: str = "auto"
    workers: int = field(default_factory=available_cpus)
    documents_per_shard: int = 50_000
    val_fraction: float | None = None
    val_documents: int | None = None
    seed: int = 42
    zstd_level: int = 3
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_file_bytes", "workers", "documents_per_shard"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} is {getattr(self, name)}", "Give a number of 1 or more")
        if self.max_tokens < 64:
            raise UsageError(
                f"--max-tokens is {self.max_tokens}, too few for a path and a line of code",
                "Give 64 or more",
            )
        if not 1 <= self.zstd_level <= 22:
            raise UsageError(f"--zstd-level is {self.zstd_level}", "Give a level from 1 to 22")
        if self.val_fraction is not None and self.val_documents is not None:
            raise UsageError("--val-fraction and --val-documents exclude each other", "Give one")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise UsageError(
                f"--val-fraction is {self.val_fraction}", "Give a share from 0 up to, not with, 1"
            )
        if self.val_documents is not None and self.val_documents < 0:
            raise UsageError(f"--val-documents is {self.val_documents}", "Give 0 or more")
        if self.layout not in LAYOUTS:
            raise UsageError(
                f"unknown --layout {self.layout!r}", f"Give one of {', '.join(LAYOUTS)}"
            )
        if not self.project_dirs:
            raise UsageError("no project folder given", "Name one or more with --project-dirs")
        if not self.extensions:
            raise UsageError(
                "no extension given", "Name one or more with --extensions, or leave it"
            )

    @property
    def jsonl(self) -> bool:
        """Whether the output is one JSONL file rather than a folder of shards."""
        return self.output.suffix == ".jsonl"

    def validation_count(self, documents: int) -> int:
        """How many of `documents` are held out; at least one always stays for training."""
        if self.val_documents is not None:
            if self.val_documents and self.val_documents >= documents:
                raise UsageError(
                    f"--val-documents {self.val_documents} leaves nothing to train on: "
                    f"there are {documents} documents",
                    f"Give less than {documents}",
                )
            return self.val_documents
        fraction = self.val_fraction
        if fraction is None:
            fraction = 0.0 if self.jsonl else 0.01
        if fraction == 0:
            return 0
        return min(max(1, round(documents * fraction)), documents - 1)

    def describe(self) -> dict[str, Any]:
        """What goes into the manifest: all that changes the output, and so not the workers."""
        return {
            "project_dirs": [str(path) for path in self.project_dirs],
            "max_tokens": self.max_tokens,
            "max_file_bytes": self.max_file_bytes,
            "tokenizer": str(self.tokenizer) if self.tokenizer else None,
            "extensions": list(self.extensions),
            "layout": self.layout,
            "documents_per_shard": self.documents_per_shard,
            "val_fraction": self.val_fraction,
            "val_documents": self.val_documents,
            "seed": self.seed,
            "zstd_level": self.zstd_level,
        }
