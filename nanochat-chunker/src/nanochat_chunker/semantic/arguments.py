"""How a file is compiled: by compile_commands.json, else as the stated configuration has it."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nanochat_chunker.includes import Include, Resolver
from nanochat_chunker.semantic.headers import BuiltinHeaders
from nanochat_chunker.slicing.compiler import predefined
from nanochat_chunker.slicing.configuration import STANDARD_HEADERS, from_build_system

DATABASE = "compile_commands.json"
_BUILD_FOLDERS = ("", "build", "out", "_build", "cmake-build-debug", "cmake-build-release")
_MAX_FOLDERS = 60  # of -I; projects that need more are many projects in one
_MAX_DATABASE = 200 << 20
# Flags of a command that say what is compiled; the rest (outputs, warnings, optimisation) does not
# matter for what names mean, and may be another compiler's.
_WITH_VALUE = ("-I", "-D", "-U", "-isystem", "-iquote", "-idirafter", "-include", "-imacros")
_FOLDERS = frozenset(("-I", "-isystem", "-iquote", "-idirafter"))
_LANGUAGES = {".c": "c", ".m": "objective-c", ".mm": "objective-c++", ".cu": "c++"}
_ALWAYS = ("-w", "-fno-spell-checking", "-ferror-limit=0", "-fparse-all-comments")
_STANDARDS = ("-std=", "--std=")
_MATTERING = (
    "-fno-exceptions", "-fno-rtti", "-fshort-", "-funsigned-char", "-fopenmp", "-msse", "-mavx",
    "-march=", "-mpclmul",
)  # fmt: skip


@dataclass(frozen=True)
class Defaults:
    """What holds for the files of a project that no compile_commands.json names."""

    folders: tuple[str, ...] = ()  # of -I, relative to the root
    quoted: tuple[str, ...] = ()  # of -iquote: their headers have names of the system's
    defines: tuple[str, ...] = ()  # of -D


@dataclass(frozen=True)
class CompileCommands:
    """The commands of a project, by the path of their file relative to its root."""

    source: str = ""  # the path of the database, or ''
    by_path: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def defaults_of(
    includes: Mapping[str, Sequence[Include]],
    conditions: Iterable[str],
    defined: frozenset[str],
    project_name: str,
) -> Defaults:
    """The -I by which the project's own includes resolve, the most used first, and the -D that the
    engine guesses of a build system.

    `conditions` are the names that `#if`s ask for, `defined` those that some file defines.
    """
    resolver = Resolver(sorted(includes), project_name)
    counts: Counter[str] = Counter()
    for path in sorted(includes):
        for include in includes[path]:
            found = resolver.resolve(path, include)
            if found is not None and f"/{found}".endswith(f"/{include.target}"):
                folder = found[: -len(include.target)].rstrip("/")
                beside = not include.angle and folder == str(PurePosixPath(path).parent)
                if not beside:
                    counts[folder] += 1
    used = [folder for folder, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    clashing = {
        path.rpartition("/")[0] for path in includes if path.rpartition("/")[2] in STANDARD_HEADERS
    }
    defines = []
    for name in sorted(set(conditions) - defined):
        macro = from_build_system(name)
        if macro is not None:
            defines.append(f"{name}={macro.body}")
    used = used[:_MAX_FOLDERS]
    return Defaults(
        tuple(folder for folder in used if folder not in clashing),
        tuple(folder for folder in used if folder in clashing),
        tuple(defines),
    )


def find_commands(root: Path, paths: frozenset[str]) -> CompileCommands:
    """The first compile_commands.json of a project: in its root, else in a build folder."""
    for folder in _database_folders(root):
        file = root / folder / DATABASE
        try:
            if not file.is_file() or file.stat().st_size > _MAX_DATABASE:
                continue
            entries = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(entries, list):
            by_path = _commands(root, entries, paths)
            if by_path:
                return CompileCommands(f"{folder}/{DATABASE}".lstrip("/"), by_path)
    return CompileCommands()


def _database_folders(root: Path) -> list[str]:
    found = list(_BUILD_FOLDERS)
    try:
        others = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError:
        others = []
    found += [name for name in others if name.startswith(("build", "cmake-build", "out"))]
    found += [f"{name}/{inner}" for name in ("build", "out") for inner in _folders(root / name)]
    return list(dict.fromkeys(found))


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())[:20]
    except OSError:
        return []


def _commands(
    root: Path, entries: Sequence[object], paths: frozenset[str]
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    top = os.path.realpath(root)
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            continue
        directory = os.path.join(top, str(entry.get("directory", "")))
        path = os.path.relpath(os.path.realpath(os.path.join(directory, entry["file"])), top)
        path = path.replace(os.sep, "/")
        if path not in paths or path in found:
            continue
        words = entry.get("arguments")
        if not isinstance(words, list):
            try:
                words = shlex.split(str(entry.get("command", "")))
            except ValueError:
                continue
        found[path] = _kept([str(word) for word in words[1:]], directory)
    return found


def _kept(words: Sequence[str], directory: str) -> tuple[str, ...]:
    """The flags of a command that change what is compiled, folders as whole paths."""
    kept: list[str] = []
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word.startswith((*_STANDARDS, "-f", "-m")) and _matters(word):
            kept.append(word)
            continue
        flag = next((each for each in _WITH_VALUE if word.startswith(each)), None)
        if flag is None:
            continue
        value = word[len(flag) :]
        if not value and at < len(words):
            value = words[at]
            at += 1
        if flag in _FOLDERS or (flag == "-include" and os.sep in value):
            value = os.path.normpath(os.path.join(directory, value))
        kept += [flag, value]
    return tuple(kept)


def _matters(word: str) -> bool:
    return word.startswith((*_STANDARDS, *_MATTERING))


def arguments_of(
    path: str,
    root: Path,
    commands: CompileCommands,
    defaults: Defaults,
    headers: BuiltinHeaders,
    beside: Callable[[str], str | None] = lambda path: None,
) -> list[str]:
    """The arguments for the file at `path`. `beside` names a file whose command a header takes."""
    suffix = PurePosixPath(path).suffix.lower()
    language = _LANGUAGES.get(suffix, "c++")
    stated = stated_arguments(language, headers)
    own = commands.by_path.get(path)
    if own is None and (other := beside(path)) is not None:
        own = commands.by_path.get(other)
    if own is not None:
        return [*stated, *own]
    found = list(stated)
    for flag, folders in (("-I", defaults.folders), ("-iquote", defaults.quoted)):
        for folder in folders:
            found += [flag, str(root / folder) if folder else str(root)]
    return [*found, *(f"-D{define}" for define in defaults.defines)]


def flags_of_headers(arguments: Sequence[str]) -> tuple[str, ...] | None:
    """Of the arguments of a file those that matter to headers of the system.

    None where it is not known that these mean the same for others with the same arguments.
    """
    kept: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("-isystem", "-idirafter", "-include", "-imacros", "-nostdinc"):
            if kept[-1:] != ["-nobuiltininc"]:
                return None
            kept += [word, next(words)]
        elif word in _FOLDERS:
            next(words)
        elif word in ("-D", "-U"):
            if next(words).startswith("_"):
                return None
        elif not word.startswith("-D") or word[2:].startswith("_"):
            kept.append(word)
    return tuple(kept)


def stated_arguments(language: str, headers: BuiltinHeaders) -> list[str]:
    """Those of the stated configuration, of C++ or C."""
    standard = "-std=c17" if language == "c" else "-std=c++20"
    return ["-x", language, standard, *headers.arguments(), *_ALWAYS, *_stated(language)]


def _stated(language: str) -> list[str]:
    """What the stated configuration says of the compiler, where libclang is a newer one."""
    macros = predefined()
    names = [name for name in _NEWER if language != "c" or not name.startswith("__cpp_")]
    return [word for name in names for word in (f"-U{name}", f"-D{name}={macros[name].body}")]


# Versions, and language features of which clang 14 had less: libstdc++ takes another way by them.
_NEWER = (
    "__clang_major__", "__clang_minor__", "__clang_patchlevel__", "__cpp_concepts",
    "__cpp_constexpr",
)  # fmt: skip
