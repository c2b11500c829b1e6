"""Record a program of a training run as torch_xla would give it to the chips, without them.

It is the trainer's: the model, the runtime and the optimiser that `nanochat-train` uses, with the
Pallas kernels lowered for a TPU. It is recorded, not run, on one processor that stands for all
chips of the host. The HLO is written to --output, for `compile_step.py`.

A step is `gradients` and then `update`; with several micro-batches it is `accumulate` for each of
them and then `update`. `evaluate` is the loss of each token without gradients, `fill` and `decode`
read a prompt and make one token.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES, PROMPT, ROOM = 1, 64, 256
"""Rows, tokens of the prompt and positions of the cache in `fill` and `decode`."""


@dataclass
class Recorded:
    """Tensors that a program makes, and those that it changes in place, as they were before."""

    made: list[Tensor] = field(default_factory=list)
    changed: list[Tensor] = field(default_factory=list)
    before: list[int] = field(default_factory=list)

    def changes(self, tensors: list[Tensor]) -> None:
        import torch_xla

        self.changed = tensors
        self.before = [torch_xla._XLAC._xla_get_tensor_id(tensor) for tensor in tensors]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--program", default="gradients", choices=sorted(PROGRAMS))
    parser.add_argument("--chips", type=int, default=4)
    parser.add_argument("--generation", default="v6e")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=1, help="rows a chip")
    parser.add_argument("--vocab", type=int, default=65536)
    parser.add_argument("--pattern", default="L")
    parser.add_argument("--loss", default="chunked", choices=["chunked", "torch"])
    asked = parser.parse_args()
    os.environ.update(
        PJRT_DEVICE="CPU", CPU_NUM_DEVICES="1", XLA_NO_SPECIAL_SCALARS="1", JAX_PLATFORMS="cpu"
    )
    asked.output.write_bytes(record(asked))
    return 0


def record(asked: Any) -> bytes:
    """The program as a serialised HloModuleProto."""
    import torch
    import torch_xla
    import torch_xla.runtime as xr

    from nanochat.model.config import GPTConfig
    from nanochat_xla.torch_xla_runtime import TorchXlaRuntime

    if asked.chips > 1:
        xr.use_spmd()
    # Tensors that all chips hold whole would take the memory of every one of them here.
    xr.global_runtime_device_count = lambda: asked.chips
    runtime = TorchXlaRuntime(torch_xla.device(), torch.bfloat16, devices=asked.chips)
    config = GPTConfig.from_depth(
        asked.depth,
        vocab_size=asked.vocab,
        sequence_len=asked.length,
        window_pattern=asked.pattern,
    )
    model = build(config, asked, runtime)
    recorded = PROGRAMS[asked.program](model, runtime, asked)
    outputs = [*recorded.changed, *recorded.made]
    inputs, _ = torch_xla._XLAC._get_tensors_xla_device_data_node(outputs)
    places = {o: inputs.index(data) for o, data in enumerate(recorded.before) if data in inputs}
    told = f"{len(inputs)} inputs, {len(outputs)} outputs, {len(places)} in place"
    print(told, file=sys.stderr)
    return torch_xla._XLAC._get_xla_tensors_hlo_proto(outputs) + donation(places)


def build(config: Any, asked: Any, runtime: Any) -> Any:
    """The model with zeros for weights: only shapes matter."""
    import torch

    from nanochat.builtin.loss import Chunked, Torch
    from nanochat.model.gpt import GPT
    from nanochat_xla import bridge_torch_xla
    from nanochat_xla.attention import Pallas

    attention = Pallas()
    attention._operators = bridge_torch_xla.operators(asked.generation, "tpu")
    loss = {"chunked": Chunked, "torch": Torch}[asked.loss]()
    loss.load()
    with torch.device("meta"):
        model = GPT(config, attention=attention, loss=loss, dtype=runtime.dtype)
    model.initialize = lambda device: zeros(model, device)  # type: ignore[method-assign]
    runtime.materialize(model)
    return model


def zeros(model: Any, device: Any) -> None:
    import torch

    from nanochat.fused.heads import rotary_table
    from nanochat.model.gpt import ROTARY_LENGTH_FACTOR

    config = model.config
    model.to_empty(device=device)
    length = ROTARY_LENGTH_FACTOR * config.sequence_len
    model.rotary = rotary_table(length, config.head_dim, config.rope_base, torch.device(device))


def batch(runtime: Any, asked: Any) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one micro-batch of all chips."""
    import torch

    rows = torch.zeros(asked.chips * asked.batch, asked.length, dtype=torch.int64)
    return runtime.place(rows), runtime.place(rows)


