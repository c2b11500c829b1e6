"""Compile a recorded step for a TPU by libtpu, and say what memory and operations it takes."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from nanochat_xla import ahead
from nanochat_xla.hardware import GENERATIONS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hlo", type=Path)
    parser.add_argument("--generation", default="v6e", choices=sorted(GENERATIONS))
    parser.add_argument("--chips", type=int, default=4, help="as the step was recorded for")
    parser.add_argument("--keep", type=Path, help="write the compiled HLO here")
    asked = parser.parse_args()
    os.environ.update(ahead.environment(asked.generation))
    with ahead.exclusive():
        print(json.dumps(compile_step(asked)))
    return 0


def compile_step(asked: Any) -> dict[str, Any]:
    """Memory of a chip in bytes, operations and bytes moved of the compiled program.

    libtpu 0.0.21 aborts when it is asked for its own estimate of a program that has no chip, so
    XLA's general one counts: every operation outside of the Pallas kernels, and what each fusion
    reads and writes.
    """
    import jax
    import numpy as np
    from jax._src import compiler
    from jax._src.lib import xla_client

    from nanochat_xla.operations import compiled_operations

    chips = ahead.topology(asked.generation).devices[: asked.chips]
    client = chips[0].client
    computation = xla_client.XlaComputation(asked.hlo.read_bytes())
    module = xla_client._xla.mlir.xla_computation_to_mlir_module(computation)
    # torch_xla annotates for the older partitioner.
    jax.config.update("jax_use_shardy_partitioner", False)
    options = compiler.get_compile_options(
        num_replicas=1,
        num_partitions=len(chips),
        device_assignment=np.array([[chip.id for chip in chips]]),
        use_spmd_partitioning=len(chips) > 1,
        backend=client,
    )
    # As torch_xla does: what is sharded stays so on its way out.
    options.executable_build_options.allow_spmd_sharding_propagation_to_output = [True]
    text = module.encode() if isinstance(module, str) else module
    compiled = client.compile(text, xla_client.DeviceList(tuple(chips)), options)
    memory = compiled.get_compiled_memory_stats()
    (optimized,) = compiled.hlo_modules()
    program = optimized.to_string()
    with_constants = xla_client._xla.HloPrintOptions()
    with_constants.print_large_constants = True
    if asked.keep:
        asked.keep.write_text(program)
    arguments = memory.argument_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    counted = estimate(optimized)
    attention = compiled_operations(optimized.to_string(with_constants)).total
    chip = GENERATIONS[asked.generation]
    return {
        "generation": asked.generation,
        "chips": len(chips),
        "arguments": arguments,
        "made": fresh,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "peak": arguments + fresh + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        "kernels": program.count('custom_call_target="tpu_custom_call"'),
        "reductions": len(re.findall(r" all-reduce(?:-start)?\(", program)),
        "attention": attention,
        **counted,
        "ms by operations": 1e3 * (counted["flops"] + attention) / chip.flops,
        "ms by bytes": 1e3 * counted["bytes"] / chip.bandwidth,
        "cycles": sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', program))),
    }


def estimate(program: Any) -> dict[str, float]:
    """What XLA's general cost analysis counts on one chip."""
    import jax
    from jax._src.lib import xla_client

    properties = xla_client._xla.hlo_module_cost_analysis(jax.devices("cpu")[0].client, program)
    return {"flops": properties["flops"], "bytes": properties["bytes accessed"]}


if __name__ == "__main__":
    sys.exit(main())
