"""Times whole training steps of nanochat-core, or of karpathy/nanochat, on one GPU.

Both packages import as `nanochat`, so each runs in a process of its own:

    python compare_karpathy.py --depth 20 --batch 32 --length 2048 --vocab 32768 --pattern L
    python compare_karpathy.py --reference CHECKOUT --depth 20 ...

A step is a forward and a backward pass over one batch of random tokens already on the GPU, the
optimiser's step and the clearing of gradients. Nothing waits for the GPU between steps. Prints one
JSON line: tokens/s (the median of several spans of steps), the peak memory allocated, and with
`--profile` where the GPU's time went.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GROUPS = {
    "attention": ("flash", "fmha", "sdpa", "attention"),
    "matmul": ("gemm", "nvjet", "cutlass", "cublas", "splitk", "xmma", "symmetric"),
    "copy": ("memcpy", "memset", "copy", "catarray"),
    "triton": ("triton",),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="a checkout of karpathy/nanochat to time")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--pattern", default="L")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--loss", default="auto")
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--fp8", action="store_true", help="the reference's --fp8")
    parser.add_argument("--spans", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument(
        "--start-when", type=Path, help="begin the timing once this file exists, to take turns"
    )
    parser.add_argument("--profile", type=int, default=0, help="how many kernels to list")
    return parser.parse_args()


def main() -> None:
    options = parse()
    build = reference if options.reference else ours
    describe, model, compiled, optimizer = build(options)
    step = stepper(model, compiled, optimizer, options)
    import torch

    began = time.perf_counter()
    for _ in range(4):
        loss = step()
    torch.cuda.synchronize()
    ready = time.perf_counter() - began
    print("ready", file=sys.stderr, flush=True)
    while options.start_when and not options.start_when.exists():
        time.sleep(0.05)
    torch.cuda.reset_peak_memory_stats()
    tokens = options.batch * options.length * options.accumulate
    rates = []
    for _ in range(options.spans):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(options.steps):
            loss = step()
        torch.cuda.synchronize()
        rates.append(tokens * options.steps / (time.perf_counter() - began))
    result = {
        **describe,
        "depth": options.depth,
        "shape": [options.batch, options.length, options.vocab],
        "pattern": options.pattern,
        "tokens_per_s": round(statistics.median(rates)),
        "spread": round((max(rates) - min(rates)) / statistics.median(rates), 4),
        "ms_per_step": round(1e3 * tokens / statistics.median(rates), 2),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "compile_s": round(ready, 1),
        "loss": round(float(loss), 4),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
    }
    print(json.dumps(result), flush=True)
    if options.profile:
        profile(step, options.profile)


def ours(options, rate: float = 1.0) -> tuple[dict, Any, Callable, Any]:
    """What was built, the model, the model compiled, its optimiser at `rate` times its rates."""
    import torch

    from nanochat.backend import AttentionProblem, LossProblem, QuantizationProblem
    from nanochat.model.config import GPTConfig
    from nanochat.model.gpt import GPT
    from nanochat.optim import OptimizerSettings, build_optimizer
    from nanochat.plan import make_plan
    from nanochat.registry import discover

    config = GPTConfig.from_depth(
        options.depth,
        vocab_size=options.vocab,
        sequence_len=options.length,
        window_pattern=options.pattern,
    )
    tokens = options.batch * options.length
    width = config.n_embd

    def problems(target, dtype):
        attention = AttentionProblem(
            device=target.kind,
            batch=options.batch,
            sequence_len=options.length,
            heads=config.n_head,
            kv_heads=config.n_kv_head,
            head_dim=config.head_dim,
            windows=tuple(dict.fromkeys(config.windows)),
            dtype=dtype,
        )
        layers = ((width, width), (4 * width, width))
        return {
            "attention": attention,
            "loss": LossProblem(target.kind, tokens, width, options.vocab, dtype, config.softcap),
            "quantization": QuantizationProblem(target.kind, tokens, layers, dtype),
        }

    asked = {hook: getattr(options, hook) for hook in ("attention", "loss", "quantization")}
    plan = make_plan(discover(), asked, problems)
    plan.load()
    runtime = plan.device.backend.setup(plan.target)
    with torch.device("meta"):
        model = GPT(
            config, attention=plan.attention.backend, loss=plan.loss.backend, dtype=runtime.dtype
        )
    model.initialize(runtime.device)
    plan.quantization.backend.prepare(model, large_enough)
    defaults = OptimizerSettings()
    settings = OptimizerSettings(
        matrix_lr=rate * defaults.matrix_lr,
        embedding_lr=rate * defaults.embedding_lr,
        unembedding_lr=rate * defaults.unembedding_lr,
        scalar_lr=rate * defaults.scalar_lr,
    )
    optimizer = build_optimizer(model, settings, runtime)
    describe = {
        "trainer": "nanochat-core",
        "plan": {choice.hook: choice.backend.name for choice in plan},
    }
    return describe, model, runtime.compile_model(model), optimizer


def large_enough(name: str, module) -> bool:
    smallest = min(module.in_features, module.out_features)
    divides = module.in_features % 16 == 0 and module.out_features % 16 == 0
    return name != "output" and smallest >= 128 and divides


def reference(options, rate: float = 1.0) -> tuple[dict, Any, Callable, Any]:
    """The same of karpathy/nanochat, whose trainer passes these rates."""
    sys.path.insert(0, str(options.reference))
    import torch

    torch.set_float32_matmul_precision("high")
    from nanochat.gpt import GPT, GPTConfig

    heads = -(-options.depth * 64 // 128)
    config = GPTConfig(
        sequence_len=options.length,
        vocab_size=options.vocab,
        n_layer=options.depth,
        n_head=heads,
        n_kv_head=heads,
        n_embd=heads * 128,
        window_pattern=options.pattern,
    )
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cuda")
    model.init_weights()
    if options.fp8:
        from nanochat.fp8 import Float8LinearConfig, convert_to_float8_training

        convert_to_float8_training(
            model,
            config=Float8LinearConfig.from_recipe_name("tensorwise"),
            module_filter_fn=lambda module, name: (
                isinstance(module, torch.nn.Linear)
                and min(module.in_features, module.out_features) >= 128
                and module.in_features % 16 == 0
                and module.out_features % 16 == 0
            ),
        )
    compiled = torch.compile(model, dynamic=False)
    optimizer = model.setup_optimizer(
        unembedding_lr=0.008 * rate,
        embedding_lr=0.3 * rate,
        matrix_lr=0.02 * rate,
        scalar_lr=0.5 * rate,
    )
    describe = {"trainer": "karpathy/nanochat", "plan": {"fp8": options.fp8}}
    return describe, model, compiled, optimizer


def stepper(model, compiled, optimizer, options: argparse.Namespace) -> Callable:
    import torch

    generator = torch.Generator("cuda").manual_seed(0)
    shape = (options.batch, options.length)
    tokens = torch.randint(options.vocab, shape, device="cuda", generator=generator)
    targets = torch.randint(options.vocab, shape, device="cuda", generator=generator)

    def step():
        for _ in range(options.accumulate):
            loss = compiled(tokens, targets)
            (loss / options.accumulate).backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def profile(step: Callable, top: int) -> None:
    """Print the share of GPU time by kind of kernel, and the kernels that took most."""
    import torch
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(3):
            step()
        torch.cuda.synchronize()
    events = [e for e in record.key_averages() if e.device_time_total > 0]
    kernels = [(e.key, e.device_time_total / 3e3, e.count / 3) for e in events]
    kernels.sort(key=lambda kernel: -kernel[1])
    groups: dict[str, float] = {}
    for name, milliseconds, _ in kernels:
        lower = name.lower()
        group = next((g for g, words in GROUPS.items() if any(w in lower for w in words)), "other")
        groups[group] = groups.get(group, 0.0) + milliseconds
    print(json.dumps({group: round(ms, 2) for group, ms in groups.items()}))
    for name, milliseconds, count in kernels[:top]:
        print(f"{milliseconds:9.3f} ms {count:7.1f} x  {name[:150]}")


if __name__ == "__main__":
    main()
