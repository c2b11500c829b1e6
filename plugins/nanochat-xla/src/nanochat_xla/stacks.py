"""The two ways from torch to a TPU, of which an environment has at most one.

`torch_xla` 2.9 is the last release of PyTorch/XLA; `torch_tpu` (TorchTPU) is its successor. They
need different versions of torch, jax and libtpu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat.backend import Requirement, Support, installed_version

Name = Literal["torch_xla", "torch_tpu"]


@dataclass(frozen=True)
class Stack:
    """One stack: the distribution that marks it and everything that must fit it."""

    name: Name
    title: str
    distribution: str
    extra: str
    requires: tuple[Requirement, ...]

    @property
    def install(self) -> str:
        return f"pip install 'nanochat-xla[{self.extra}]'"


def _stack(
    name: Name, title: str, distribution: str, extra: str, pins: Sequence[tuple[str, str]]
) -> Stack:
    remedy = f"pip install 'nanochat-xla[{extra}]' in an environment of its own"
    requires = tuple(Requirement(found, specifier, remedy) for found, specifier in pins)
    return Stack(name, title, distribution, extra, requires)


# jax 0.7.1 and 0.7.2 write kernels (Mosaic IR 8) that libtpu 0.0.21 cannot read, and torch_xla
# 2.9.0 is built against the interface of libtpu 0.0.21: see docs/tpu.md.
TORCH_XLA = _stack(
    *("torch_xla", "torch_xla", "torch_xla", "torch-xla"),
    (
        ("torch_xla", "==2.9.*"),
        ("torch", "==2.9.*"),
        ("jax", "==0.7.0"),
        ("jaxlib", "==0.7.0"),
        ("libtpu", "==0.0.21"),
    ),
)
TORCH_TPU = _stack(
    *("torch_tpu", "TorchTPU", "torch-tpu", "torch-tpu"),
    (
        ("torch-tpu", ">=0.2,<0.3"),
        ("torch", ">=2.11,<2.16"),
        ("jax", ">=0.10.2,<0.11"),
        ("libtpu", ">=0.0.52"),
    ),
)
STACKS = (TORCH_XLA, TORCH_TPU)


def installed() -> Stack | Support:
    """The stack of this environment, or a no that says what to install.

    Reads installed metadata and imports nothing of it.
    """
    found = [stack for stack in STACKS if installed_version(stack.distribution) is not None]
    if not found:
        return Support.no("neither torch_xla nor torch-tpu is installed", TORCH_XLA.install)
    if len(found) > 1:
        return Support.no(
            "torch_xla and torch-tpu are both installed, which need different versions of torch, "
            "jax and libtpu",
            "pip uninstall one of them",
        )
    (stack,) = found
    for requirement in stack.requires:
        support = requirement.check()
        if not support.ok:
            return support
    return stack
