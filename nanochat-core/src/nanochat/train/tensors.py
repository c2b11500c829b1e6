"""Tensors to and from safetensors files, with failures that a command can explain.

The writer is our own because the library's reports a full disk as an error of its own kind and
flushes nothing to the disk. It holds one tensor in host memory at a time. The format is
https://huggingface.co/docs/safetensors: a length, a JSON header, then the bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.errors import NanochatError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, which `flush` brings to the disk. Raises OSError, e.g. on a full
    one."""
    header: dict[str, Any] = {}
    offset = 0
    # Widest dtypes first, so that every tensor is aligned to its own size.
    names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            host = tensors[name].detach().to("cpu").contiguous().reshape(-1)
            file.write(host.view(torch.uint8).numpy().data)


def flush(path: Path) -> None:
    """Bring what was written to a file to the disk."""
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def read_tensors(path: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file. Raises NanochatError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=str(device))
    except FileNotFoundError as error:
        raise NanochatError(f"{path} is missing", "Resume from another checkpoint") from error
    except SafetensorError as error:
        raise NanochatError(
            f"{path} is damaged: {error}", "Delete this checkpoint and resume from another"
        ) from error


def pack(value: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """Move the tensors of a nested value into `tensors`; what returns is plain and JSON-able.

    Keys of dictionaries may be strings or integers. `unpack` is the inverse.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        items = [[k, pack(v, tensors, f"{name}/{k}" if name else str(k))] for k, v in value.items()]
        if all(isinstance(k, str) for k, _ in items):
            return dict(items)
        return {"$items": items}
    if isinstance(value, (list, tuple)):
        packed = [pack(v, tensors, f"{name}/{i}" if name else str(i)) for i, v in enumerate(value)]
        return {"$tuple": packed} if isinstance(value, tuple) else packed
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put the tensors back where `pack` took them from."""
    if isinstance(value, list):
        return [unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$tensor"}:
        return tensors[value["$tensor"]]
    if set(value) == {"$items"}:
        return {k: unpack(v, tensors) for k, v in value["$items"]}
    if set(value) == {"$tuple"}:
        return tuple(unpack(v, tensors) for v in value["$tuple"])
    return {k: unpack(v, tensors) for k, v in value.items()}
