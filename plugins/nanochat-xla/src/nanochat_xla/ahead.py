"""Compiling for a TPU on a machine that has none, by libtpu: what a chip would be given.

libtpu rejects what a chip could not run, such as a kernel that needs more on-chip memory than
there is, and says how much memory a program takes. Only one process of a machine may use libtpu
at a time: `exclusive` waits for its turn.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanochat_xla.hardware import GENERATIONS


def environment(generation: str) -> dict[str, str]:
    """The variables that libtpu and jax need before they are imported, to find no chip missing."""
    return {
        "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": GENERATIONS[generation].accelerator_type,
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold the right to use libtpu, after waiting for the process of this user that has it.

    libtpu itself fails where another process has loaded it. It keeps what it loaded until the
    process ends, so that this belongs around a whole process.
    """
    path = Path(tempfile.gettempdir()) / f"nanochat-libtpu-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def topology(generation: str) -> Any:
    """The chips of one host, as devices of jax that can be compiled for and not run on."""
    from jax.experimental.topologies import get_topology_desc

    return get_topology_desc(platform="tpu", topology_name=GENERATIONS[generation].topology)


def compile_for_chip(
    generation: str, function: Callable[..., Any], *arguments: tuple[tuple[int, ...], str]
) -> Any:
    """A function of jax arrays compiled for one chip, given the shape and dtype of each argument.

    Returns jax's `Compiled`, which has `memory_analysis()`. Raises what libtpu says where it
    cannot be compiled. `environment(generation)` must have been set.
    """
    import jax
    from jax.sharding import SingleDeviceSharding

    chip = SingleDeviceSharding(topology(generation).devices[0])
    shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=chip) for shape, dtype in arguments]
    return jax.jit(function).lower(*shapes).compile()
