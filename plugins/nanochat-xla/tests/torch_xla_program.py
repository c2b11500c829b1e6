"""A small model trained, evaluated and sampled on torch_xla's CPU devices and on the core's CPU.

Run by test_torch_xla.py in a process of its own, as the number of devices is settled once for each.
Prints what both computed, and how many programs torch_xla compiled on the way, as JSON.
"""

from __future__ import annotations

import json
from typing import Any

import torch
import torch_xla.debug.metrics as metrics

from nanochat.builtin.attention import Sdpa
from nanochat.builtin.loss import Chunked
from nanochat.builtin.runtimes import CpuRuntime
from nanochat.evaluate.bpb import bits_per_byte
from nanochat.generate.engine import Engine
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.optim import OptimizerSettings, Schedule, build_optimizer
from nanochat.runtime import Runtime
from nanochat_xla.device import Tpu

CONFIG = GPTConfig(sequence_len=64, vocab_size=320, n_layer=3, n_head=4, n_kv_head=2, n_embd=64)
"""Of three layers: with two, the middle one is the last, and the gradient of its backout is all
rounding."""
STEPS, ROWS = 6, 4


class Bytes:
    """A tokenizer of which decoding needs nothing but the special tokens."""

    bos_id = 0

    def encode(self, text: str) -> list[int]:
        return [1 + byte for byte in text.encode()]

    def decode(self, ids: list[int]) -> str:
        return bytes(i - 1 for i in ids).decode(errors="replace")

    def special(self, name: str) -> int:
        raise KeyError(name)


def compiled() -> int:
    """Programs that torch_xla has compiled so far."""
    return metrics.counter_value("UncachedCompile") or 0


def build(runtime: Runtime) -> GPT:
    """Random weights everywhere: of a gradient that is all rounding AdamW makes large steps."""
    attention, loss = Sdpa(), Chunked()
    attention.load()
    loss.load()
    with torch.device("meta"):
        model = GPT(CONFIG, attention=attention, loss=loss, dtype=torch.float32)
    runtime.seed(0)
    runtime.materialize(model)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(runtime.place_whole(0.05 * torch.randn(param.shape, generator=chance)))
    return model


def train(runtime: Runtime, model: GPT) -> dict[str, Any]:
    """As the loop does, with everything moving that a schedule moves."""
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.1), runtime, compile=False)
    optimizer.allocate()
    schedule = Schedule(num_iterations=STEPS, warmup_steps=3, weight_decay=0.1)
    call = runtime.call_model(model)

    def update(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        loss = runtime.accumulate_gradients(call, batches)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    step = runtime.compile_step(update)
    chance = torch.Generator().manual_seed(2)
    losses, programs, rates = [], [], []
    for number in range(STEPS):
        batches = [
            tuple(
                runtime.place(t)
                for t in torch.randint(320, (2, ROWS, 64), generator=chance).unbind()
            )
            for _ in range(2)
        ]
        rates.append(schedule.apply(optimizer, number))
        losses.append(float(step(batches)))
        programs.append(compiled())
    return {
        "losses": losses,
        "programs": programs,
        "rates": rates,
        "state": optimizer.state_dict(),
        "optimizer": optimizer,
    }


def evaluate(runtime: Runtime, model: GPT) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(3)
    batches = [torch.randint(320, (2, ROWS, 64), generator=chance).unbind() for _ in range(5)]
    sizes = torch.randint(0, 5, (320,), generator=chance)
    bpb = bits_per_byte(runtime.call_model(model), batches, sizes, runtime)
    before = compiled()
    again = bits_per_byte(runtime.call_model(model), batches, sizes, runtime)
    return {"bpb": [bpb, again], "programs": compiled() - before}


def sample(runtime: Runtime, model: GPT) -> dict[str, Any]:
    model.eval()
    engine, programs, texts = Engine(model, Bytes(), runtime), [], []
    for prompt in ("a short one", "another prompt, somewhat longer"):
        before = compiled()
        ids = [0, *engine.tokenizer.encode(prompt)]
        texts.append(engine.generate(ids, max_tokens=12, temperature=0.0, num_samples=2))
        programs.append(compiled() - before)
    return {"tokens": texts, "programs": programs}


def relative(mine: torch.Tensor, other: torch.Tensor) -> float:
    mine, other = mine.detach().cpu().float(), other.detach().cpu().float()
    return float((mine - other).norm() / other.norm().clamp(min=1e-12))


def main() -> None:
    target = Tpu().probe()
    assert target is not None
    report: dict[str, Any] = {"target": str(target)}
    runtimes = {"cpu": CpuRuntime.start(None), "xla": Tpu().setup(target)}
    models, trained = {}, {}
    for name, runtime in runtimes.items():
        models[name] = build(runtime)
        trained[name] = train(runtime, models[name])
        report[name] = {k: trained[name][k] for k in ("losses", "programs", "rates")}
    others = dict(models["cpu"].named_parameters())
    report["weights"] = {n: relative(p, others[n]) for n, p in models["xla"].named_parameters()}
    report["moments"] = {
        n: relative(t, trained["cpu"]["state"][n]) for n, t in trained["xla"]["state"].items()
    }
    # What follows is of the same weights on both, and of what a checkpoint would carry.
    models["xla"].load_state_dict(models["cpu"].state_dict())
    trained["xla"]["optimizer"].load_state_dict(trained["cpu"]["state"])
    report["restored"] = {
        n: relative(t, trained["cpu"]["state"][n])
        for n, t in trained["xla"]["optimizer"].state_dict().items()
    }
    for name, runtime in runtimes.items():
        report[name]["evaluate"] = evaluate(runtime, models[name])
        report[name]["sample"] = sample(runtime, models[name])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