def keep_zeros(model: Any, runtime: Any) -> list[Tensor]:
    """Gradients of every chip, as if a backward pass had left them."""
    import torch

    kept = []
    for name, param in model.named_parameters():
        shape = (runtime.devices, *param.shape) if runtime.mesh else tuple(param.shape)
        zero = torch.zeros(1, dtype=param.dtype).expand(shape)
        if runtime.mesh:
            runtime.call_model(model)._sums[name] = tensor = runtime.place(zero)
        else:
            param.grad = tensor = runtime.place(zero)
        kept.append(tensor)
    return kept


def gradients(model: Any, runtime: Any, asked: Any) -> Recorded:
    return learn(model, runtime, asked, Recorded())


def accumulate(model: Any, runtime: Any, asked: Any) -> Recorded:
    found = Recorded()
    found.changes(keep_zeros(model, runtime))
    return learn(model, runtime, asked, found)


def learn(model: Any, runtime: Any, asked: Any, found: Recorded) -> Recorded:
    import torch

    micro_batch, call = batch(runtime, asked), runtime.call_model(model)
    share = runtime.place_whole(torch.tensor(1.0))
    runtime.synchronize()
    found.made.append(runtime._learn(call, *micro_batch, share))
    if not found.changed:
        grads = call._sums.values() if runtime.mesh else (p.grad for p in model.parameters())
        found.made += grads
    return found


def update(model: Any, runtime: Any, asked: Any) -> Recorded:
    from nanochat.optim import OptimizerSettings, build_optimizer

    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.28), runtime)
    optimizer.allocate()
    moments = [t for state in optimizer.state.values() for t in state.values()]
    for group in optimizer.param_groups:
        moments += group.get("state", {}).values()
    runtime.synchronize()
    found = Recorded()
    found.changes([*model.parameters(), *moments])
    keep_zeros(model, runtime)
    runtime.call_model(model).reduce()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return found


def evaluate(model: Any, runtime: Any, asked: Any) -> Recorded:
    import torch

    rows = batch(runtime, asked)
    runtime.synchronize()
    with torch.no_grad():
        if runtime.mesh:
            losses, _ = runtime.call_model(model).without_gradients(*rows, reduction="none")
        else:
            losses = model(*rows, reduction="none")
    return Recorded([losses])


def fill(model: Any, runtime: Any, asked: Any) -> Recorded:
    import torch

    from nanochat.generate.engine import Engine

    count = PROMPT - 4
    prompt = runtime.place_whole(torch.zeros(1, PROMPT, dtype=torch.int64))
    expected = count, runtime.place_whole(torch.tensor([count]))
    runtime.synchronize()
    with torch.no_grad():
        cache = Engine(model, _NoTokenizer(), runtime)._fill(prompt, SAMPLES, ROOM, expected)
    return Recorded([cache.keys, cache.values, cache.lengths, cache.last_embedding])


def decode(model: Any, runtime: Any, asked: Any) -> Recorded:
    import torch

    from nanochat.generate.engine import Engine
    from nanochat.model.cache import KVCache

    cache = KVCache(model.config, SAMPLES, ROOM, torch.device("cpu"), runtime.dtype)
    parts = ("keys", "values", "lengths", "last_embedding")
    for part in parts:
        setattr(cache, part, runtime.place_whole(getattr(cache, part)))
    last = runtime.place_whole(torch.zeros(SAMPLES, dtype=torch.int64))
    runtime.synchronize()
    found = Recorded()
    found.changes([cache.keys, cache.values, cache.lengths])
    with torch.no_grad():
        logits = Engine(model, _NoTokenizer(), runtime)._decode(last, cache)
    found.made = [logits, cache.last_embedding]
    return found


class _NoTokenizer:
    bos_id = 0

    def special(self, name: str) -> int:
        raise KeyError(name)


PROGRAMS: dict[str, Callable[[Any, Any, Any], Recorded]] = {
    made.__name__: made for made in (gradients, accumulate, update, evaluate, fill, decode)
}


def donation(places: dict[int, int]) -> bytes:
    """The field `input_output_alias` of an HloModuleProto: outputs that take an input's memory.

    torch_xla adds it when it runs a program: what is updated in place needs no second place.
    """

    def number(field: int, value: int) -> bytes:
        return varint(field << 3) + varint(value)

    def message(field: int, content: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(content)) + content

    may_alias = 1
    entries = b"".join(
        message(1, message(1, varint(out)) + number(2, place) + number(4, may_alias))
        for out, place in places.items()
    )
    return message(8, entries)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


if __name__ == "__main__":
    sys.exit(main())
