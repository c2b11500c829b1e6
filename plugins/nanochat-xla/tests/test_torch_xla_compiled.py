"""Programs of a training run, recorded through torch_xla and compiled for TPU v6e by libtpu.

No chip is needed. The last test compiles the d16 at 16,384 tokens, which takes some 15 minutes.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch_xla", reason="torch_xla is not installed: hatch run torch-xla:test")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = ("--depth=2", "--length=512", "--vocab=2048")
MEMORY = 32e9
"""Of a v6e, in bytes; its runtime keeps some of the 32 GiB for itself."""


def script(name: str, *arguments: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "PJRT_", "TPU_"))}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *arguments],
        env=kept,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What libtpu says of a program, by the arguments of `record_step.py`."""
    folder = tmp_path_factory.mktemp("programs")

    @cache
    def of(program: str, *arguments: str, chips: int = 4) -> dict[str, Any]:
        hlo = folder / "program.pb"
        script(
            "record_step.py",
            *(f"--program={program}", f"--chips={chips}", f"--output={hlo}", *arguments),
        )
        told = script("compile_step.py", str(hlo), f"--chips={chips}")
        print(program, *arguments, told)  # pytest -rP shows it
        return json.loads(told)

    return of


@pytest.mark.parametrize("chips", [1, 4])
@pytest.mark.parametrize(
    ("program", "kernels"),
    [
        ("gradients", 6),
        ("accumulate", 6),
        ("update", 0),
        ("evaluate", 2),
        ("fill", 0),
        ("decode", 0),
    ],
)
def test_every_program_compiles(compiled, program, kernels, chips):
    """Each layer has three attention kernels; what chips tell each other is left to the update."""
    found = compiled(program, *SMALL, chips=chips)
    assert found["kernels"] == kernels
    assert (found["reductions"] > 0) == (program == "update" and chips > 1)


def test_attention_counted_in_the_compiled_program_is_that_of_its_masks(compiled):
    from nanochat.model.config import GPTConfig
    from nanochat_xla.operations import attention_operations

    config = GPTConfig.from_depth(2, vocab_size=512, sequence_len=1024, window_pattern="SL")
    found = compiled("gradients", "--depth=2", "--length=1024", "--vocab=512", "--pattern=SL")
    assert None in config.windows
    assert len(set(config.windows)) == 2
    expected = attention_operations(
        "v6e",
        batch=1,
        length=1024,
        heads=config.n_head,
        head_dim=config.head_dim,
        windows=config.windows,
    )
    assert found["attention"] == expected.total


@pytest.mark.parametrize(("loss", "holds"), [("chunked", False), ("torch", True)])
def test_the_logits_of_16k_tokens_are_never_whole(tmp_path, loss, holds):
    length, vocab = 16384, 65536
    script(
        "record_step.py",
        *("--depth=1", "--chips=1", f"--loss={loss}", f"--output={tmp_path / 'step.pb'}"),
        *(f"--length={length}", f"--vocab={vocab}"),
    )
    import jax._src.lib as lib

    hlo = (tmp_path / "step.pb").read_bytes()
    text = lib.xla_client.XlaComputation(hlo).as_hlo_text()
    shapes = {tuple(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", text)}
    whole = [shape for shape in shapes if math.prod(shape) >= length * vocab]
    assert bool(whole) == holds, whole


def test_the_d16_at_16k_fits_a_v6e_and_windows_save_attention(compiled):
    """A row a chip on v6e 2x2. A step is the gradients and the update."""
    full, windows = (compiled("gradients", f"--pattern={pattern}") for pattern in ("L", "SSSL"))
    update = compiled("update")
    # While gradients are made (as large as the weights), the optimiser's state lies beside them.
    state = update["arguments"] - 2 * full["made"]
    assert state > full["made"]
    for program in (full, windows):
        assert program["peak"] + state < MEMORY, program
    assert update["peak"] < MEMORY, update
    assert full["kernels"] == windows["kernels"] == 48
    assert windows["attention"] <= 0.6 * full["attention"]
