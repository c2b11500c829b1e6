"""`nanochat-chunker`: projects to documents."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from nanochat_chunker import __version__
from nanochat_chunker.settings import (
    DEFAULT_CROSS_DEPTH,
    DEFAULT_EXTENSIONS,
    EXECUTORS,
    LAYOUTS,
    ORDERS,
    REDACT,
    SKIP,
    Settings,
    available_cpus,
    parse_bytes,
)

DEFAULT_NEAR_DUPLICATES = 0.85


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="nanochat-chunker",
        description="Turns C and C++ projects into training documents: with --compilable, slices "
        "that compile by themselves; else the files of each project, what is included before what "
        "includes it, packed up to a number of tokens.",
        epilog="Flags may also be written with underscores: --max_tokens. Further commands: "
        "nanochat-chunker verify OUT compiles the documents of an output, nanochat-chunker stats "
        "OUT says what is in it and what was dropped; each has its own --help.",
        allow_abbrev=False,
    )
    _add_input(made.add_argument_group("input"))
    _add_documents(made.add_argument_group("documents"))
    _add_choice(made.add_argument_group("what is left out"))
    _add_output(made.add_argument_group("output"))
    _add_machine(made.add_argument_group("machine"))
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    made.add_argument("--commit-mode", action="store_true", help=argparse.SUPPRESS)
    return made


# fmt: off
def _add_input(group: Any) -> None:
    add = group.add_argument
    add("--project-dirs", type=Path, nargs="+", default=[], metavar="DIR",
        help="folders of projects: each subfolder is one; a folder with a build file or .git is "
        "itself one")
    add("--cross-file", action="store_true",
        help="take whole files from JSON lines instead, given with --inputs")
    add("--inputs", nargs="+", default=[], metavar="JSONL",
        help="lines with a file's text and, where there, its project, path, license and commit; "
        "compressed ones and fsspec addresses too")
    add("--max-file-bytes", type=int, default=500_000, metavar="N",
        help="drop files above this size (default: %(default)s)")
    add("--extensions", nargs="+", metavar="EXT", default=list(DEFAULT_EXTENSIONS),
        help=f"files to take (default: {' '.join(DEFAULT_EXTENSIONS)})")
    add("--layout", default="auto",
        help=f"{{{','.join(LAYOUTS)}}}: whether a folder is one project or holds many "
        "(default: auto, by what it holds)")


def _add_documents(group: Any) -> None:
    add = group.add_argument
    add("--compilable", action="store_true",
        help="documents that compile by themselves: a definition and what it needs of its project")
    add("--cross-depth", type=int, metavar="N",
        help="with --compilable: how many calls away from its root a function still brings its "
        f"body (default: {DEFAULT_CROSS_DEPTH})")
    add("--semantic", action="store_true",
        help="with --compilable: let libclang say which name refers to what, by "
        "compile_commands.json where a project has one; slower")
    add("--max-tokens", type=int, default=16384, metavar="N",
        help="longest document (default: %(default)s)")
    add("--tokenizer", type=Path, metavar="PATH",
        help="count tokens with this tokenizer.json (default: bytes / 4)")


def _add_choice(group: Any) -> None:
    add = group.add_argument
    add("--near-duplicates", type=float, nargs="?", const=DEFAULT_NEAR_DUPLICATES, metavar="T",
        help="also drop files that are this similar to an earlier one (0.5 to 1; without a number: "
        "%(const)s)")
    add("--licenses", nargs="+", default=[], metavar="SPDX",
        help="take only files under these, such as MIT, BSD-* or permissive")
    add("--exclude-licenses", nargs="+", default=[], metavar="SPDX",
        help="leave out files under these, such as GPL-*, copyleft or NOASSERTION (not known)")
    add("--skip", nargs="+", default=[], metavar="KIND",
        help=f"make no documents of files that are {' or '.join(SKIP)}")
    add("--redact", nargs="+", default=[], metavar="KIND",
        help=f"replace {' and '.join(REDACT)} in the text")


def _add_output(group: Any) -> None:
    add = group.add_argument
    add("--output", required=True, metavar="OUT",
        help="a name ending in .jsonl, or a folder for parquet shards; either may be an fsspec "
        "address such as s3://bucket/folder")
    add("--documents-per-shard", type=int, default=50_000, metavar="N",
        help="(default: %(default)s)")
    add("--order", default="shuffled",
        help=f"{{{','.join(ORDERS)}}}: shuffled, or what others build on first "
        "(default: shuffled)")
    add("--shuffle-window", type=int, metavar="N",
        help="documents that shards are drawn from (default: four shards)")
    held_out = group.add_mutually_exclusive_group()
    held_out.add_argument("--val-fraction", type=float, metavar="F",
        help="share of documents held out (default: 0.01; 0 for JSONL)")
    held_out.add_argument("--val-documents", type=int, metavar="N",
        help="number of documents held out")
    add("--seed", type=int, default=42, metavar="N", help="of the shuffle (default: %(default)s)")
    add("--zstd-level", type=int, default=3, metavar="N",
        help="compression of the shards, 1 to 22 (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an output that is already complete")


def _add_machine(group: Any) -> None:
    add = group.add_argument
    add("--workers", type=int, default=available_cpus(), metavar="N",
        help="processes (default: %(default)s, one a core)")
    add("--executor", default="processes",
        help=f"{{{','.join(EXECUTORS)}}}: processes of this machine, this process alone (for "
        "debugging), or a Ray cluster (default: processes)")
    add("--ray-address", metavar="ADDRESS",
        help="of the cluster, or auto (default: start one on this machine)")
    add("--max-memory", type=str, metavar="SIZE",
        help="such as 8G, for all processes together; a file that needs more than its process has "
        "is dropped (default: no limit)")
    add("--max-seconds-per-file", type=float, default=60.0, metavar="S",
        help="drop a file that takes more CPU seconds (default: %(default)g)")
    add("--work-dir", type=Path, metavar="DIR",
        help="where to keep what lies between reading and writing, on a local disk (default: in "
        "the output folder; for an address, in the folder for temporary files)")
# fmt: on


def settings_of(options: dict[str, Any]) -> Settings:
    """The settings of a command line. Raises `UsageError`."""
    from nanochat_chunker.errors import UsageError

    if options.pop("commit_mode"):
        raise UsageError(
            "--commit-mode is not there: documents are made of files, not of commits",
            "Leave it",
        )
    for name in (
        "project_dirs", "inputs", "licenses", "exclude_licenses", "skip", "redact",
    ):  # fmt: skip
        options[name] = tuple(options[name])
    options["extensions"] = tuple(
        dict.fromkeys("." + extension.lower().lstrip(".") for extension in options["extensions"])
    )
    if options["cross_depth"] is None:
        options["cross_depth"] = DEFAULT_CROSS_DEPTH
    if options["max_memory"] is not None:
        options["max_memory"] = parse_bytes(options["max_memory"])
    return Settings(**options)


def run(options: dict[str, Any]) -> int:
    no_use = options["cross_depth"] is not None and not options["compilable"]
    settings = settings_of(options)
    from nanochat_chunker import pipeline
    from nanochat_chunker.progress import Bars, Progress

    started = time.monotonic()
    with Bars() if sys.stderr.isatty() else Progress() as progress:
        manifest = pipeline.run(settings, progress)
    for line in summary(manifest, settings.output, time.monotonic() - started):
        print(line)
    if no_use:
        progress.note("--cross-depth is of no use without --compilable: whole files were packed")
    for note in progress.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def semantic_line(semantic: dict[str, Any]) -> str:
    """How many files libclang read, and why names decide in the others."""
    fallback = semantic["fallback"]
    line = f"libclang read {semantic['files']:,} files"
    if fallback:
        counts = ", ".join(f"{name} {count:,}" for name, count in fallback.items())
        line += f"; by names alone {sum(fallback.values()):,}: {counts}"
    return line


def summary(manifest: dict[str, Any], output: str, seconds: float) -> list[str]:
    """What is said at the end."""
    from nanochat_chunker.stats import counted

    files, documents = manifest["files"], manifest["documents"]
    tokens = documents["train_tokens"] + documents["validation_tokens"]
    lines = [
        f"{counted(len(manifest['projects']), 'project')}, {counted(files['kept'], 'file')}, "
        f"{files['kept_bytes'] / 1e6:,.1f} MB in {seconds:.1f} s",
        f"{counted(documents['train'] + documents['validation'], 'document')}, {tokens:,} tokens "
        f"({manifest['tokens_by']['method']}); {documents['validation']:,} held out",
    ]
    if (semantic := manifest.get("semantic")) is not None:
        lines.append(semantic_line(semantic))
    for what in ("dropped", "redacted"):
        if files[what]:
            counts = ", ".join(f"{name} {count:,}" for name, count in files[what].items())
            lines.append(f"{what}: {counts}")
    if documents["dropped"]["duplicate"]:
        lines.append(f"dropped documents: duplicate {documents['dropped']['duplicate']:,}")
    if not documents["validation"] and not output.endswith(".jsonl"):
        lines.append("note: no validation shard, since there is nothing to hold out or 0 was asked")
    lines.append(f"written: {output}")
    return lines
