"""A tiny corpus with a tokenizer, and `nanochat-train` called in this process."""

import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.cli.train import main
from nanochat.data.tokenizer import Tokenizer

VOCABULARY = 320
WORDS = "int float return template typename class struct void const std vector size begin".split()

TINY = (
    "--depth=2 --aspect-ratio=16 --head-dim=16 --max-seq-len=64 --device-batch-size=2 "
    "--total-batch-size=256 --num-iterations=12 --warmup-steps=2 --no-compile --device=cpu "
    "--eval-every=-1 --core-metric-every=-1 --sample-every=-1 --eval-tokens=500"
).split()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    chance = random.Random(0)

    def line() -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(3, 9))) + ";"

    return ["\n".join(line() for _ in range(chance.randint(3, 30))) for _ in range(150)]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, texts) -> Path:
    """A folder of three shards and a tokenizer. Read only."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(3):
        write_shard(folder / f"shard_{number:05d}.parquet", texts[number * 50 : (number + 1) * 50])
    Tokenizer.train(texts, VOCABULARY).save(folder)
    return folder


@pytest.fixture
def data_dir(tmp_path, corpus) -> Path:
    """A copy of the corpus that a test may spoil."""
    return Path(shutil.copytree(corpus, tmp_path / "data"))


@pytest.fixture
def train(tmp_path, corpus, monkeypatch, capsys):
    """Run nanochat-train on the corpus. Returns (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANOCHAT_DEBUG", raising=False)

    def call(*arguments: str, data: Path | None = corpus) -> tuple[int, str, str]:
        where = [f"--data-dir={data}"] if data is not None else []
        status = main([*TINY, *where, *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture(scope="session")
def whole(tmp_path_factory, corpus, losses) -> dict[int, float]:
    """The losses of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*TINY, f"--data-dir={corpus}", f"--output={folder}", "--save-every=0"]) == 0
    return losses(folder)


@pytest.fixture
def stream(tmp_path, corpus) -> Path:
    """A folder whose one training shard gives a few steps beyond what packing holds back."""
    folder = tmp_path / "stream"
    folder.mkdir()
    shutil.copy(corpus / "tokenizer.json", folder)
    write_shard(folder / "val_shard.parquet", ["int float void"] * 100)
    write_shard(folder / "a.parquet", ["const struct begin vector size"] * 1100)
    return folder


@pytest.fixture(scope="session")
def shard_writer():
    return write_shard


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    return list(TINY)


@pytest.fixture(scope="session")
def losses():
    """step -> loss of a run folder's log; a step that was recorded twice fails."""

    def read(folder: Path) -> dict[int, float]:
        found: dict[int, float] = {}
        for line in (folder / "log.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["event"] == "step":
                assert record["step"] not in found
                found[record["step"]] = record["loss"]
        return found

    return read


def write_shard(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": texts}), path)
