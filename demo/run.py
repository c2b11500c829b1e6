"""C++ headers to documents, tokenizer, trained model and samples, on a CPU.

    hatch run demo [--output DIR] [--steps N]

Each step is one command, echoed before it runs, that can be typed just the same. The C++ comes with
the torch wheel, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

# Hand-written C++ of the wheel, 14 MB. ATen/ops is left out: 12 MB of generated boilerplate.
PROJECTS = ("c10", "torch", "ATen/core", "ATen/native", "ATen/cuda", "ATen/cpu", "fmt", "pybind11")
PROMPTS = ("#pragma once\n\n#include <", "template <typename T>\nclass ", "inline bool operator==(")
VOCABULARY = 2048
STEPS = 700  # three to four minutes on two cores
# The trainer scales rates down by sqrt(batch / 2**19), too far for so small and short a run: these
# are 16 times the defaults (matrices 32 times), and no weight decay.
RATES = (
    *("--matrix-lr", "0.64", "--embedding-lr", "4.8", "--unembedding-lr", "0.128"),
    *("--scalar-lr", "8", "--weight-decay", "0"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder to write (default: a new one in runs/)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"to train (default: {STEPS})")
    arguments = parser.parse_args()
    output: Path = arguments.output or unused(Path("runs/demo"))
    began = time.perf_counter()
    for title, command in commands(output, arguments.steps):
        print(f"\n# {title}\n$ {shlex.join(command)}", flush=True)
        status = run(command)
        if status != 0:
            print(f"\nThe demo stopped: {command[0]} ended with status {status}.", file=sys.stderr)
            return status
    report(output, time.perf_counter() - began)
    return 0


def commands(output: Path, steps: int) -> Iterator[tuple[str, list[str]]]:
    """The steps of the demo, each with its title."""
    data, run_folder = output / "data", output / "run"
    projects = [str(path) for name in PROJECTS if (path := torch_headers() / name).is_dir()]
    yield (
        "Documents: definitions with what they need of their project",
        [
            *("nanochat-chunker", "--project-dirs", *projects, "--layout", "one"),
            *("--output", str(data), "--compilable", "--skip", "generated"),
            *("--max-tokens", "2048", "--val-fraction", "0.05"),
        ],
    )
    yield (
        "A tokenizer trained on them",
        [
            *("nanochat-tokenizer", "train", "--data-dir", str(data), "--output", str(data)),
            *("--vocab-size", str(VOCABULARY)),
        ],
    )
    # Without torch.compile: in so short a run it costs more time than it saves.
    yield (
        "A small model trained on the CPU",
        [
            *("nanochat-train", "--data-dir", str(data), "--output", str(run_folder)),
            *("--device", "cpu", "--no-compile", "--depth", "4", "--aspect-ratio", "32"),
            *("--head-dim", "64", "--max-seq-len", "256", "--long-documents", "split"),
            *("--device-batch-size", "8", "--total-batch-size", "2048"),
            *("--warmup-steps", "20", *RATES),
            *("--num-iterations", str(steps), "--eval-every", str(steps)),
            *("--eval-tokens", "65536", "--core-metric-every", "-1", "--sample-every", "-1"),
        ],
    )
    for prompt in PROMPTS:
        yield (
            "What it has learned to write",
            [
                *("nanochat-sample", "--checkpoint", str(run_folder), "--prompt", prompt),
                *("--max-tokens", "64", "--temperature", "0.6"),
            ],
        )


def torch_headers() -> Path:
    """The include folder of the installed torch, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("torch is not installed. Run the demo with: hatch run demo")
    return Path(spec.origin).parent / "include"


def unused(path: Path) -> Path:
    """The path, or the first of path-2, path-3, ... that does not exist: no run is overwritten."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def run(command: list[str]) -> int:
    """Run one command of this environment, whose scripts need not be on the PATH."""
    scripts = sysconfig.get_path("scripts")
    path = os.pathsep.join([scripts, os.environ.get("PATH", "")])
    program = shutil.which(command[0], path=path)
    if program is None:
        print(f"{command[0]} is not installed. Run the demo with: hatch run demo", file=sys.stderr)
        return 127
    return subprocess.run([program, *command[1:]], env=os.environ | {"PATH": path}).returncode


def report(output: Path, seconds: float) -> None:
    """Say what came out and where it lies."""
    records = [json.loads(line) for line in (output / "run" / "log.jsonl").read_text().splitlines()]
    validation = [record["val_bpb"] for record in records if record.get("val_bpb") is not None]
    print(f"\nDone in {seconds:.0f} s. Validation: {validation[-1]:.4f} bits per byte.")
    print(f"Everything is in {output}:")
    print("  data/                  documents and tokenizer")
    print("  run/loss.png           the loss, as a plot")
    print("  run/log.jsonl          every step, one JSON object a line")
    print("  run/checkpoints/       the weights, with configuration, plan and versions")


if __name__ == "__main__":
    sys.exit(main())
