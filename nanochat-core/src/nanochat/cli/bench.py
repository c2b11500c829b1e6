"""nanochat-bench: compare backends on this machine, and prove that they are what ran."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from nanochat.backend import Hook, Problem
from nanochat.bench import report
from nanochat.bench.jobs import DOCUMENT_LENGTH, Job, Outcome, Work, run_job
from nanochat.cli import flags
from nanochat.cli import main as command_line
from nanochat.errors import UsageError
from nanochat.model.config import GPTConfig
from nanochat.plan import choose_device
from nanochat.registry import Registry, discover
from nanochat.train.problems import problems_of

UNPROVEN = 3
"""The exit status where a row's declared kernels did not run."""
HOOKS: tuple[Hook, ...] = ("attention", "loss", "quantization")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status: 3 if a row is unproven, 1 if none ran."""
    return command_line.run(_run, argv)


def parser() -> flags.Parser:
    root = flags.Parser(
        prog="nanochat-bench",
        description="Compare backends. Each row is timed in a process of its own, then profiled.",
        epilog="Exit status: 0 proven or not provable here, 1 nothing ran, 2 wrong use, "
        "3 the declared kernels of a row did not run.",
    )
    flags.add(root, "work", choices=("step", "loss", "attention"), metavar="step|loss|attention")
    which = root.add_argument_group("rows: comma-separated names; step takes their cross product")
    flags.add(which, "--attention", default="", metavar="A,B", help="[all, for a step: auto]")
    flags.add(which, "--loss", default="", metavar="A,B", help="[all, for a step: auto]")
    flags.add(which, "--quantization", default="none", metavar="A,B", help="of a step [none]")
    flags.add(which, "--device", default="auto", metavar="NAME", help="[auto]")
    flags.add(which, "--dtype", default="", metavar="NAME", help="[the device's]")
    shape = root.add_argument_group("shapes: those of a model")
    for name, default in (
        ("--depth", 20),
        ("--device-batch-size", 32),
        ("--max-seq-len", 2048),
        ("--vocab-size", 32768),
        ("--aspect-ratio", 64),
        ("--head-dim", 128),
        ("--kv-heads", 0),
    ):
        flags.add(shape, name, type=_whole, default=default, metavar="N", help=f"[{default}]")
    flags.add(shape, "--window-pattern", default="SSSL", metavar="SSSL", help="[SSSL]")
    flags.add(shape, "--document-mask", action="store_true", help="rows of several documents")
    how = root.add_argument_group("how")
    flags.add(how, "--repeats", type=_whole, default=10, metavar="N", help="timed rounds [10]")
    flags.add(how, "--warmup", type=_whole, default=3, metavar="N", help="rounds before [3]")
    flags.add(how, "--no-compile", action="store_true", help="run without torch.compile")
    flags.add(how, "--profiler", choices=("torch", "nsys"), default="torch", help="[torch]")
    flags.add(how, "--top", type=_whole, default=10, metavar="N", help="kernels listed [10]")
    flags.add(how, "--json", action="store_true", help="print JSON instead of Markdown")
    flags.add(how, "--plot", metavar="PNG", help="also draw the times")
    return root


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _run(argv: Sequence[str] | None) -> int:
    given = parser().parse_args(argv)
    if given.repeats < 1:
        raise UsageError("--repeats is 0, it must be at least 1")
    if given.profiler == "nsys" and shutil.which("nsys") is None:
        raise UsageError(
            "--profiler nsys: there is no nsys on the PATH",
            "Install NVIDIA Nsight Systems, or leave it out",
        )
    if given.plot:
        _check_plot(Path(given.plot))
    rows: list[report.Row] = []
    for number, job in enumerate(list(_jobs(given))):
        print(f"timing {report.label(job)} ...", file=sys.stderr, flush=True)
        rows.append((job, _outcome(job, number, given.profiler)))
    if given.json:
        print(json.dumps(report.plain(rows), indent=1))
    else:
        _print(rows, given)
    if given.plot:
        report.plot(rows, Path(given.plot), f"nanochat-bench {given.work}")
    if not any(outcome.ok for _, outcome in rows):
        print("error: no row could be timed", file=sys.stderr)
        return 1
    return UNPROVEN if report.unproven(rows) else 0


def _outcome(job: Job, number: int, profiler: str) -> Outcome:
    if profiler == "torch":
        return run_job(job)
    # The names still come from torch's profiler, in a run of its own: two tracers exclude another.
    name = f"nanochat-bench-{number}"
    prefix = ("nsys", "profile", "--force-overwrite=true", f"--output={name}")
    traced = run_job(Job(**{**asdict(job), "profile": False}), prefix=prefix)
    told = f"{name}.nsys-rep" if traced.ok else f"nsys: {traced.state}: {traced.reason}"
    print(told, file=sys.stderr, flush=True)
    return run_job(job)


def _check_plot(path: Path) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError("--plot needs matplotlib", "pip install matplotlib") from error


def _print(rows: Sequence[report.Row], given: argparse.Namespace) -> None:
    machine = next((outcome.machine for _, outcome in rows if outcome.ok), {})
    for name, value in machine.items():
        print(f"{name}: {value}")
    print(f"shapes: {_shape(given)}\n")
    print(report.markdown(rows))
    for note in report.notes(rows):
        print(f"\n{note}")
    print(report.profiles(rows, given.top))


def _shape(given: argparse.Namespace) -> str:
    return (
        f"depth {given.depth}, batch {given.device_batch_size}, length {given.max_seq_len}, "
        f"vocabulary {given.vocab_size}, windows {given.window_pattern}"
        + (f", documents of {DOCUMENT_LENGTH} on average" if given.document_mask else "")
    )


def _jobs(given: argparse.Namespace) -> Iterator[Job]:
    registry = discover()
    model = GPTConfig.from_depth(
        given.depth,
        vocab_size=given.vocab_size,
        sequence_len=given.max_seq_len,
        aspect_ratio=given.aspect_ratio,
        head_dim=given.head_dim,
        kv_heads=given.kv_heads or None,
        window_pattern=given.window_pattern,
        document_token=0 if given.document_mask else None,
    )
    common: dict[str, Any] = {
        "device": given.device,
        "compile": not given.no_compile,
        "warmup": given.warmup,
        "repeats": given.repeats,
        "profile": True,
    }
    if given.device_batch_size < 1:
        raise UsageError("--device-batch-size is 0, it must be at least 1")
    device, target = choose_device(registry, given.device, given.dtype or None)
    dtype = given.dtype or device.backend.default_dtype(target)
    common["dtype"] = dtype
    if given.work == "step":
        columns = [_names(registry, hook, getattr(given, hook) or "auto") for hook in HOOKS]
        for names in product(*columns):
            yield Job(
                "step",
                dict(zip(HOOKS, names, strict=True)),
                model=asdict(model),
                batch=given.device_batch_size,
                **common,
            )
        return
    hook: Hook = given.work
    work: Work = given.work
    everyone = ",".join(r.backend.name for r in registry.backends(hook))
    problem: Problem = problems_of(model, given.device_batch_size, target, dtype)[hook]
    windows = model.windows if hook == "attention" else ()
    for name in _names(registry, hook, getattr(given, hook) or everyone):
        yield Job(work, {hook: name}, problem=asdict(problem), windows=list(windows), **common)


def _names(registry: Registry, hook: Hook, given: str) -> list[str]:
    """The names of a comma-separated list. Raises UsageError for one that nothing is called."""
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name != "auto" and registry.find(hook, name) is None:
            known = ", ".join(r.backend.name for r in registry.backends(hook))
            raise UsageError(f"no {hook} backend is called {name!r} (there are: {known})")
    if not names:
        raise UsageError(f"--{hook} names nothing")
    return list(dict.fromkeys(names))


if __name__ == "__main__":
    sys.exit(main())
