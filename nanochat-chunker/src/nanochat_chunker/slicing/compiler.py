"""What the compiler of the stated configuration says of itself: `clang14.txt`, read once."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType

from nanochat_chunker.slicing.macros import Macro


@cache
def predefined() -> Mapping[str, Macro]:
    """The macros it defines before it reads a file."""
    pairs = (line.partition(" ") for line in _sections()["macros"])
    return MappingProxyType({name: Macro(name, None, value) for name, _, value in pairs})


@cache
def known(section: str) -> Mapping[str, str]:
    """The names of one section, attributes, cpp_attributes, features or extensions, and values."""
    pairs = (line.partition("=") for line in _sections()[section])
    return MappingProxyType({name: value or "1" for name, _, value in pairs})


@cache
def _sections() -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    section: list[str] = []
    text = (
        resources.files("nanochat_chunker.slicing")
        .joinpath("clang14.txt")
        .read_text(encoding="ascii")
    )
    for line in text.splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), [])
        elif not line.startswith("#"):
            section.append(line)
    return found
