"""Finding the projects and their source files, and reading what may hold any bytes."""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple

from nanochat_chunker.errors import UsageError
from nanochat_chunker.provenance.licences import is_licence_file

# A folder that holds one of these is a project by itself under `--layout auto`.
PROJECT_MARKERS = frozenset(
    (
        ".git .hg CMakeLists.txt Makefile makefile GNUmakefile Makefile.am Makefile.in meson.build "
        "configure configure.ac BUILD BUILD.bazel WORKSPACE MODULE.bazel SConstruct conanfile.py "
        "conanfile.txt vcpkg.json xmake.lua premake5.lua Jamfile Jamroot BUCK compile_commands.json"
    ).split()
)

# Files with these endings, or none, are sources only where another file includes them.
INCLUDED_SUFFIXES = frozenset(("", ".inc", ".def", ".inl", ".tpl", ".impl", ".ipp", ".x"))

# Above this share of bytes outside ASCII, a file that is not UTF-8 is text in some other script
# (GBK, Shift-JIS ...), which Latin-1 would turn into noise.
LATIN1_SHARE = 0.1


@dataclass(frozen=True)
class Project:
    """A named folder of sources, or a name that JSON lines give (`root` is then empty).

    `loose` takes the files directly in the folder and no subfolder.
    """

    name: str
    root: Path
    loose: bool = False


class Entry(NamedTuple):
    """A file that may be taken. `size` and `stamp` (its time) tell whether it has changed.

    For a line of JSON: the number of its input, its offset and length there.
    """

    path: str  # relative to the root, with /
    size: int
    stamp: int
    input: int = -1
    offset: int = 0
    length: int = 0


@dataclass
class Tree:
    """What a walk over a project saw."""

    entries: list[Entry] = field(default_factory=list)  # sorted by path
    others: list[Entry] = field(default_factory=list)  # sources only if something includes them
    licences: list[str] = field(default_factory=list)  # paths of licence files
    dropped: Counter[str] = field(default_factory=Counter)
    other_files: int = 0  # by their extension not C or C++

    @property
    def paths(self) -> list[str]:
        return [entry.path for entry in self.entries]


@dataclass(frozen=True)
class Dropped:
    """A file that gives no text, and why."""

    reason: str


@dataclass(frozen=True)
class SourceText:
    """A file's text: no BOM, newlines as \\n. `encoding` is `utf-8` or `latin-1`."""

    text: str
    encoding: str


def find_projects(
    project_dirs: Sequence[Path], extensions: Sequence[str], layout: str
) -> list[Project]:
    """The projects in the given folders, sorted by name, no real folder twice.

    `one`: each folder given is a project. `many`: each subfolder is a project, and sources lying
    directly in the folder make one more, named after it. `auto`: `one` for a folder that holds a
    build file or `.git`, else `many`. Subfolders whose name starts with a dot are passed over.
    """
    found: list[Project] = []
    seen: set[Path] = set()
    for folder in project_dirs:
        root = _existing_folder(folder)
        with os.scandir(root) as entries:
            listing = sorted(entries, key=lambda entry: entry.name)
        if layout == "one" or (
            layout == "auto" and any(entry.name in PROJECT_MARKERS for entry in listing)
        ):
            candidates = [Project(root.name, root)]
        else:
            candidates = [
                Project(show_path(entry.name), Path(entry.path).resolve())
                for entry in listing
                if not entry.name.startswith(".") and _is_folder(entry)
            ]
            # A link to the folder itself or one above it would take everything in again.
            candidates = [p for p in candidates if p.root != root and p.root not in root.parents]
            if any(_is_source(entry.name, extensions) for entry in listing):
                candidates.append(Project(root.name, root, loose=True))
        for project in candidates:
            if project.root not in seen:
                seen.add(project.root)
                found.append(project)
    return _named_apart(found)


def _existing_folder(folder: Path) -> Path:
    if not folder.exists():
        raise UsageError(f"no folder {folder}", "Check the path given to --project-dirs")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "Give --project-dirs folders of C++ projects")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(f"cannot read the folder {folder}", "Check its permissions")
    return folder.resolve()


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()  # follows: a folder of links to projects is a fair way to choose them
    except OSError:  # a link that leads to itself
        return False


