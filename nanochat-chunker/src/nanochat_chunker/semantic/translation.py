"""Translation units of libclang, and headers that it has read before."""

import os
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import byref, c_char_p, c_void_p
from pathlib import Path

from nanochat_chunker.semantic import bindings


@contextmanager
def translation_unit(
    path: str,
    arguments: Sequence[str],
    texts: Mapping[str, str],
    flags: int = 0,
    *,
    only_local: bool = False,
) -> Iterator[c_void_p]:
    """A unit, disposed of at the end. `texts` are files that are not on disk as they shall be read.

    `only_local`: without the declarations of precompiled headers. Raises `OSError` where libclang
    makes nothing of the unit.
    """
    library = bindings.load()
    unsaved = (bindings.UnsavedFile * len(texts))()
    for slot, (name, text) in zip(unsaved, texts.items(), strict=True):
        slot.name = _bytes(name)
        slot.contents = _bytes(text)
        slot.length = len(slot.contents)
    words = [_bytes(word) for word in arguments]
    index, handle = library.clang_createIndex(int(only_local), 0), c_void_p()
    try:
        status = library.clang_parseTranslationUnit2(
            index, _bytes(path), (c_char_p * len(words))(*words), len(words), unsaved, len(texts),
            flags, byref(handle),
        )  # fmt: skip
        if status != 0 or not handle:
            raise OSError(f"libclang gives status {status}")
        yield handle
    finally:
        if handle:
            library.clang_disposeTranslationUnit(handle)
        library.clang_disposeIndex(index)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Precompiled:
    """C++ headers that are read once, here, for this process.

    Where that does not work, `arguments` is empty: units are then read with their headers, as ever.
    The file has no name by the time it is used, so that none is left behind by a process that dies;
    its space is given back with the object.
    """

    def __init__(self, headers: Sequence[str], arguments: Sequence[str], flags: int = 0) -> None:
        self.arguments: tuple[str, ...] = ()
        if not sys.platform.startswith("linux"):
            return
        lines = (f"#if __has_include(<{name}>)\n#include <{name}>\n#endif\n" for name in headers)
        texts = {"precompiled.hh": "".join(lines)}
        words = list(arguments)
        words[words.index("-x") + 1] = "c++-header"
        flags |= bindings.INCOMPLETE | bindings.FOR_SERIALIZATION
        try:
            with (
                tempfile.TemporaryDirectory() as folder,
                translation_unit("precompiled.hh", words, texts, flags) as unit,
            ):
                file = Path(folder) / "pch"
                if _has_errors(unit) or bindings.load().clang_saveTranslationUnit(
                    unit, _bytes(str(file)), 0
                ):
                    return
                kept = os.open(file, os.O_RDONLY)
        except OSError:
            return
        weakref.finalize(self, os.close, kept)
        # It is valid: this process made it, of headers that do not change while it runs.
        valid = ("-Xclang", "-fno-validate-pch")
        self.arguments = ("-include-pch", f"/proc/self/fd/{kept}", *valid)


def _has_errors(unit: c_void_p) -> bool:
    library = bindings.load()
    for number in range(library.clang_getNumDiagnostics(unit)):
        diagnostic = library.clang_getDiagnostic(unit, number)
        severity = library.clang_getDiagnosticSeverity(diagnostic)
        library.clang_disposeDiagnostic(diagnostic)
        if severity >= bindings.ERROR:
            return True
    return False
