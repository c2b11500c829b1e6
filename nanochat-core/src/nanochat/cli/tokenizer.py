"""nanochat-tokenizer: train a tokenizer on shards, or look at one."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.cli.flags import Parser, add
from nanochat.cli.main import run
from nanochat.errors import UsageError

if TYPE_CHECKING:
    from nanochat.data.shards import ShardSet
    from nanochat.data.tokenizer import Tokenizer

HELD_OUT_CHARACTERS = 4_000_000
"""How much of the validation shard bytes per token are measured on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `nanochat-tokenizer`; the exit status is 0, or 2 for wrong use."""
    return run(_command, argv)


def _command(argv: Sequence[str] | None) -> int:
    args = _parser().parse_args(argv)
    return _train(args) if args.command == "train" else _inspect(args)


def _parser() -> Parser:
    parser = Parser(prog="nanochat-tokenizer", description="Train a tokenizer, or look at one.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="learn a byte-level BPE vocabulary from shards")
    add(train, "--data-dir", metavar="DIR", required=True, help="folder of shards to learn from")
    add(train, "--output", metavar="DIR", required=True, help="folder to write tokenizer.json to")
    add(
        train,
        "--vocab-size",
        type=int,
        default=32768,
        metavar="N",
        help="number of token ids, special tokens included (default: 32768)",
    )
    add(
        train,
        "--max-chars",
        type=int,
        default=2_000_000_000,
        metavar="N",
        help="stop reading after so many characters (default: 2000000000)",
    )

    inspect = commands.add_parser("inspect", help="describe a tokenizer, or show how it splits")
    inspect.add_argument("path", metavar="PATH", help="a tokenizer.json or the folder it is in")
    add(inspect, "--text", metavar="TEXT", help="show the tokens of this text")
    return parser


def _train(args: argparse.Namespace) -> int:
    from nanochat.data.shards import ShardSet
    from nanochat.data.tokenizer import Tokenizer, check_vocab_size

    check_vocab_size(args.vocab_size)
    if args.max_chars < 1:
        raise UsageError(f"--max-chars is {args.max_chars}, it must be at least 1")
    output = Path(args.output)
    shards = ShardSet(args.data_dir, "train")
    held_out = ShardSet(args.data_dir, "val")
    _make_folder(output)  # before minutes of work, not after

    began = time.monotonic()
    progress = _Progress(args.max_chars)
    tokenizer = Tokenizer.train(progress.watch(_texts(shards)), args.vocab_size)
    seconds = time.monotonic() - began
    print(
        f"learnt {tokenizer.vocab_size:,} ids from {progress.characters:,} characters "
        f"of {progress.documents:,} documents in {seconds:.1f} s"
    )
    if tokenizer.vocab_size < args.vocab_size:
        print(
            f"warning: the text has too few different words for {args.vocab_size:,} ids; the "
            f"vocabulary is {tokenizer.vocab_size:,}. Give more text or a smaller --vocab-size",
            file=sys.stderr,
        )
    _print_compression(tokenizer, held_out)
    print(f"written to {tokenizer.save(output)}")
    return 0


def _texts(shards: ShardSet) -> Iterator[str]:
    for shard in shards.files():
        for _, texts in shard.read():
            yield from (text for text in texts if text)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot make the folder {folder}: {error.strerror}", "Choose another --output"
        ) from error


def _print_compression(tokenizer: Tokenizer, held_out: ShardSet) -> None:
    """Bytes per token on text that was not learnt from."""
    characters = size = tokens = 0
    for text in _texts(held_out):
        text = text[: HELD_OUT_CHARACTERS - characters]
        characters += len(text)
        size += len(text.encode("utf-8", "replace"))
        tokens += len(tokenizer.encode_array(text))
        if characters >= HELD_OUT_CHARACTERS:
            break
    if tokens:
        print(
            f"{size / tokens:.3f} bytes per token on {held_out.validation}, which was held out "
            f"({size:,} bytes, {tokens:,} tokens)"
        )


class _Progress:
    """Counts texts on their way to the learner, up to a limit; tells a terminal now and then."""

    def __init__(self, limit: int) -> None:
        self.characters = 0
        self.documents = 0
        self._limit = limit
        self._shown = time.monotonic()
        self._live = sys.stderr.isatty()

    def watch(self, texts: Iterator[str]) -> Iterator[str]:
        for text in texts:
            text = text[: self._limit - self.characters]
            self.characters += len(text)
            self.documents += 1
            self._show()
            yield text
            if self.characters >= self._limit:
                break
        self._say(f"read {self.characters:,} characters, learning merges ...", last=True)

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown > 0.5:
            self._shown = now
            self._say(f"read {self.characters:,} characters of {self.documents:,} documents")

    def _say(self, message: str, *, last: bool = False) -> None:
        if self._live:
            print(f"\r\033[K{message}", end="\n" if last else "", file=sys.stderr, flush=True)
        elif last:
            print(message, file=sys.stderr, flush=True)


def _inspect(args: argparse.Namespace) -> int:
    from nanochat.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.path)
    if args.text is not None:
        ids = tokenizer.encode(args.text)
        for i in ids:
            token = tokenizer.decode_bytes([i])
            print(f"{i:>8}  {_shown(token)}")
        size = len(tokenizer.decode_bytes(ids))
        ratio = f", {size / len(ids):.2f} bytes per token" if ids else ""
        print(f"{len(ids)} tokens, {size} bytes{ratio}")
        return 0
    lengths = tokenizer.token_bytes()
    longest = int(lengths.argmax())
    ordinary = lengths[lengths > 0]
    print(f"ids          {tokenizer.vocab_size:,}")
    print(f"fingerprint  {tokenizer.fingerprint}")
    print(f"mean length  {ordinary.mean():.2f} bytes")
    print(f"longest      {longest}: {_shown(tokenizer.decode_bytes([longest]))}")
    for name, i in tokenizer.specials.items():
        print(f"special      {i}: {name}")
    return 0


def _shown(token: bytes) -> str:
    """A token as a quoted string; as bytes where it is only a part of a character."""
    try:
        return repr(token.decode())
    except UnicodeDecodeError:
        return repr(token)


if __name__ == "__main__":
    sys.exit(main())
