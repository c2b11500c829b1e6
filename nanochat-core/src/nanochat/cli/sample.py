"""nanochat-sample: continues a prompt with a trained model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from nanochat.cli import flags
from nanochat.cli.main import run
from nanochat.cli.stream import show
from nanochat.errors import UsageError

if TYPE_CHECKING:
    from nanochat.generate.engine import Engine


DTYPES = ("bfloat16", "float16", "float32")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Returns the exit status."""
    return run(_main, argv)


def parser() -> argparse.ArgumentParser:
    """The flags, all known without importing torch."""
    made = flags.Parser(
        prog="nanochat-sample",
        description="Continue a prompt with a trained model.",
        epilog="Example: nanochat-sample --checkpoint runs/d12 --prompt '#include <' --seed 1",
    )
    what = made.add_argument_group("what")
    flags.add(what, "--checkpoint", required=True, metavar="DIR", help="run folder or checkpoint")
    flags.add(what, "--tokenizer", metavar="PATH", help="default: the one beside the checkpoint")
    flags.add(what, "--prompt", default="", metavar="TEXT", help="default: the start of a document")
    flags.add(what, "--suffix", metavar="TEXT", help="fill in what is between prompt and TEXT")
    how = made.add_argument_group("how")
    flags.add(how, "--num-samples", type=int, default=1, metavar="N", help="default: 1")
    flags.add(how, "--max-tokens", type=int, default=256, metavar="N", help="default: 256")
    flags.add(
        how, "--temperature", type=float, default=0.8, metavar="T", help="0: greedy; default: 0.8"
    )
    flags.add(how, "--top-k", type=int, metavar="K", help="draw among the K likeliest tokens")
    flags.add(how, "--top-p", type=float, metavar="P", help="draw among the likeliest of total P")
    flags.add(how, "--seed", type=int, default=0, metavar="N", help="default: 0")
    where = made.add_argument_group("backends")
    flags.add(where, "--device", default="auto", metavar="NAME", help="auto (default) or a name")
    flags.add(where, "--attention", default="auto", metavar="NAME", help="auto (default) or a name")
    flags.add(where, "--dtype", choices=DTYPES, help="of activations; default: the device's")
    return made


def _main(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    _check(args)
    from nanochat.generate.load import open_checkpoint

    opened = open_checkpoint(
        args.checkpoint,
        asked={"device": args.device, "attention": args.attention},
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        batch=args.num_samples,
    )
    from nanochat.generate.engine import Engine

    with closing(opened.runtime):
        if opened.runtime.rank == 0:
            _sample(Engine(opened.model, opened.tokenizer, opened.runtime), args)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be right before a large model is read."""
    for name in ("num_samples", "max_tokens"):
        if getattr(args, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} is {getattr(args, name)}, it must be at least 1")
    if args.temperature == 0 and (args.top_k is not None or args.top_p is not None):
        raise UsageError(
            "--top-k and --top-p have no effect at --temperature 0", "Leave one of them out"
        )


def _sample(engine: Engine, args: argparse.Namespace) -> None:
    from nanochat.generate.engine import fill_in_the_middle

    tokenizer = engine.tokenizer
    if args.suffix is None:
        ids = [tokenizer.bos_id, *tokenizer.encode(args.prompt)]
    else:
        ids = fill_in_the_middle(tokenizer, args.prompt, args.suffix)
    columns = engine.stream(
        ids,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        num_samples=args.num_samples,
    )
    if engine.room(len(ids)) < args.max_tokens:
        print(
            f"note: the model has room for {engine.room(len(ids))} more tokens, "
            f"not for {args.max_tokens}",
            file=sys.stderr,
        )
    suffix = args.suffix or ""
    if args.num_samples == 1:
        show(args.prompt)
        for piece in engine.text(columns):
            show(piece)
        show(f"{suffix}\n")
        return
    samples: list[list[int]] = [[] for _ in range(args.num_samples)]
    for column in columns:
        for sample, token in zip(samples, column, strict=True):
            if token is not None:
                sample.append(token)
    for number, sample in enumerate(samples, start=1):
        show(f"--- sample {number} of {len(samples)} ---\n")
        show(f"{args.prompt}{tokenizer.decode(sample)}{suffix}\n")


if __name__ == "__main__":
    sys.exit(main())
