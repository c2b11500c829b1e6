"""The command `nanochat-chunker`."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat_chunker import __version__
from nanochat_chunker.errors import ChunkerError
from nanochat_chunker.settings import DEFAULT_EXTENSIONS, LAYOUTS, Settings, available_cpus


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nanochat-chunker",
        description="Turns C and C++ projects into training documents: the files of each project, "
        "what is included before what includes it, packed up to a number of tokens.",
        epilog="Flags may also be written with underscores: --max_tokens.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    # fmt: off
    add("--project-dirs", type=Path, nargs="+", required=True, metavar="DIR",
        help="folders of projects: each subfolder is one; a folder with a build file or .git is "
        "itself one")
    add("--output", type=Path, required=True, metavar="OUT",
        help="a name ending in .jsonl, or a folder for parquet shards")
    add("--max-tokens", type=int, default=16384, metavar="N",
        help="longest document (default: %(default)s)")
    add("--max-file-bytes", type=int, default=500_000, metavar="N",
        help="drop files above this size (default: %(default)s)")
    add("--tokenizer", type=Path, metavar="PATH",
        help="count tokens with this tokenizer.json (default: bytes / 4)")
    add("--extensions", nargs="+", metavar="EXT", default=list(DEFAULT_EXTENSIONS),
        help=f"files to take (default: {' '.join(DEFAULT_EXTENSIONS)})")
    add("--layout", default="auto",
        help=f"{{{','.join(LAYOUTS)}}}: whether a folder is one project or holds many "
        "(default: auto, by what it holds)")
    add("--workers", type=int, default=available_cpus(), metavar="N",
        help="processes (default: %(default)s, one a core)")
    add("--documents-per-shard", type=int, default=50_000, metavar="N",
        help="(default: %(default)s)")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument("--val-fraction", type=float, metavar="F",
        help="share of documents held out (default: 0.01; 0 for JSONL)")
    held_out.add_argument("--val-documents", type=int, metavar="N",
        help="number of documents held out")
    add("--seed", type=int, default=42, metavar="N", help="of the shuffle (default: %(default)s)")
    add("--zstd-level", type=int, default=3, metavar="N",
        help="compression of the shards, 1 to 22 (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an output that is already complete")
    add("--version", action="version", version=f"%(prog)s {__version__}")
    # fmt: on
    return parser


def _dashes(argument: str) -> str:
    """`--max_tokens=5` as `--max-tokens=5`."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns 0, or 1 (failed), 2 (wrong use), 130 (interrupted)."""
    arguments = [_dashes(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    options = vars(build_parser().parse_args(arguments))
    try:
        options["project_dirs"] = tuple(options["project_dirs"])
        options["extensions"] = tuple(
            dict.fromkeys(
                "." + extension.lower().lstrip(".") for extension in options["extensions"]
            )
        )
        _run(Settings(**options))
    except ChunkerError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("error: interrupted. Nothing is complete; type the command again", file=sys.stderr)
        return 130
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(
            f"error: cannot read or write{where}: {error.strerror or error}. "
            "Mend that (space, permissions) and type the command again",
            file=sys.stderr,
        )
        return 1
    return 0


def _run(settings: Settings) -> None:
    from nanochat_chunker.pipeline import run
    from nanochat_chunker.progress import Bars, Progress

    started = time.monotonic()
    with Bars() if sys.stderr.isatty() else Progress() as progress:
        manifest = run(settings, progress)
    for line in summary(manifest, settings.output, time.monotonic() - started):
        print(line)


def summary(manifest: dict[str, Any], output: Path, seconds: float) -> list[str]:
    """What is said at the end."""
    files, documents = manifest["files"], manifest["documents"]
    tokens = documents["train_tokens"] + documents["validation_tokens"]
    lines = [
        f"{len(manifest['projects']):,} projects, {files['kept']:,} files, "
        f"{files['kept_bytes'] / 1e6:,.1f} MB in {seconds:.1f} s",
        f"{documents['train'] + documents['validation']:,} documents, {tokens:,} tokens "
        f"({manifest['tokens_by']['method']}); {documents['validation']:,} held out",
    ]
    if files["dropped"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in files["dropped"].items())
        lines.append(f"dropped: {reasons}")
    if not documents["validation"] and output.suffix != ".jsonl":
        lines.append("note: no validation shard, since there is nothing to hold out or 0 was asked")
    lines.append(f"written: {output}")
    return lines
