"""Step three: the documents of the projects, in a fixed order whatever the workers do."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from nanochat_chunker import __version__
from nanochat_chunker.execution import Done, Failure, Job, Pool, Restart, Result
from nanochat_chunker.includes import include_order
from nanochat_chunker.making import (
    DROPPED,
    FACTS,
    MATERIAL,
    Made,
    Order,
    SliceOrder,
    make_slices,
    pack,
)
from nanochat_chunker.progress import Progress
from nanochat_chunker.settings import Settings
from nanochat_chunker.spool import References, Spool
from nanochat_chunker.stages.batches import in_batches
from nanochat_chunker.stages.choose import Choice
from nanochat_chunker.stages.survey import Corpus
from nanochat_chunker.state import State, key_of, read_indexes
from nanochat_chunker.survey import Survey

_STAGE = "documents"
# Roots of this many bytes are one job: small enough to share a project among many workers.
_JOB_BYTES = 192 << 10
_JOB_FILES = 48


@dataclass
class Unit:
    """What one job gave: documents in the spool, in their order, and counts."""

    project: int
    references: References = field(default_factory=References)
    files: int = 0
    kept_bytes: int = 0  # of the files, as UTF-8
    text_bytes: int = 0  # of the documents
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    definitions: Counter[str] = field(default_factory=Counter)  # see `Made`


@dataclass
class _Open:
    """A job on its way; results may come with gaps, and may be taken back."""

    files: dict[int, tuple[References, Made, int]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def make(
    corpus: Corpus,
    choice: Choice,
    settings: Settings,
    tokens: dict[str, Any],
    pool: Pool,
    state: State,
    spool: Spool,
    progress: Progress,
    facts: Mapping[int, bytes],
) -> Iterator[Unit]:
    """Units in the order of their jobs.

    `tokens` describes how they are counted, `facts` are the keys of libclang's facts by project.
    """
    kept = sum(fates.count(0) for fates in choice.fates.values())
    progress.making(kept)
    orders = _Orders(corpus, choice, settings, repr(sorted(tokens.items())), pool, state, facts)
    waiting: dict[int, Unit] = {}  # done before one that comes earlier
    following = 0

    def jobs() -> Iterator[Job]:
        for number, (project, key, job) in enumerate(orders.all()):
            unit = state.get(_STAGE, key)
            if unit is not None:
                unit.project = project
                unit.references.project = type(unit.references.project)(
                    "q", [project] * len(unit.references)
                )
                waiting[number] = unit
                progress.made(unit.files + sum(unit.dropped.values()), len(unit.references))
            else:
                yield Job((number, project, key), *job)

    state.before_commit = spool.sync
    opened: dict[int, _Open] = {}
    for event in pool.run(jobs()):
        number, project, key = event.job.key
        at = opened.setdefault(number, _Open())
        match event:
            case Result(_, place, made):
                references = References()
                size = sum(spool.add(document, project, references) for document in made.documents)
                at.files[place] = (references, made, size)
                progress.made(1 if place < len(event.job.items) else 0, len(references))
            case Failure(job, place, reason, detail):
                at.failed.append(reason)
                item = job.items[place] if place < len(job.items) else "the end of a project"
                progress.note(f"{getattr(item, 'path', item)}: {reason} {detail}".strip())
            case Restart(_):
                at.files.clear()
            case Done(_):
                unit = _close(project, opened.pop(number))
                waiting[number] = unit
                state.put(_STAGE, key, unit)
                if state.tick():
                    state.commit()
        while following in waiting:
            yield waiting.pop(following)
            following += 1
    state.commit()
    while following in waiting:
        yield waiting.pop(following)
        following += 1


def _close(project: int, at: _Open) -> Unit:
    unit = Unit(project)
    for _, (references, made, size) in sorted(at.files.items()):
        for index in range(len(references)):
            unit.references.take(references, index)
        unit.files += made.files
        unit.kept_bytes += made.text_bytes
        unit.text_bytes += size
        unit.definitions.update(dict(made.definitions))
        for name, count in made.notes.items():
            if name.startswith(DROPPED):
                unit.dropped[name.removeprefix(DROPPED)] += count
            else:
                unit.notes[name] += count
    unit.dropped.update(at.failed)
    return unit


class _Orders:
    """The jobs of all projects, each with the digest of all that its result depends on."""

    def __init__(
        self,
        corpus: Corpus,
        choice: Choice,
        settings: Settings,
        fingerprint: str,
        pool: Pool,
        state: State,
        facts: Mapping[int, bytes],
    ) -> None:
        self._facts = facts
        self._corpus = corpus
        self._choice = choice
        self._settings = settings
        self._fingerprint = fingerprint
        self._pool = pool
        self._state = state

    def all(self) -> Iterator[tuple[int, bytes, tuple[Any, ...]]]:
        """(project, key, what a job is made of)"""
        order = list(self._choice.order)
        if self._settings.order == "shuffled":
            # Then each window of the shuffle holds documents of projects of all kinds.
            random.Random(self._settings.seed).shuffle(order)
        make_jobs = self._slicing if self._settings.compilable else self._packing
        for index in order:
            for key, job in make_jobs(index):
                yield index, key, job

    def _known(self, index: int, files: list[Survey]) -> tuple[Any, ...]:
        surveyed = self._corpus.projects[index]
        settings = self._settings
        return (
            __version__, settings.mode, settings.max_tokens, settings.cross_depth,
            settings.redact, self._fingerprint, surveyed.project.name, surveyed.commit,
            str(surveyed.project.root), surveyed.licences.describe(), self._facts.get(index),
            [(file.path, file.digest, file.licence) for file in files],
        )  # fmt: skip

    def _common(self, index: int) -> dict[str, Any]:
        surveyed = self._corpus.projects[index]
        return {
            "project": surveyed.project,
            "reading": self._corpus.reading,
            "licences": surveyed.licences,
            "commit": surveyed.commit,
            "max_tokens": self._settings.max_tokens,
            "tokenizer": self._settings.tokenizer,
        }

    def _packing(self, index: int) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
        surveyed = self._corpus.projects[index]
        files = self._choice.kept(index, surveyed.files(self._state))
        by_path = {file.path: file for file in files}
        order = include_order({file.path: file.includes for file in files}, surveyed.project.name)
        items = [by_path[path] for path in order]
        key = key_of(self._known(index, items))
        yield key, (pack, Order(**self._common(index)), items, True)

    def _slicing(self, index: int) -> Iterator[tuple[bytes, tuple[Any, ...]]]:
        surveyed = self._corpus.projects[index]
        files = surveyed.files(self._state)
        material = self._choice.material(index, files) + surveyed.material(self._state)
        material.sort(key=lambda file: file.path)
        roots = self._choice.kept(index, files)
        known = key_of(self._known(index, material))
        batches = list(in_batches(roots, _JOB_FILES, _JOB_BYTES))
        keys = [key_of(known, [file.path for file in batch]) for batch in batches]
        if all(self._state.has(_STAGE, key) for key in keys):
            for key in keys:
                yield key, ()
            return
        stored = surveyed.stored(self._state, material)
        self._state.put(MATERIAL, known, stored)
        self._state.commit()  # the workers read it
        shared = None
        if not self._pool.shares_disk:
            shared = [list(read_indexes(str(self._state.path), stored))]
            read = self._state.get(FACTS, self._facts[index]) if index in self._facts else []
            shared.append(list(read_indexes(str(self._state.path), read)))
        order = SliceOrder(
            **self._common(index),
            key=known,
            state=str(self._state.path),
            cross_depth=self._settings.cross_depth,
            facts=self._facts.get(index, b""),
        )
        for key, batch in zip(keys, batches, strict=True):
            yield key, (make_slices, order, [file.path for file in batch], False, shared, known)
