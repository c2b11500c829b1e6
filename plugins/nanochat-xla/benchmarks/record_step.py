"""Record a whole training step as torch_xla would give it to the chips of a TPU host, without them.

The step is the trainer's: the model, the runtime and the optimiser that `nanochat-train` uses, with
the Pallas kernels lowered for a TPU. It is recorded, not run, on one processor that stands for all
chips of the host. The HLO is written to --output, for `compile_step.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--chips", type=int, default=4)
    parser.add_argument("--generation", default="v6e")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--batch", type=int, default=1, help="rows a chip")
    parser.add_argument("--accumulation", type=int, default=1)
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
    """The step as a serialised HloModuleProto."""
    import torch
    import torch_xla
    import torch_xla.runtime as xr

    from nanochat.model.config import GPTConfig
    from nanochat.optim import OptimizerSettings, build_optimizer
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
    optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.28), runtime)
    optimizer.allocate()
    rows = torch.zeros(asked.chips * asked.batch, asked.length, dtype=torch.int64)
    batches = [(runtime.place(rows), runtime.place(rows)) for _ in range(asked.accumulation)]
    runtime.synchronize()

    state = [*model.parameters(), *moments(optimizer)]
    before = [torch_xla._XLAC._xla_get_tensor_id(tensor) for tensor in state]
    loss = runtime.accumulate_gradients(runtime.call_model(model), batches)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    hlo = torch_xla._XLAC._get_xla_tensors_hlo_proto([*state, loss])
    inputs = data_of([*state, loss])
    donated = {out: inputs.index(data) for out, data in enumerate(before) if data in inputs}
    print(
        f"{len(inputs)} inputs, {len(state) + 1} outputs, {len(donated)} in place", file=sys.stderr
    )
    return hlo + donation(donated)


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


def moments(optimizer: Any) -> list[Any]:
    found = [t for state in optimizer.state.values() for t in state.values()]
    for group in optimizer.param_groups:
        found += group.get("state", {}).values()
    return found


def data_of(tensors: list[Any]) -> list[int]:
    """What these tensors are computed from, as the ids of data on the device."""
    import torch_xla

    ids, _ = torch_xla._XLAC._get_tensors_xla_device_data_node(tensors)
    return list(ids)


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
