from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Run:
    """A run folder with checkpoints of steps 5 and 10, and the validation data that it names."""

    folder: Path
    data: Path

    @property
    def newest(self) -> Path:
        return self.folder / "checkpoints" / "step_000010"


TEXTS = [f"int f{n}(int x) {{ return x + {n}; }}  // für {n} €\n" for n in range(400)]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small model with random weights; made once, so tests must not write into it."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import torch

    from nanochat.builtin.attention import Sdpa
    from nanochat.builtin.loss import Torch
    from nanochat.data.tokenizer import Tokenizer
    from nanochat.model.config import GPTConfig
    from nanochat.model.gpt import GPT
    from nanochat.train import checkpoint

    root = tmp_path_factory.mktemp("tiny")
    run = Run(root / "runs" / "tiny", root / "data")
    run.data.mkdir()
    for shard in range(2):
        table = pa.table({"text": TEXTS[shard::2]})
        pq.write_table(table, run.data / f"shard_{shard:05d}.parquet")
    tokenizer = Tokenizer.train(TEXTS, 300)
    tokenizer.save(run.folder)
    config = GPTConfig(
        sequence_len=32,
        vocab_size=tokenizer.vocab_size,
        n_layer=2,
        n_head=2,
        n_kv_head=1,
        n_embd=32,
        window_pattern="L",
    )
    with torch.device("meta"):
        model = GPT(config, attention=Sdpa(), loss=Torch(), dtype=torch.float32)
    for step in (5, 10):
        torch.manual_seed(step)
        model.initialize("cpu")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 2:
                    weight.normal_(std=weight.size(1) ** -0.5)
        meta = {
            "step": step,
            "model": asdict(config),
            "tokenizer": tokenizer.fingerprint,
            "settings": {"data_dir": str(run.data), "eval_tokens": 640, "device_batch_size": 2},
        }
        checkpoint.save(run.folder / "checkpoints", step, model.state_dict(), None, meta)
    return run
