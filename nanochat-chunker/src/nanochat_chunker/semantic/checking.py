"""Asking libclang whether a document compiles, in a process of its own that may die of it."""

import os
import pickle
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_uint, c_void_p
from typing import IO, Any, NamedTuple

from nanochat_chunker.semantic import bindings
from nanochat_chunker.semantic.arguments import stated_arguments
from nanochat_chunker.semantic.headers import builtin_headers

_SECONDS = 30.0  # of one document; the slowest of real ones takes 5
_MOST = 40  # complaints that are read; the rest follow from the first
_LENGTH = struct.Struct("<Q")


class Complaint(NamedTuple):
    """One error: the line, counted from 1, and what clang says."""

    line: int
    said: str


def complaints_of(text: str, c: bool) -> list[Complaint]:
    """The errors of a document that has nothing but system headers, in this process."""
    library = bindings.load()
    path = b"document.c" if c else b"document.cc"
    content = text.encode("utf-8", "surrogateescape")
    unsaved = (bindings.UnsavedFile * 1)(bindings.UnsavedFile(path, content, len(content)))
    arguments = [word.encode() for word in stated_arguments("c" if c else "c++", builtin_headers())]
    index, handle = library.clang_createIndex(0, 0), c_void_p()
    try:
        status = library.clang_parseTranslationUnit2(
            index, path, (c_char_p * len(arguments))(*arguments), len(arguments), unsaved, 1, 0,
            byref(handle),
        )  # fmt: skip
        if status != 0:
            return [Complaint(0, f"libclang gives status {status}")]
        return _errors(library, handle)
    finally:
        if handle:
            library.clang_disposeTranslationUnit(handle)
        library.clang_disposeIndex(index)


def _errors(library: bindings.Library, handle: c_void_p) -> list[Complaint]:
    found: list[Complaint] = []
    line, skip, file = c_uint(), c_uint(), c_void_p()
    for number in range(library.clang_getNumDiagnostics(handle)):
        diagnostic = library.clang_getDiagnostic(handle, number)
        if library.clang_getDiagnosticSeverity(diagnostic) >= bindings.ERROR:
            library.clang_getFileLocation(
                library.clang_getDiagnosticLocation(diagnostic),
                byref(file), byref(line), byref(skip), byref(skip),
            )  # fmt: skip
            name = library.text(library.clang_getFileName(file)) if file else ""
            said = library.text(library.clang_getDiagnosticSpelling(diagnostic))
            found.append(Complaint(line.value if name.startswith("document.") else 0, said))
        library.clang_disposeDiagnostic(diagnostic)
        if len(found) == _MOST:
            break
    return found


class Checker:
    """Gives documents to the process, which is started when it is needed and again when it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def complaints(self, text: str, c: bool) -> list[Complaint] | None:
        """The errors of a document; None where it could not be checked."""
        try:
            process = self._process = self._process or _start()
            assert process.stdin is not None
            assert process.stdout is not None
            _write(process.stdin, (text, c))
            answer = _read(process.stdout, time.monotonic() + _SECONDS)
            return [Complaint(line, said) for line, said in answer]
        except (OSError, EOFError, TimeoutError):
            self.close()
            return None

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def __del__(self) -> None:
        self.close()


def _start() -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "nanochat_chunker.semantic.checking"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def _write(pipe: IO[bytes], value: object) -> None:
    message = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(message)) + message)
    pipe.flush()


def _read(pipe: IO[bytes], until: float | None = None) -> Any:
    (length,) = _LENGTH.unpack(_bytes(pipe, _LENGTH.size, until))
    return pickle.loads(_bytes(pipe, length, until))


def _bytes(pipe: IO[bytes], count: int, until: float | None) -> bytes:
    """So many bytes. Raises `EOFError` at the end of the pipe, `TimeoutError` when it is late."""
    found = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(found) < count:
            if until is not None and not selector.select(max(0.0, until - time.monotonic())):
                raise TimeoutError
            part = os.read(pipe.fileno(), count - len(found))
            if not part:
                raise EOFError
            found += part
    return found


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """The life of the process: it ends with the pipe of who started it."""
    while True:
        try:
            text, c = _read(requests)
        except EOFError:
            return
        _write(answers, [tuple(each) for each in complaints_of(text, c)])


def main(arguments: Sequence[str] = ()) -> None:
    """Answers on standard output what comes on standard input."""
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
