"""Finding TPU chips without any library, and what is known of each generation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KIND = "tpu"
HOST_KIND = "xla"
"""The kind of a target that is the processor behind torch_xla (`PJRT_DEVICE=CPU`), for tests."""

PCI_DEVICES = Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"


@dataclass(frozen=True)
class Generation:
    """A kind of chip: bytes of memory, its bandwidth a second, dense bfloat16 operations a second.

    Source: the system architecture pages of Cloud TPU. `topology` names one host of it to libtpu
    (`jax.experimental.topologies`), `accelerator_type` is the value of TPU_ACCELERATOR_TYPE.
    """

    name: str
    flops: float
    memory: int
    bandwidth: float
    topology: str
    accelerator_type: str


GENERATIONS = {
    g.name: g
    for g in (
        Generation("v5e", 197e12, 16 * 2**30, 819e9, "v5e:2x2", "v5litepod-4"),
        Generation("v5p", 459e12, 95 * 2**30, 2765e9, "v5p:2x2x1", "v5p-8"),
        Generation("v6e", 918e12, 32 * 2**30, 1640e9, "v6e:2x2", "v6e-4"),
    )
}

# PCI device ids of Google's accelerators, as the Linux driver and jax know them.
CHIPS = {"0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e"}
OTHER_CHIPS = {"0x0027": "v3", "0x0056": "plc", "0x005e": "v4", "0x0076": "7x"}


def find_chips(devices: Path = PCI_DEVICES) -> tuple[str, ...]:
    """The generation of each TPU chip on this host, from the files of its PCI bus."""
    known = {**CHIPS, **OTHER_CHIPS}
    found = []
    for vendor in sorted(devices.glob("*/vendor")):
        try:
            if vendor.read_text().strip() != GOOGLE:
                continue
            chip = known.get((vendor.parent / "device").read_text().strip())
        except OSError:  # a device that went away
            continue
        if chip is not None:
            found.append(chip)
    return tuple(found)
