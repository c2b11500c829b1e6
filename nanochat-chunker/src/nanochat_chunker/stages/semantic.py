"""Between choosing and making, with --semantic: libclang reads the projects, unit by unit."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat_chunker import __version__
from nanochat_chunker.execution import Done, Failure, Job, Pool, Result
from nanochat_chunker.making import FACTS
from nanochat_chunker.progress import Progress
from nanochat_chunker.semantic.arguments import find_commands
from nanochat_chunker.semantic.bindings import version
from nanochat_chunker.semantic.headers import builtin_headers
from nanochat_chunker.semantic.tasks import FactsRow, ReadOrder, read_units
from nanochat_chunker.semantic.units import UnitOrder, units_of
from nanochat_chunker.stages.choose import Choice
from nanochat_chunker.stages.survey import Corpus
from nanochat_chunker.state import State, key_of, read_indexes

_FILES = "facts_files"
_UNITS = "facts_units"
_BATCH = 8  # units of a job
_NOT_REACHED = "not_reached"


@dataclass
class Semantics:
    """What libclang made of the projects."""

    keys: dict[int, bytes] = field(default_factory=dict)  # of FACTS, by project
    files: int = 0  # read with facts
    fallback: Counter[str] = field(default_factory=Counter)  # files by reason
    commands: dict[str, str] = field(default_factory=dict)  # compile_commands.json, by project

    def describe(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "libclang": version(),
            "builtin_headers": builtin_headers().origin,
            "compile_commands": dict(sorted(self.commands.items())),
            "files": self.files,
            "fallback": {name: self.fallback[name] for name in sorted(self.fallback)},
        }


def read_all(
    corpus: Corpus, choice: Choice, pool: Pool, state: State, progress: Progress
) -> Semantics:
    """Reads each file once in a unit that includes it, and once more alone where that is bad."""
    semantics = Semantics()
    projects = [_Project(corpus, choice, state, pool, index) for index in choice.order]
    for attempt in (0, 1):
        progress.parsing(sum(len(project.units(attempt)) for project in projects))
        _run(
            (job for project in projects for job in project.jobs(attempt, progress)),
            {project.index: project for project in projects}, pool, state, progress,
        )  # fmt: skip
    for project in projects:
        semantics.keys[project.index] = project.finish()
        semantics.files += project.good
        semantics.fallback.update(project.fallback)
        if project.commands:
            semantics.commands[project.name] = project.commands
    state.commit()
    return semantics


def _run(
    jobs: Iterator[Job], projects: "dict[int, _Project]", pool: Pool, state: State,
    progress: Progress,
) -> None:  # fmt: skip
    for event in pool.run(jobs):
        match event:
            case Result(job, number, rows) if number < len(job.items):
                projects[job.key[0]].take(job.key[1], job.items[number], rows)
                progress.parsed(1)
            case Failure(job, number, reason, detail) if number < len(job.items):
                unit = job.items[number]
                projects[job.key[0]].fail(job.key[1], unit, reason)
                progress.parsed(1)
                progress.note(f"{unit.path}: libclang: {reason} {detail}".strip())
            case Done(_):
                if state.tick():
                    state.commit()
    state.commit()


class _Project:
    """The units of one project on their way. Each result is stored: a killed run goes on."""

    def __init__(
        self, corpus: Corpus, choice: Choice, state: State, pool: Pool, index: int
    ) -> None:
        surveyed = corpus.projects[index]
        files = surveyed.files(state)
        material = choice.material(index, files) + surveyed.material(state)
        material.sort(key=lambda file: file.path)
        self.index = index
        self.name = surveyed.project.name
        self.good = 0
        self.fallback: Counter[str] = Counter()
        self._state = state
        self._pool = pool
        self._paths = [file.path for file in material]
        root = surveyed.project.root
        commands = find_commands(root.resolve(), frozenset(self._paths))
        self.commands = commands.source
        self._key = key_of(
            __version__, version(), builtin_headers().origin, str(root), self.name,
            sorted(commands.by_path.items()), [(file.path, file.digest) for file in material],
        )  # fmt: skip
        self._order = ReadOrder(
            surveyed.project, corpus.reading, self._key, str(state.path), _FILES
        )
        self._stored = surveyed.stored(state, material)
        self._units = units_of({file.path: file.includes for file in material}, self.name)
        self._best: dict[str, tuple[tuple[bool, int, int], bytes, str]] = {}
        self._failed: dict[str, str] = {}

    def units(self, attempt: int) -> list[UnitOrder]:
        """All, then those of the files that were not read well."""
        return self._units if attempt == 0 else self._again()

    def jobs(self, attempt: int, progress: Progress) -> Iterator[Job]:
        """For the units that no earlier run has read."""
        left = []
        for unit in self.units(attempt):
            known = self._state.get(_UNITS, self._unit_key(attempt, unit))
            if known is None:
                left.append(unit)
                continue
            progress.parsed(1)
            if isinstance(known, str):
                self._failed[unit.path] = known
            else:
                self._note(attempt, unit, known)
        if not left:
            return
        self._state.put(_FILES, self._key, self._stored)
        self._state.commit()  # the workers read it
        shared = None
        if not self._pool.shares_disk:
            shared = list(read_indexes(str(self._state.path), self._stored))
        for at in range(0, len(left), _BATCH):
            yield Job(
                (self.index, attempt), read_units, self._order, left[at : at + _BATCH], False,
                shared, self._key,
            )  # fmt: skip

    def _again(self) -> list[UnitOrder]:
        """Files that no unit reached, or only one that fails in them, and not as its own file."""
        own = {unit.path for unit in self._units}
        found = []
        for path in self._paths:
            best = self._best.get(path)
            if path not in own and (best is None or best[0][0] or best[0][1]):
                found.append(UnitOrder(path, (path,)))
        return found

    def take(self, attempt: int, unit: UnitOrder, rows: Sequence[FactsRow]) -> None:
        """The result of a unit."""
        key = self._unit_key(attempt, unit)
        self._state.put_indexes(key, [(row.path, row.value) for row in rows])
        told = [(row.path, row.fallback, row.errors) for row in rows]
        self._state.put(_UNITS, key, told)
        self._note(attempt, unit, told)

    def fail(self, attempt: int, unit: UnitOrder, reason: str) -> None:
        self._state.put(_UNITS, self._unit_key(attempt, unit), reason)
        self._failed[unit.path] = reason

    def _unit_key(self, attempt: int, unit: UnitOrder) -> bytes:
        return key_of(self._key, attempt, unit.path)

    def _note(self, attempt: int, unit: UnitOrder, rows: Sequence[tuple[str, str, int]]) -> None:
        for path, fallback, errors in rows:
            quality = (bool(fallback), errors, attempt)
            best = self._best.get(path)
            if best is None or quality < best[0]:
                self._best[path] = (quality, self._unit_key(attempt, unit), fallback)

    def finish(self) -> bytes:
        """Stores where the best facts of each file are; the key of that."""
        places: dict[bytes, list[str]] = {}
        for path in self._paths:
            best = self._best.get(path)
            if best is None:
                self.fallback[self._failed.get(path, _NOT_REACHED)] += 1
                continue
            places.setdefault(best[1], []).append(path)
            if best[2]:
                self.fallback[best[2]] += 1
            else:
                self.good += 1
        self._state.put(FACTS, self._key, sorted(places.items()))
        return self._key
