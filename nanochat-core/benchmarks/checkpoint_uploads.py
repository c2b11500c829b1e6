"""Times the upload of a checkpoint, and what saving with and without an upload costs the training.

    python checkpoint_uploads.py --depth 12                         # to a folder
    python checkpoint_uploads.py --depth 12 --bucket gs://BUCKET/PREFIX
    python checkpoint_uploads.py --depth 12 --fake-gcs              # gcsfs, a server on localhost
    python checkpoint_uploads.py stall --depth 8

The first saves a model of that depth with its optimiser's state, uploads it and brings it back,
several times. `stall` trains on random tokens, on one thread, in rounds of three spans of steps:
without a save, with a save before it, and with a save that is uploaded meanwhile. It prints the
medians over the rounds; their ratios within one run are what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FAKE = Path(__file__).parents[1] / "tests" / "train" / "remote" / "conftest.py"
SERVE = """
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("fake", sys.argv[1])
fake = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fake)
with fake.FakeGCS() as server:
    print(server.host, flush=True)
    time.sleep(3600)
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["upload", "stall"], default="upload")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--bucket", help="an fsspec address (default: a temporary folder)")
    parser.add_argument("--fake-gcs", action="store_true", help="a server in a process of its own")
    parser.add_argument("--folder", type=Path, help="where checkpoints are saved first")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6, help="stall: steps of a span")
    return parser.parse_args()


def build(depth: int, vocab: int, length: int):
    import torch

    from nanochat.builtin.attention import Sdpa
    from nanochat.builtin.loss import Chunked
    from nanochat.model.config import GPTConfig
    from nanochat.model.gpt import GPT
    from nanochat.optim import OptimizerSettings, build_optimizer
    from nanochat.runtime import Runtime

    runtime = Runtime(torch.device("cpu"), torch.float32)
    attention, loss = Sdpa(), Chunked()
    for backend in (attention, loss):
        backend.load()
    config = GPTConfig.from_depth(depth, vocab_size=vocab, sequence_len=length, window_pattern="L")
    with torch.device("meta"):
        model = GPT(config, attention=attention, loss=loss, dtype=torch.float32)
    model.initialize(runtime.device)
    return model, build_optimizer(model, OptimizerSettings(), runtime, compile=False)


def one_step(model, optimizer, length: int) -> None:
    import torch

    tokens = torch.randint(model.config.vocab_size, (1, length + 1))
    model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def time_upload(args: argparse.Namespace, folder: Path, bucket: str) -> None:
    from nanochat.train import checkpoint
    from nanochat.train.remote import RemoteRun, fetch
    from nanochat.train.transfer import Transfer

    model, optimizer = build(args.depth, args.vocab, 64)
    one_step(model, optimizer, 64)
    began = time.perf_counter()
    place = checkpoint.save(folder, 1, model.state_dict(), optimizer.state_dict(), {"step": 1})
    saved = time.perf_counter() - began
    size = sum(p.stat().st_size for p in place.iterdir())
    del model, optimizer
    remote = RemoteRun(bucket, "benchmark")
    remote.probe()
    up, down, processor = [], [], []
    for _ in range(args.rounds):
        began, used = time.perf_counter(), time.process_time()
        remote.upload(remote.open(1, place), Transfer())
        up.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
        began = time.perf_counter()
        fetch(remote, 1, folder / "back", lambda _: None)
        down.append(time.perf_counter() - began)
        shutil.rmtree(folder / "back")
        remote._delete(1, remote._listing()[1])
    report = {
        "depth": args.depth,
        "MB": round(size / 1e6),
        "save_s": round(saved, 2),
        "upload_s": [round(s, 2) for s in sorted(up)],
        "upload_cpu_s": round(statistics.median(processor), 2),
        "upload_MB_per_s": round(size / 1e6 / statistics.median(up)),
        "download_s": [round(s, 2) for s in sorted(down)],
        "download_MB_per_s": round(size / 1e6 / statistics.median(down)),
    }
    print(json.dumps(report))


def time_stall(args: argparse.Namespace, folder: Path, bucket: str) -> None:
    import torch

    from nanochat.train import checkpoint
    from nanochat.train.remote import RemoteRun
    from nanochat.train.stopping import StopRequest
    from nanochat.train.uploads import Uploads

    torch.set_num_threads(1)
    length = 128
    model, optimizer = build(args.depth, args.vocab, length)
    uploads = Uploads(
        RemoteRun(bucket, "benchmark"), folder / "log", lambda _: None, StopRequest(cuts=False)
    )
    one_step(model, optimizer, length)
    spans: dict[str, list[float]] = {"none": [], "saved": [], "uploaded": []}
    saves: dict[str, list[float]] = {"saved": [], "uploaded": []}
    in_flight = []
    step = 0
    for _ in range(args.rounds):
        for kind, times in spans.items():
            step += 1
            if kind != "none":
                began = time.perf_counter()
                place = checkpoint.save(
                    folder,
                    step,
                    model.state_dict(),
                    optimizer.state_dict(),
                    {"step": step},
                    keep=2,
                    written=uploads.add if kind == "uploaded" else None,
                )
                saves[kind].append(time.perf_counter() - began)
            began = time.perf_counter()
            for _ in range(args.steps):
                one_step(model, optimizer, length)
            times.append((time.perf_counter() - began) / args.steps)
            if kind == "uploaded":
                while uploads._waiting is not None or uploads._sending is not None:
                    time.sleep(0.01)
                in_flight.append(float(uploads.done.told.split(" in ")[1].split("s")[0]))
    uploads.finish()
    median = {kind: statistics.median(times) for kind, times in spans.items()}
    report = {
        "depth": args.depth,
        "MB": round(sum(p.stat().st_size for p in place.iterdir()) / 1e6),
        "step_s": {kind: round(value, 3) for kind, value in median.items()},
        "step_ratio_saved": round(median["saved"] / median["none"], 3),
        "step_ratio_uploaded": round(median["uploaded"] / median["none"], 3),
        "save_s": {kind: round(statistics.median(times), 3) for kind, times in saves.items()},
        "upload_s": round(statistics.median(in_flight), 2),
        "span_s": round(median["uploaded"] * args.steps, 2),
    }
    print(json.dumps(report))


def main() -> None:
    args = parse()
    server = None
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary)
        bucket = args.bucket or (folder / "bucket").as_uri()
        if args.fake_gcs:
            server = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(FAKE)], stdout=subprocess.PIPE, text=True
            )
            os.environ["STORAGE_EMULATOR_HOST"] = f"http://{server.stdout.readline().strip()}"
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
            os.environ.setdefault("NO_GCE_CHECK", "true")
            bucket = "gs://bucket"
        try:
            (time_stall if args.what == "stall" else time_upload)(args, folder / "run", bucket)
        finally:
            if server is not None:
                server.terminate()


if __name__ == "__main__":
    main()
