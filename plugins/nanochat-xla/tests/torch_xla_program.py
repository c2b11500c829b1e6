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
from nanochat.evaluate.core_metric import _greedy_matches, _mean_losses
from nanochat.evaluate.core_prompts import Span
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
EPS = 1e-4
"""AdamW's, 1e-10 in training: with that a gradient which is all rounding makes a step of full size,
and single numbers of a table come out 1e-3 apart where all gradients agree to 1e-6."""


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


def batch(runtime: Runtime, chance: torch.Generator) -> tuple[torch.Tensor, ...]:
    rows = torch.randint(320, (2, ROWS, 64), generator=chance)
    return tuple(runtime.place(tensor) for tensor in rows.unbind())


def gradients(runtime: Runtime, model: GPT) -> dict[str, torch.Tensor]:
    """Of the mean loss of two micro-batches."""
    chance = torch.Generator().manual_seed(5)
    runtime.accumulate_gradients(
        runtime.call_model(model), [batch(runtime, chance) for _ in range(2)]
    )
    found = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def train(runtime: Runtime, model: GPT) -> dict[str, Any]:
    """As the loop does, with everything moving that a schedule moves."""
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.1), runtime, compile=False)
    optimizer.allocate()
    for group in optimizer.param_groups:
        if group["kind"] == "adamw":
            group["eps"] = EPS
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
    start = compiled()
    for number in range(STEPS):
        batches = [batch(runtime, chance) for _ in range(2)]
        rates.append(schedule.apply(optimizer, number))
        losses.append(float(step(batches)))
        programs.append(compiled() - start)
    before = compiled()
    step([batch(runtime, chance) for _ in range(4)])
    return {
        "losses": losses,
        "programs": programs,
        "more": compiled() - before,
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


def score(runtime: Runtime, model: GPT) -> dict[str, Any]:
    """What the CORE metric asks of a model: mean losses of spans, and greedy continuations."""
    chance = torch.Generator().manual_seed(4)
    spans = []
    for length in (9, 40, 64, 150):
        tokens = torch.randint(320, (length,), generator=chance).tolist()
        spans.append(Span(tokens, length // 2, length))
    predicted = runtime.call_model(model)
    tokens = torch.tensor([spans[2].tokens] * ROWS)
    with runtime.no_grad():
        likely = predicted(runtime.place(tokens)).argmax(-1).cpu()[0].tolist()
    greedy = Span([*spans[2].tokens[:32], likely[31]], 32, 33)
    return {
        "losses": _mean_losses(model, spans, 0, runtime),
        "matches": _greedy_matches(model, [greedy, *spans], 0, runtime),
    }


def sample(runtime: Runtime, model: GPT) -> dict[str, Any]:
    model.eval()
    engine, programs, texts = Engine(model, Bytes(), runtime), [], []
    for prompt in ("a short one", "another prompt, somewhat longer"):
        before = compiled()
        ids = [0, *engine.tokenizer.encode(prompt)]
        texts.append(engine.generate(ids, max_tokens=12, temperature=0.0, num_samples=2))
        programs.append(compiled() - before)
    return {"tokens": texts, "programs": programs}


def relative(mine: torch.Tensor, other: torch.Tensor, moved: torch.Tensor | None = None) -> float:
    """The difference over the size of the other, or over how far it moved: a weight may move
    through zero."""
    mine, other = mine.detach().cpu().float(), other.detach().cpu().float()
    size = max(float(other.norm()), float(moved.norm()) if moved is not None else 0.0, 1e-12)
    return float((mine - other).norm()) / size


def main() -> None:
    target = Tpu().probe()
    assert target is not None
    report: dict[str, Any] = {"target": str(target)}
    runtimes = {"cpu": CpuRuntime.start(None), "xla": Tpu().setup(target)}
    models, grads, trained = {}, {}, {}
    for name, runtime in runtimes.items():
        models[name] = build(runtime)
        begun = {n: p.detach().cpu().clone() for n, p in models[name].named_parameters()}
        grads[name] = gradients(runtime, models[name])
        trained[name] = train(runtime, models[name])
        report[name] = {k: trained[name][k] for k in ("losses", "programs", "more", "rates")}
    report["gradients"] = {n: relative(g, grads["cpu"][n]) for n, g in grads["xla"].items()}
    others = dict(models["cpu"].named_parameters())
    report["weights"] = {
        name: relative(param, others[name], moved=others[name].detach() - begun[name])
        for name, param in models["xla"].named_parameters()
    }
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
        report[name]["score"] = score(runtime, models[name])
        report[name]["sample"] = sample(runtime, models[name])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
