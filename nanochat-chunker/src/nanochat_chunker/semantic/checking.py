"""Asking libclang whether a document compiles, in a process of its own that may die of it."""

import os
import pickle
import selectors
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from ctypes import byref, c_uint, c_void_p
from functools import cache
from typing import IO, Any, NamedTuple

from nanochat_chunker.semantic import bindings
from nanochat_chunker.semantic.arguments import stated_arguments
from nanochat_chunker.semantic.headers import builtin_headers
from nanochat_chunker.semantic.translation import Precompiled, translation_unit
from nanochat_chunker.slicing.system_headers import headers_of_cpp

_SECONDS = 120.0  # of one document; the slowest of real ones takes 5 on an idle machine
_LOOKS = 300  # at documents of one file: minutes, where one with hundreds would take hours
_MOST = 40  # complaints that are read; the rest follow from the first
_LENGTH = struct.Struct("<Q")


class Complaint(NamedTuple):
    """One error: the line, counted from 1, and what clang says."""

    line: int
    said: str


def complaints_of(text: str, c: bool, precompiled: Sequence[str] = ()) -> list[Complaint]:
    """The errors of a document that has nothing but system headers, in this process."""
    path = "document.c" if c else "document.cc"
    stated = stated_arguments("c" if c else "c++", builtin_headers())
    try:
        with translation_unit(
            path, [*stated, *precompiled], {path: text}, bindings.KEEP_GOING
        ) as unit:
            return _errors(bindings.load(), unit)
    except OSError as error:
        return [Complaint(0, str(error))]


@cache
def standard_headers() -> Precompiled:
    """All headers of C++, without the bodies of their functions."""
    stated = stated_arguments("c++", builtin_headers())
    return Precompiled(headers_of_cpp(), stated, bindings.SKIP_FUNCTION_BODIES)


def _errors(library: bindings.Library, handle: c_void_p) -> list[Complaint]:
    found: list[Complaint] = []
    # Another clang's headers may use what libclang does not know: no fault of the document's.
    compilers = f"{builtin_headers().folder}/"
    line, skip, file = c_uint(), c_uint(), c_void_p()
    for number in range(library.clang_getNumDiagnostics(handle)):
        diagnostic = library.clang_getDiagnostic(handle, number)
        if library.clang_getDiagnosticSeverity(diagnostic) >= bindings.ERROR:
            library.clang_getFileLocation(
                library.clang_getDiagnosticLocation(diagnostic),
                byref(file), byref(line), byref(skip), byref(skip),
            )  # fmt: skip
            name = library.text(library.clang_getFileName(file)) if file else ""
            if not name.startswith(compilers):
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
        self._looks = 0

    def next_file(self) -> None:
        """The documents to come are of another file."""
        self._looks = 0

    def complaints(self, text: str, c: bool, quick: bool = False) -> list[Complaint] | None:
        """The errors of a document; None where it could not be checked, or its file had its share.

        A `quick` look takes a quarter of the time, and may miss errors: all headers of C++ are
        there, included or not, and nothing is looked at in the bodies of their functions.
        """
        if self._looks == _LOOKS:
            return None
        self._looks += 1
        try:
            process = self._process = self._process or _start()
            assert process.stdin is not None
            assert process.stdout is not None
            _write(process.stdin, (text, c, quick and not c))
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
            text, c, quick = _read(requests)
        except EOFError:
            return
        found = complaints_of(text, c, standard_headers().arguments if quick else ())
        _write(answers, [tuple(each) for each in found])


def main(arguments: Sequence[str] = ()) -> None:
    """Answers on standard output what comes on standard input."""
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
