"""`nanochat-chunker stats OUT`: what is in an output, and what was dropped and why."""

import argparse
import json
from pathlib import Path
from typing import Any


# fmt: off
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="nanochat-chunker stats",
        description="Says from the manifest of an output how long its documents are, which "
        "projects they come from, and what was dropped and redacted, by reason.",
        allow_abbrev=False,
    )
    add = made.add_argument
    add("output", metavar="OUT",
        help="a folder of shards, or a .jsonl file; either may be an fsspec address")
    add("--projects", type=int, default=10, metavar="N",
        help="largest projects to list (default: %(default)s)")
    add("--plot", type=Path, metavar="FILE",
        help="also draw it, into a .png, .svg or .pdf file")
    add("--json", action="store_true", help="print the numbers as JSON")
    return made
# fmt: on


def run(options: dict[str, Any]) -> int:
    from nanochat_chunker.output import read_manifest
    from nanochat_chunker.stats import check_picture, plot, show

    manifest = read_manifest(options["output"])
    if options["plot"] is not None:
        check_picture(options["plot"])
    if options["json"]:
        names = ("files", "semantic", "documents", "lengths", "projects")
        numbers = {name: manifest[name] for name in names if name in manifest}
        print(json.dumps(numbers, indent=2, ensure_ascii=False))
    else:
        show(manifest, options["output"], options["projects"])
    if options["plot"] is not None:
        plot(manifest, options["plot"])
    return 0
