"""`nanochat-chunker verify OUT`: compiles the documents of an output."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from nanochat_chunker.settings import available_cpus


# fmt: off
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="nanochat-chunker verify",
        description="Compiles documents of an output with -fsyntax-only, and says how many pass, "
        "by project, and why the others do not.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("output", metavar="OUT",
        help="a folder of shards, or a .jsonl file; either may be an fsspec address")
    add("--sample", type=int, metavar="N", help="only so many, drawn at random (default: all)")
    add("--include", type=Path, nargs="+", action="extend", default=[], metavar="DIR",
        help="also report the rate with these include folders")
    add("--annotate", action="store_true", help="write the result into the column compiles")
    add("--compiler", metavar="NAME", help="(default: clang++, else g++)")
    add("--workers", type=int, default=available_cpus(), metavar="N",
        help="compilers at a time (default: %(default)s)")
    add("--timeout", type=float, default=60.0, metavar="S",
        help="seconds for one document (default: %(default)g)")
    add("--memory", type=int, default=4096, metavar="MB",
        help="memory for one compiler (default: %(default)s)")
    add("--seed", type=int, default=42, metavar="N", help="of the sample (default: %(default)s)")
    add("--json", action="store_true", help="print the report as JSON")
    return made
# fmt: on


def run(options: dict[str, Any]) -> int:
    from nanochat_chunker.verify import verify_output

    report = verify_output(
        options["output"],
        sample=options["sample"],
        include_dirs=options["include"],
        compiler=options["compiler"],
        annotate=options["annotate"],
        workers=options["workers"],
        seed=options["seed"],
        timeout_s=options["timeout"],
        memory_mb=options["memory"],
        on_done=_shown if sys.stderr.isatty() else lambda done, total: None,
    )
    if options["json"]:
        print(json.dumps(report.to_json(), indent=2))
    else:
        for line in report.lines():
            print(line)
    return 0


def _shown(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done:,} of {total:,} compiled", end=end, file=sys.stderr, flush=True)
