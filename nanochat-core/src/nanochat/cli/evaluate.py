"""nanochat-eval: bits per byte, the CORE metric and samples of a trained model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.cli import flags
from nanochat.cli.main import run
from nanochat.cli.stream import show
from nanochat.errors import UsageError

if TYPE_CHECKING:
    from nanochat.evaluate.report import Request

KINDS = ("bpb", "core", "sample")
DTYPES = ("bfloat16", "float16", "float32")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status."""
    return run(_main, argv)


def parser() -> argparse.ArgumentParser:
    """The flags, all known without importing torch."""
    made = flags.Parser(
        prog="nanochat-eval",
        description="Evaluate a trained model: bits per byte, the CORE metric, samples.",
        epilog="Example: nanochat-eval --checkpoint runs/d12 --eval bpb,sample",
    )
    what = made.add_argument_group("what")
    flags.add(what, "--checkpoint", required=True, metavar="DIR", help="run folder or checkpoint")
    flags.add(what, "--tokenizer", metavar="PATH", help="default: the one beside the checkpoint")
    flags.add(
        what,
        "--eval",
        metavar="LIST",
        help=f"some of {','.join(KINDS)}; default: bpb,sample, and core where there is a bundle",
    )
    flags.add(what, "--json", action="store_true", help="print one JSON object")
    bpb = made.add_argument_group("bits per byte")
    flags.add(bpb, "--data-dir", metavar="DIR", help="default: $NANOCHAT_DATA_DIR or the run's own")
    flags.add(bpb, "--eval-tokens", type=int, metavar="N", help="default: as in training")
    flags.add(bpb, "--device-batch-size", type=int, metavar="N", help="rows; default: likewise")
    core = made.add_argument_group("CORE metric")
    flags.add(core, "--core-bundle", metavar="DIR", help="default: $NANOCHAT_CORE_BUNDLE")
    flags.add(
        core, "--max-per-task", type=int, default=-1, metavar="N", help="default: all examples"
    )
    sample = made.add_argument_group("samples")
    flags.add(sample, "--prompt", action="append", metavar="TEXT", help="may be repeated")
    flags.add(sample, "--max-tokens", type=int, default=64, metavar="N", help="default: 64")
    where = made.add_argument_group("backends")
    flags.add(where, "--device", default="auto", metavar="NAME", help="auto (default) or a name")
    flags.add(where, "--attention", default="auto", metavar="NAME", help="auto (default) or a name")
    flags.add(where, "--loss", default="auto", metavar="NAME", help="auto (default) or a name")
    flags.add(where, "--dtype", choices=DTYPES, help="of activations; default: the device's")
    return made


def _main(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    from nanochat.evaluate.report import evaluate
    from nanochat.generate.load import find_checkpoint, open_checkpoint
    from nanochat.train.checkpoint import read_meta

    folder = find_checkpoint(args.checkpoint)
    request = _request(args, read_meta(folder).get("settings", {}))
    opened = open_checkpoint(
        folder,
        asked={"device": args.device, "attention": args.attention, "loss": args.loss},
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        batch=request.batch_size,
        decoding="sample" in request.kinds,
    )
    with closing(opened.runtime):
        first = opened.runtime.rank == 0
        lines = None if not first else sys.stderr if args.json else sys.stdout

        def say(line: str) -> None:
            if lines is not None:
                show(line + "\n", lines)

        backends = ", ".join(f"{choice.hook} {choice.backend.name}" for choice in opened.plan)
        say(f"checkpoint: {opened.folder} (step {opened.step})")
        say(f"on {opened.plan.target}, {opened.plan.dtype}; {backends}")
        found = evaluate(opened, request, say)
        if args.json and first:
            about = {"checkpoint": str(opened.folder), "step": opened.step}
            print(json.dumps({**about, "plan": opened.plan.as_dict(), **found}))
    return 0


def _request(args: argparse.Namespace, settings: Mapping[str, Any]) -> Request:
    """Check the flags, filling in what the training run recorded. Raises UsageError."""
    from nanochat.evaluate.core_bundle import load_bundle
    from nanochat.evaluate.report import Request
    from nanochat.train.config import CORE_VARIABLE, DATA_VARIABLE, DEFAULT_PROMPTS, TrainConfig

    bundle_path = args.core_bundle or os.environ.get(CORE_VARIABLE, "")
    kinds = _kinds(args.eval, bool(bundle_path))
    data_dir = None
    if "bpb" in kinds:
        place = args.data_dir or os.environ.get(DATA_VARIABLE) or settings.get("data_dir")
        if not place:
            raise UsageError(
                "bits per byte need validation data",
                "Give --data-dir, or leave bpb out of --eval",
            )
        data_dir = Path(place)
        if not data_dir.is_dir():
            raise UsageError(f"there is no data folder {data_dir}", "Give --data-dir")
    bundle = None
    if "core" in kinds:
        if not bundle_path:
            raise UsageError(
                "the CORE metric needs its evaluation bundle",
                f"Give --core-bundle or set {CORE_VARIABLE}, or leave core out of --eval",
            )
        bundle = load_bundle(bundle_path)
    request = Request(
        kinds=kinds,
        data_dir=data_dir,
        streaming=bool(settings.get("streaming_data", False)),
        long_documents=settings.get("long_documents", "crop"),
        eval_tokens=_first(args.eval_tokens, settings.get("eval_tokens"), TrainConfig.eval_tokens),
        batch_size=_first(args.device_batch_size, settings.get("device_batch_size"), 8),
        bundle=bundle,
        max_per_task=args.max_per_task,
        prompts=tuple(_first(args.prompt, settings.get("sample_prompts"), DEFAULT_PROMPTS)),
        max_tokens=args.max_tokens,
    )
    for flag, value in (
        ("--eval-tokens", request.eval_tokens),
        ("--device-batch-size", request.batch_size),
        ("--max-tokens", request.max_tokens),
    ):
        if value < 1:
            raise UsageError(f"{flag} is {value}, it must be at least 1")
    return request


def _kinds(asked: str | None, has_bundle: bool) -> tuple[str, ...]:
    if asked is None:
        return KINDS if has_bundle else ("bpb", "sample")
    names = [name.strip() for name in asked.split(",") if name.strip()]
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        what = f"there is no evaluation {unknown[0]!r}" if unknown else "--eval names nothing"
        raise UsageError(what, f"Use some of {','.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in names)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


if __name__ == "__main__":
    sys.exit(main())
