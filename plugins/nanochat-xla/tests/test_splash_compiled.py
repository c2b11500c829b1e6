"""The kernels as a TPU gets them: exported, and compiled by libtpu for each generation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

jax = pytest.importorskip("jax", reason="jax is not here: hatch run torch-tpu:test")
jax.config.update("jax_platforms", "cpu")

from jax import export  # noqa: E402

from nanochat_xla import ahead, splash  # noqa: E402
from nanochat_xla.blocks import choose  # noqa: E402
from nanochat_xla.hardware import GENERATIONS  # noqa: E402

EXPORTED = {
    "full context": {},
    "window": {"window": 4096},
    "grouped, documents": {"kv_heads": 2, "documents": True},
    "ragged": {"length": 1000, "window": 250},
    "float32": {"dtype": "float32", "length": 2048},
}
# libtpu takes seconds for each: those of a d16 at 16K context, and what needs most on-chip memory.
COMPILED = {
    "full context": {},
    "window, documents": {"window": 4096, "documents": True},
    "float32, wide heads": {"dtype": "float32", "head_dim": 256, "heads": 2, "kv_heads": 1},
}


def kernels(
    generation,
    *,
    length=16384,
    heads=8,
    kv_heads=8,
    head_dim=128,
    window=None,
    documents=False,
    dtype="bfloat16",
):
    """Name, function, and shape and dtype of each argument, of both directions."""
    blocks = choose(generation, length, window, head_dim=head_dim, dtype=dtype)
    options = {"window": window, "scale": 0.1, "blocks": blocks}
    q = ((1, length, heads, head_dim), dtype)
    k = ((1, length, kv_heads, head_dim), dtype)
    lse = ((1, heads, length), "float32")
    ids = [((1, length), "int32")] if documents else []
    yield "forward", partial(splash.forward, **options), [q, k, k, *ids]
    yield "backward", partial(splash.backward, **options), [q, q, k, k, q, lse, *ids]


@pytest.mark.parametrize("facts", EXPORTED.values(), ids=EXPORTED)
def test_the_kernels_lower_for_tpus(facts):
    for name, function, arguments in kernels("v6e", **facts):
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arguments]
        exported = export.export(jax.jit(function), platforms=["tpu"])(*shapes)
        calls = exported.mlir_module().count("tpu_custom_call")
        assert calls == {"forward": 1, "backward": 2}[name]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_libtpu_compiles_the_kernels(generation):
    """In a process of its own, for libtpu stays loaded, and two processes may not have it."""
    if find_spec("libtpu") is None:
        pytest.skip("libtpu is not here: hatch run torch-tpu:test")
    with ahead.exclusive():
        done = subprocess.run(
            [sys.executable, __file__, generation],
            env=os.environ | ahead.environment(generation),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report) == {f"{name} {way}" for name in COMPILED for way in ("forward", "backward")}
    memory = GENERATIONS[generation].memory
    # The scores of full context would be 8 GiB in float32: no kernel may put them into memory.
    assert all(0 < temporary < 2**30 < memory for temporary in report.values()), report


def compile_all(generation: str) -> dict[str, int]:
    """Bytes of temporary memory of each kernel, as libtpu compiled it."""
    report = {}
    for name, facts in COMPILED.items():
        for way, function, arguments in kernels(generation, **facts):
            compiled = ahead.compile_for_chip(generation, function, *arguments)
            report[f"{name} {way}"] = compiled.memory_analysis().temp_size_in_bytes
    return report


if __name__ == "__main__":
    assert Path(sys.argv[0]).samefile(__file__)
    print(json.dumps(compile_all(sys.argv[1])))