def _named_apart(projects: list[Project]) -> list[Project]:
    """Gives projects of one name the name of their parent folder too, then a number."""
    projects = sorted(projects, key=lambda project: (project.name, str(project.root)))
    shared = Counter(project.name for project in projects)
    taken: set[str] = set()
    named = []
    for project in projects:
        name = project.name or "root"
        if shared[project.name] > 1:
            name = f"{show_path(project.root.parent.name)}/{name}"
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        taken.add(unique)
        named.append(Project(unique, project.root, project.loose))
    return sorted(named, key=lambda project: project.name)


def _is_source(name: str, extensions: Sequence[str]) -> bool:
    return PurePath(name).suffix.lower() in extensions


def walk(project: Project, extensions: Sequence[str]) -> Tree:
    """The source files of a project. Links inside it are counted and not followed."""
    tree = Tree()
    pending = [""]
    while pending:
        relative = pending.pop()
        try:
            with os.scandir(project.root / relative) as entries:
                listing = list(entries)
        except OSError:
            tree.dropped["unreadable_folder"] += 1
            continue
        for entry in listing:
            path = relative + entry.name
            if entry.is_symlink():
                if _is_source(entry.name, extensions) or _is_folder(entry):
                    tree.dropped["symlink"] += 1
            elif entry.is_dir(follow_symlinks=False):
                if project.loose:
                    continue
                if entry.name.startswith("."):
                    tree.dropped["hidden_folder"] += 1
                else:
                    pending.append(path + "/")
            elif _is_source(entry.name, extensions):
                if entry.is_file(follow_symlinks=False):
                    tree.entries.append(_entry(path, entry))
                else:
                    tree.dropped["not_a_regular_file"] += 1
            else:
                tree.other_files += 1
                if is_licence_file(entry.name):
                    tree.licences.append(path)
                elif PurePath(entry.name).suffix.lower() in INCLUDED_SUFFIXES:
                    tree.others.append(_entry(path, entry))
    tree.entries.sort()
    tree.others.sort()
    tree.licences.sort()
    return tree


def _entry(path: str, entry: "os.DirEntry[str]") -> Entry:
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:  # gone meanwhile: reading it will say so
        return Entry(path, 0, 0)
    return Entry(path, status.st_size, status.st_mtime_ns)


def show_path(path: str) -> str:
    """The path as text for documents: bytes that are not UTF-8 and control characters replaced."""
    text = os.fsencode(path).decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def read_source(path: Path, max_bytes: int) -> SourceText | Dropped:
    """Reads one file. Whatever is in it, the answer is text or a reason."""
    try:
        # No link that appeared since the walk, and no wait on a pipe that took the file's place.
        handle = os.open(
            path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        )
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return Dropped("not_a_regular_file")
            if status.st_size > max_bytes:
                return Dropped("too_large")
            data = file.read(max_bytes + 1)
    except OSError:
        return Dropped("unreadable")
    return decode(data, max_bytes)


def decode(data: bytes, max_bytes: int) -> SourceText | Dropped:
    """The text of a file's bytes, or the reason why there is none.

    UTF-8 is taken as it is. Else Latin-1 is assumed where few bytes lie outside ASCII, as in old
    sources with an author's name; else the file is dropped as `not_utf8`.
    """
    if len(data) > max_bytes:
        return Dropped("too_large")
    if b"\0" in data:
        return Dropped("nul_bytes")
    encoding = "utf-8"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        beyond_ascii = len(data) - len(data.translate(None, bytes(range(128, 256))))
        if beyond_ascii > LATIN1_SHARE * len(data):
            return Dropped("not_utf8")
        text, encoding = data.decode("latin-1"), "latin-1"
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        return Dropped("empty")
    return SourceText(text, encoding)


def digest_of(text: str) -> bytes:
    """What two files share when they are duplicates: 16 bytes over the text as read."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
