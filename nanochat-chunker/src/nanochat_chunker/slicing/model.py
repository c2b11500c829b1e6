"""What the slicing engine takes and gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nanochat_chunker.slicing.items import Item
from nanochat_chunker.slicing.macro_shapes import Guess
from nanochat_chunker.slicing.preprocess import Event


@dataclass(frozen=True)
class FileIndex:
    """One file as the engine knows it, without its text. Picklable, compact."""

    path: str
    size: int = 0  # characters of its text
    is_c: bool = False
    items: tuple[Item, ...] = ()
    cuts: tuple[tuple[int, int], ...] = ()  # spans that the configuration leaves out
    events: tuple[Event, ...] = ()  # the directives of the configuration
    # At names that may be macros of other files.
    guesses: tuple[tuple[Guess, tuple[int, ...]], ...] = ()  # and their places
    asked: tuple[str, ...] = ()  # names for which it mattered that they are no other macros
    off: tuple[str, ...] = ()  # quoted includes that the configuration leaves out
    fragment: bool = False  # holds statements outside of functions: part of another file
    once: bool = False  # is read once by a compiler
    guard: str = ""  # the macro of its include guard
    skipped: str = ""  # why there are no items: objective_c, or what went wrong


@dataclass(frozen=True)
class Told:
    """What a compiler says of a project's files, where one was asked; else the engine decides.

    `left_out` are the spans of a file that its configuration skips, by path; `included` what an
    include means: (path, target, in angle brackets) to the path of a file, or None for none.
    """

    left_out: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    included: Mapping[tuple[str, str, bool], str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class SliceOptions:
    """How documents are built.

    `budget` is in the units of `measure`. `cross_depth` is how many levels of calls away from its
    root a function still brings its body; 0: only the root's own bodies. `predefined` are macros
    that the stated configuration defines beside those of the compiler (Linux, x86-64, C++20).
    """

    budget: int
    cross_depth: int = 3
    predefined: tuple[tuple[str, str], ...] = ()
    project: str = ""  # its name: `#include <name/a.h>` may mean a.h of this project


@dataclass(frozen=True)
class Root:
    """A definition that a document is built around. `line` counts from 1."""

    path: str
    line: int
    name: str  # qualified
    kind: str  # function, class, enum, variable, alias, macro, file


@dataclass(frozen=True)
class Slice:
    """One document.

    `roots` are the definitions it was built for, each with its body in it, `root` the first of
    them. `rung` names the step of the ladder of detail.
    """

    text: str
    roots: tuple[Root, ...]
    paths: tuple[str, ...]  # files that gave it items, in order of appearance
    rung: str

    @property
    def root(self) -> Root:
        return self.roots[0]
