"""What libclang says of a file: which name refers to which declaration, and what is compiled."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

ELSEWHERE = 0  # the number of what lies outside of the project


class Place(NamedTuple):
    """Where a declaration names what it declares, and what that is.

    A class may be known only by a friend declaration in another: `usr` finds its others.
    """

    path: str
    offset: int  # in characters of the text
    usr: str = ""  # of what may be declared again


class Declared(NamedTuple):
    """A declaration at the level of namespaces, by the place of its name.

    `usr` is the same for all declarations of one thing, in all files.
    """

    offset: int
    usr: str
    definition: bool


@dataclass(frozen=True)
class FileFacts:
    """The facts of one file, in characters of its text. Picklable, compact.

    The reference at `offsets[n]`, in ascending order, is to `places[targets[n] - 1]`, or to nothing
    of the project where the target is `ELSEWHERE`.
    """

    path: str
    offsets: array[int] = field(default_factory=lambda: array("I"))
    targets: array[int] = field(default_factory=lambda: array("I"))
    places: tuple[Place, ...] = ()
    declared: tuple[Declared, ...] = ()
    skipped: tuple[tuple[int, int], ...] = ()  # what the configuration leaves out
    includes: tuple[tuple[int, str], ...] = ()  # offset, and the file of the project or ''
    errors: tuple[int, ...] = ()  # offsets
    fallback: str = ""  # why the facts are not used, or ''
