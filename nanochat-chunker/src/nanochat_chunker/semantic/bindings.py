"""The few functions of libclang that reading needs, by ctypes.

`clang.cindex` makes several Python objects a call and decodes each name anew, which is most of the
time where every reference of a file is asked for. Its wheel brings the library itself.
"""

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_uint, c_ulong, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nanochat_chunker.errors import UsageError

# clang-c/Index.h: enum CXTranslationUnit_Flags
DETAILED_PREPROCESSING_RECORD = 0x01
INCOMPLETE = 0x02
FOR_SERIALIZATION = 0x10
SKIP_FUNCTION_BODIES = 0x40
KEEP_GOING = 0x200
# enum CXChildVisitResult
BREAK, CONTINUE, RECURSE = 0, 1, 2
# enum CXDiagnosticSeverity
ERROR, FATAL = 3, 4


class String(ctypes.Structure):
    """CXString"""

    _fields_ = [("data", c_void_p), ("flags", c_uint)]


class Location(ctypes.Structure):
    """CXSourceLocation"""

    _fields_ = [("pointers", c_void_p * 2), ("data", c_uint)]


class Range(ctypes.Structure):
    """CXSourceRange"""

    _fields_ = [("pointers", c_void_p * 2), ("begin", c_uint), ("end", c_uint)]


class RangeList(ctypes.Structure):
    """CXSourceRangeList"""

    _fields_ = [("count", c_uint), ("ranges", POINTER(Range))]


class Cursor(ctypes.Structure):
    """CXCursor"""

    _fields_ = [("kind", c_int), ("xdata", c_int), ("data", c_void_p * 3)]


class UnsavedFile(ctypes.Structure):
    """CXUnsavedFile"""

    _fields_ = [("name", c_char_p), ("contents", c_char_p), ("length", c_ulong)]


Visitor = ctypes.CFUNCTYPE(c_int, Cursor, Cursor, c_void_p)
InclusionVisitor = ctypes.CFUNCTYPE(None, c_void_p, POINTER(Location), c_uint, c_void_p)

_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "clang_createIndex": (c_void_p, [c_int, c_int]),
    "clang_disposeIndex": (None, [c_void_p]),
    "clang_parseTranslationUnit2": (
        c_int,
        [c_void_p, c_char_p, POINTER(c_char_p), c_int, POINTER(UnsavedFile), c_uint, c_uint,
         POINTER(c_void_p)],
    ),
    "clang_disposeTranslationUnit": (None, [c_void_p]),
    "clang_saveTranslationUnit": (c_int, [c_void_p, c_char_p, c_uint]),
    "clang_getTranslationUnitCursor": (Cursor, [c_void_p]),
    "clang_visitChildren": (c_uint, [Cursor, Visitor, c_void_p]),
    "clang_getInclusions": (None, [c_void_p, InclusionVisitor, c_void_p]),
    "clang_getFile": (c_void_p, [c_void_p, c_char_p]),
    "clang_getFileName": (String, [c_void_p]),
    "clang_getIncludedFile": (c_void_p, [Cursor]),
    "clang_getSkippedRanges": (POINTER(RangeList), [c_void_p, c_void_p]),
    "clang_disposeSourceRangeList": (None, [POINTER(RangeList)]),
    "clang_getRangeStart": (Location, [Range]),
    "clang_getRangeEnd": (Location, [Range]),
    "clang_getCursorLocation": (Location, [Cursor]),
    "clang_getFileLocation": (
        None,
        [Location, POINTER(c_void_p), POINTER(c_uint), POINTER(c_uint), POINTER(c_uint)],
    ),
    "clang_getCursorReferenced": (Cursor, [Cursor]),
    "clang_getCanonicalCursor": (Cursor, [Cursor]),
    "clang_getCursorUSR": (String, [Cursor]),
    "clang_getCursorSpelling": (String, [Cursor]),
    "clang_isCursorDefinition": (c_uint, [Cursor]),
    "clang_getNumOverloadedDecls": (c_uint, [Cursor]),
    "clang_getOverloadedDecl": (Cursor, [Cursor, c_uint]),
    "clang_getNumDiagnostics": (c_uint, [c_void_p]),
    "clang_getDiagnostic": (c_void_p, [c_void_p, c_uint]),
    "clang_disposeDiagnostic": (None, [c_void_p]),
    "clang_getDiagnosticSeverity": (c_int, [c_void_p]),
    "clang_getDiagnosticLocation": (Location, [c_void_p]),
    "clang_getDiagnosticSpelling": (String, [c_void_p]),
    "clang_getCString": (c_char_p, [String]),
    "clang_disposeString": (None, [String]),
    "clang_getClangVersion": (String, []),
}  # fmt: skip


class Library:
    """libclang, loaded. Functions are attributes by their C names."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self._library, name)
            function.restype = result
            function.argtypes = arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def text(self, string: String) -> str:
        """The text of a CXString, which is disposed of."""
        found = self.clang_getCString(string)
        text = found.decode("utf-8", "surrogateescape") if found else ""
        self.clang_disposeString(string)
        return text


def library_path() -> Path | None:
    """Where the wheel `libclang` keeps the library, or None where it is not installed."""
    spec = find_spec("clang")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for name in ("libclang.so", "libclang.dylib", "libclang.dll"):
            path = Path(folder) / "native" / name
            if path.is_file():
                return path
    return None


@cache
def load() -> Library:
    """libclang, once in a process. Raises `UsageError` where it is missing or does not load."""
    path = library_path()
    if path is None:
        raise UsageError(
            "--semantic needs the package libclang, which is not installed",
            "Type: pip install 'nanochat-chunker[semantic]'",
        )
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        raise UsageError(
            f"libclang cannot be loaded: {error}",
            "Type: pip install --force-reinstall 'nanochat-chunker[semantic]'",
        ) from None


@cache
def version() -> str:
    """Such as `clang version 18.1.1`."""
    library = load()
    return library.text(library.clang_getClangVersion())
