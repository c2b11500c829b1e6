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
DEFAULT_CROSS_DEPTH = 3
LAYOUTS = ("auto", "one", "many")
_NOT_WRITTEN = (".json", ".jsonl.gz", ".jsonl.zst", ".jsonl.bz2", ".jsonl.xz", ".txt", ".csv")
EXECUTORS = ("processes", "serial", "ray")
REDACT = ("secrets", "emails")
SKIP = ("generated", "vendored")
ORDERS = ("shuffled", "foundational")
# A worker of less would fail at what most projects need.
LEAST_WORKER_BYTES = 256 << 20
_SUFFIXES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def available_cpus() -> int:
    """The number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse_bytes(text: str) -> int:
    """`2G`, `512MB`, `1.5GiB` or a plain number as bytes; K, M, G and T are powers of 1,024."""
    plain = text.strip().lower().removesuffix("b").removesuffix("i")
    number, suffix = (plain[:-1], plain[-1]) if plain[-1:] in "kmgt" and plain else (plain, "")
    try:
        return int(float(number) * _SUFFIXES[suffix])
    except ValueError:
        raise UsageError(f"{text!r} is not a size", "Give a number such as 2G or 512M") from None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of the chunker. Raises `UsageError` where a value makes no sense.

    Files come from `project_dirs`, or with `cross_file` from `inputs`, JSON lines that hold whole
    files. `max_tokens` bounds every document; `max_file_bytes` is the size above which a file is
    dropped. `val_fraction` and `val_documents` are two ways to say how many documents are held out;
    with neither, a folder of shards holds out one in a hundred and a JSONL file none.
    """

    output: str
    project_dirs: tuple[Path, ...] = ()
    cross_file: bool = False
    inputs: tuple[str, ...] = ()
    compilable: bool = False
    semantic: bool = False
    cross_depth: int = DEFAULT_CROSS_DEPTH
    max_tokens: int = 16384
    max_file_bytes: int = 500_000
    tokenizer: Path | None = None
    extensions: tuple[str, ...] = DEFAULT_EXTENSIONS
    layout: str = "auto"
    near_duplicates: float | None = None
    licenses: tuple[str, ...] = ()
    exclude_licenses: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    redact: tuple[str, ...] = ()
    workers: int = field(default_factory=available_cpus)
    executor: str = "processes"
    ray_address: str | None = None
    max_memory: int | None = None
    max_seconds_per_file: float = 60.0
    documents_per_shard: int = 50_000
    shuffle_window: int | None = None
    order: str = "shuffled"
    val_fraction: float | None = None
    val_documents: int | None = None
    seed: int = 42
    zstd_level: int = 3
    work_dir: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        # A path is as good as its text, and a file:// address names a local one.
        object.__setattr__(self, "output", os.fspath(self.output).removeprefix("file://"))
        self._check_numbers()
        self._check_choices()
        self._check_inputs()

    def _check_numbers(self) -> None:
        for name in ("max_tokens", "max_file_bytes", "workers", "documents_per_shard"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} is {getattr(self, name)}", "Give a number of 1 or more")
        if self.max_tokens < 64:
            raise UsageError(
                f"--max-tokens is {self.max_tokens}, too few for a path and a line of code",
                "Give 64 or more",
            )
        if self.cross_depth < 0:
            raise UsageError(f"--cross-depth is {self.cross_depth}", "Give 0 or more")
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
        if self.near_duplicates is not None and not 0.5 <= self.near_duplicates <= 1:
            raise UsageError(
                f"--near-duplicates is {self.near_duplicates}", "Give a similarity from 0.5 to 1"
            )
        if self.max_seconds_per_file <= 0:
            raise UsageError(
                f"--max-seconds-per-file is {self.max_seconds_per_file}", "Give more than 0"
            )
        if self.shuffle_window is not None and self.shuffle_window < self.documents_per_shard:
            raise UsageError(
                f"--shuffle-window is {self.shuffle_window}, less than a shard",
                f"Give --documents-per-shard, {self.documents_per_shard}, or more",
            )
        share = self.worker_bytes()
        if share is not None and share < LEAST_WORKER_BYTES:
            least = (self.workers + 1) * LEAST_WORKER_BYTES >> 20
            raise UsageError(
                f"--max-memory is too little for {self.workers} workers and the main process",
                f"Give {least}M or more, or fewer --workers",
            )

    def _check_choices(self) -> None:
        if self.output.endswith(_NOT_WRITTEN):
            raise UsageError(
                f"--output {self.output} is neither JSONL nor a folder",
                "End it in .jsonl for lines of JSON, or name a folder for parquet shards",
            )
        for name, choices in (("layout", LAYOUTS), ("executor", EXECUTORS), ("order", ORDERS)):
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"unknown --{name} {value!r}", f"Give one of {', '.join(choices)}")
        for name, choices in (("redact", REDACT), ("skip", SKIP)):
            for value in getattr(self, name):
                if value not in choices:
                    raise UsageError(
                        f"unknown --{name} {value!r}", f"Give some of {', '.join(choices)}"
                    )
        if not self.extensions:
            raise UsageError(
                "no extension given", "Name one or more with --extensions, or leave it"
            )
        if self.semantic and not self.compilable:
            raise UsageError("--semantic makes compilable documents", "Add --compilable")
        if self.semantic and self.cross_file:
            raise UsageError(
                "--semantic needs projects on disk, whose headers the compiler reads",
                "Give --project-dirs, or leave --semantic",
            )

    def _check_inputs(self) -> None:
        if self.cross_file or self.inputs:
            if not self.inputs:
                raise UsageError("--cross-file has no input", "Name JSONL files with --inputs")
            if not self.cross_file:
                raise UsageError("--inputs are for --cross-file", "Add --cross-file")
            if self.project_dirs:
                raise UsageError(
                    "--cross-file reads --inputs, not --project-dirs", "Give one of both"
                )
        elif not self.project_dirs:
            raise UsageError("no project folder given", "Name one or more with --project-dirs")

    @property
    def jsonl(self) -> bool:
        """Whether the output is one JSONL file rather than a folder of shards."""
        return self.output.endswith(".jsonl")

    @property
    def mode(self) -> str:
        """What the documents are, as their column `mode` says it."""
        if self.compilable:
            return "semantic" if self.semantic else "compilable"
        return "cross-file" if self.cross_file else "project"

    @property
    def window(self) -> int:
        """How many documents the shuffle is over."""
        return self.shuffle_window or 4 * self.documents_per_shard

    def worker_bytes(self) -> int | None:
        """The share of `max_memory` of one process, the main one counted as another."""
        return None if self.max_memory is None else self.max_memory // (self.workers + 1)

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
        left_out = {
            "output", "workers", "executor", "ray_address", "max_memory", "work_dir", "overwrite",
        }  # fmt: skip
        described: dict[str, Any] = {"mode": self.mode}
        for name, value in vars(self).items():
            if name in left_out:
                continue
            if isinstance(value, tuple):
                described[name] = [str(each) for each in value]
            else:
                described[name] = str(value) if isinstance(value, Path) else value
        described["shuffle_window"] = self.window
        return described
