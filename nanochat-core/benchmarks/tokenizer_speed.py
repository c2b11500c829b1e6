"""Times Hugging Face tokenizers against rustbpe (training) and tiktoken (encoding) on a folder.

    python tokenizer_speed.py FOLDER [--pattern '*.h'] [--vocab-sizes 8192 32768]

Both train on the same documents with the same split pattern and encode all of them again. Each
measurement runs in a process of its own, because both libraries size their thread pools once.
Prints one JSON line a measurement. (Not called tokenizers.py: it would shadow the library.)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nanochat.data.tokenizer import SPLIT_PATTERN


def read(folder: Path, pattern: str) -> list[str]:
    """The text files under a folder, in order of name."""
    paths = sorted(p for p in folder.rglob(pattern) if p.is_file())
    return [p.read_text("utf-8", errors="replace") for p in paths]


def train_tokenizers(texts: list[str], vocab_size: int, store: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(store))


def train_rustbpe(texts: list[str], vocab_size: int, store: Path) -> None:
    import rustbpe

    tokenizer = rustbpe.Tokenizer()  # pyrefly: ignore[missing-attribute]
    tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=SPLIT_PATTERN)
    ranks = [[list(token), rank] for token, rank in tokenizer.get_mergeable_ranks()]
    store.write_text(json.dumps(ranks))


class Clock:
    """Seconds by the wall, and of all threads together: the latter also holds on a busy machine."""

    wall = cpu = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall, self.cpu = time.perf_counter() - wall, time.process_time() - cpu


def encode_tokenizers(texts: list[str], threads: int, store: Path, clock: Clock) -> int:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(store))
    tokenizer.encode_batch_fast(texts[:20], add_special_tokens=False)
    tokens = 0
    with clock.running():
        for first in range(0, len(texts), 128):
            some = texts[first : first + 128]
            batch = tokenizer.encode_batch_fast(some, add_special_tokens=False)
            tokens += sum(len(encoding.ids) for encoding in batch)
    return tokens


def encode_tiktoken(texts: list[str], threads: int, store: Path, clock: Clock) -> int:
    import tiktoken

    ranks = {bytes(token): rank for token, rank in json.loads(store.read_text())}
    encoding = tiktoken.Encoding(
        "x", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    encoding.encode_ordinary_batch(texts[:20], num_threads=threads)
    tokens = 0
    with clock.running():
        for first in range(0, len(texts), 128):
            batch = encoding.encode_ordinary_batch(texts[first : first + 128], num_threads=threads)
            tokens += sum(map(len, batch))
    return tokens


TRAIN = {"tokenizers": train_tokenizers, "rustbpe": train_rustbpe}
ENCODE = {"tokenizers": encode_tokenizers, "tiktoken": encode_tiktoken}


def measure(args: argparse.Namespace) -> dict[str, object]:
    """One measurement, in this process."""
    texts = read(args.folder, args.pattern)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    what, library, vocab_size, threads, store = args.measure
    clock = Clock()
    if what == "train":
        with clock.running():
            TRAIN[library](texts, int(vocab_size), Path(store))
        result = {"seconds": round(clock.wall, 2), "cpu_seconds": round(clock.cpu, 2)}
    else:
        tokens = ENCODE[library](texts, int(threads), Path(store), clock)
        result = {
            "megabytes_per_second": round(megabytes / clock.wall, 2),
            "megabytes_per_cpu_second": round(megabytes / clock.cpu, 2),
            "bytes_per_token": round(megabytes * 1e6 / tokens, 3),
        }
    return {
        "what": what,
        "library": library,
        "vocab_size": int(vocab_size),
        "threads": int(threads),
        "megabytes": round(megabytes, 1),
        **result,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pattern", default="*.h", help="files to read (default: *.h)")
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[8192, 32768])
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args)), flush=True)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for vocab_size in args.vocab_sizes:
            for what, libraries in (("train", TRAIN), ("encode", ENCODE)):
                for library in libraries:
                    trained = "tokenizers" if library == "tokenizers" else "rustbpe"
                    store = Path(temporary, f"{trained}-{vocab_size}")
                    for threads in (1, 2):
                        pools = dict.fromkeys(
                            ("RAYON_NUM_THREADS", "TOKENIZERS_NUM_THREADS"), str(threads)
                        )
                        own = [sys.executable, __file__, str(args.folder), "--pattern"]
                        run = [what, library, str(vocab_size), str(threads), str(store)]
                        subprocess.run(
                            [*own, args.pattern, "--measure", *run],
                            env={**os.environ, **pools},
                            check=True,
                        )


if __name__ == "__main__":
    main()
