"""Step one: every file is read once, for its digest, its includes and its index for slicing."""

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat_chunker import __version__
from nanochat_chunker.errors import UsageError
from nanochat_chunker.execution import Done, Failure, Job, Pool, Restart, Result
from nanochat_chunker.files import Entry, Project, Tree, find_projects, walk
from nanochat_chunker.includes import Resolver
from nanochat_chunker.progress import Progress
from nanochat_chunker.provenance.commits import commit_of
from nanochat_chunker.provenance.licences import LicenceFiles, licence_in
from nanochat_chunker.records import Scan, local_copies, ranges, scan
from nanochat_chunker.settings import Settings
from nanochat_chunker.stages.batches import in_batches
from nanochat_chunker.state import Material, State, key_of
from nanochat_chunker.survey import Brief, Reading, Survey, survey

_BATCH_FILES = 128
_BATCH_BYTES = 2 << 20
_STAGE = "survey"
_ROUNDS = 8  # of files that only includes lead to; each may include further ones
_LICENCE_BYTES = 64 << 10
_LICENCE_FILES = 500  # read of one project


@dataclass
class Surveyed:
    """A project and where the surveys of its files are stored."""

    project: Project
    commit: str | None
    licences: LicenceFiles
    dropped: Counter[str]  # before a file was read
    other_files: int
    batches: list[bytes] = field(default_factory=list)  # keys in the state
    materials: list[bytes] = field(default_factory=list)  # of files that others include

    def files(self, state: State) -> list[Survey]:
        """The surveys of its files, by path."""
        return _load(state, self.batches)

    def stored(self, state: State, files: Sequence[Survey]) -> Material:
        """Where the indexes of `files`, some of its files, are stored."""
        chosen = {file.path for file in files}
        found = []
        for key in [*self.batches, *self.materials]:
            paths = [file.path for file in state.get(_STAGE, key) if file.path in chosen]
            if paths:
                found.append((key, paths))
        return found

    def material(self, state: State) -> list[Survey]:
        """Of those that are there only because others include them."""
        return _load(state, self.materials)


def _load(state: State, keys: Sequence[bytes]) -> list[Survey]:
    return [file for key in keys for file in state.get(_STAGE, key)]


@dataclass
class Corpus:
    """The projects with their files, as found."""

    reading: Reading
    projects: list[Surveyed]
    trees: list[bytes]  # pickled: short for what may be a million files
    files: int = 0
    size: int = 0


def find(settings: Settings, pool: Pool, work: Path) -> Corpus:
    """The projects and the files in them. Raises `UsageError` for folders that are none."""
    if settings.cross_file:
        return _from_records(settings, pool, work)
    reading = Reading((), settings.max_file_bytes, settings.redact)
    corpus = Corpus(reading, [], [])
    for project in find_projects(settings.project_dirs, settings.extensions, settings.layout):
        tree = walk(project, settings.extensions)
        licences = LicenceFiles(
            (path, licence_in(_start_of(project.root / path)))
            for path in tree.licences[:_LICENCE_FILES]
        )
        _add(corpus, Surveyed(
            project, commit_of(project.root), licences, tree.dropped, tree.other_files
        ), tree)  # fmt: skip
    return corpus


def _start_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LICENCE_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _add(corpus: Corpus, project: Surveyed, tree: Tree) -> None:
    corpus.projects.append(project)
    corpus.trees.append(pickle.dumps((tree.entries, tree.others), pickle.HIGHEST_PROTOCOL))
    corpus.files += len(tree.entries)
    corpus.size += sum(entry.size for entry in tree.entries)


def _from_records(settings: Settings, pool: Pool, work: Path) -> Corpus:
    for path in settings.inputs:
        if "://" not in path and not Path(path).is_file():
            raise UsageError(f"no file {path}", "Check the paths given to --inputs")
    paths = local_copies(sorted(settings.inputs), work)
    names = tuple(Path(path).name.split(".")[0] for path in sorted(settings.inputs))
    task = Scan(paths, names, settings.max_file_bytes, settings.extensions)
    by_project: dict[str, dict[str, Entry]] = {}
    lost: Counter[str] = Counter()
    others = 0
    items = ranges(paths)
    # A range a job, so that all workers scan; put into order afterwards.
    found: dict[int, Any] = {}
    for event in pool.run(Job(n, scan, task, [item]) for n, item in enumerate(items)):
        match event:
            case Result(job, _, scanned):
                found[job.key] = scanned
            case Failure(_, _, reason):
                lost[f"range_{reason}"] += 1
    for _, scanned in sorted(found.items()):
        lost.update(scanned.dropped)
        others += scanned.other_files
        for name, entry in scanned.entries:
            files = by_project.setdefault(name, {})
            if entry.path in files:
                lost["same_path"] += 1
            else:
                files[entry.path] = entry
    corpus = Corpus(Reading(paths, settings.max_file_bytes, settings.redact), [], [])
    for name, files in sorted(by_project.items()):
        tree = Tree([entry for _, entry in sorted(files.items())])
        project = Project(name, Path())
        _add(corpus, Surveyed(project, None, LicenceFiles([]), lost, others), tree)
        lost, others = Counter(), 0  # counted once, with the first project
    if not corpus.projects and (lost or others):
        nothing = Surveyed(Project(names[0], Path()), None, LicenceFiles([]), lost, others)
        _add(corpus, nothing, Tree())
    return corpus


def survey_all(
    corpus: Corpus, settings: Settings, pool: Pool, state: State, progress: Progress
) -> None:
    """Fills `batches` and `materials` of each project; the surveys and indexes go to the state."""
    progress.reading(corpus.files, corpus.size)
    jobs = _jobs(corpus, settings, state, progress)
    _run(jobs, pool, state, progress)
    if not settings.compilable:
        return
    included: dict[int, set[str]] = {}
    for number in range(_ROUNDS):
        found = list(_included(corpus, state, included, first=number == 0))
        if not found:
            break
        jobs = (
            job
            for index, entries in found
            for job in _batches(corpus, index, entries, settings, state, Progress(), material=True)
        )
        _run(jobs, pool, state, Progress())


def _jobs(corpus: Corpus, settings: Settings, state: State, progress: Progress) -> Iterator[Job]:
    for index, pickled in enumerate(corpus.trees):
        entries, _ = pickle.loads(pickled)
        yield from _batches(corpus, index, entries, settings, state, progress)


def _batches(
    corpus: Corpus,
    index: int,
    entries: Sequence[Entry],
    settings: Settings,
    state: State,
    progress: Progress,
    *,
    material: bool = False,
) -> Iterator[Job]:
    """Jobs for what is not stored yet."""
    surveyed = corpus.projects[index]
    keys = surveyed.materials if material else surveyed.batches
    near = settings.near_duplicates is not None
    brief = Brief(corpus.reading, surveyed.project, settings.compilable, near)
    for batch in in_batches(entries, _BATCH_FILES, _BATCH_BYTES):
        key = key_of(__version__, corpus.reading, surveyed.project.name,
                     str(surveyed.project.root), settings.compilable, near, batch)  # fmt: skip
        keys.append(key)
        if state.has(_STAGE, key):
            progress.read(len(batch), sum(entry.size for entry in batch))
        else:
            yield Job(key, survey, brief, batch)


def _run(jobs: Iterator[Job], pool: Pool, state: State, progress: Progress) -> None:
    files: dict[bytes, dict[int, Survey]] = {}
    indexes: dict[bytes, list[tuple[str, bytes]]] = {}
    for event in pool.run(jobs):
        match event:
            case Result(job, number, (file, index)):
                files.setdefault(job.key, {})[number] = file
                if index is not None:
                    indexes.setdefault(job.key, []).append((file.path, index))
                progress.read(1, job.items[number].size)
            case Failure(job, number, reason, detail):
                if number < len(job.items):
                    entry = job.items[number]
                    files.setdefault(job.key, {})[number] = Survey(entry, dropped=reason)
                    progress.read(1, entry.size)
                    progress.note(f"{entry.path}: {reason} {detail}".strip())
            case Done(job):
                found = files.pop(job.key, {})
                state.put_indexes(job.key, indexes.pop(job.key, []))
                state.put(_STAGE, job.key, [found[n] for n in sorted(found)])
                if state.tick():
                    state.commit()
            case Restart(_):
                pass
    state.commit()


def _included(
    corpus: Corpus, state: State, done: dict[int, set[str]], *, first: bool
) -> Iterator[tuple[int, list[Entry]]]:
    """For each project the files without a usual ending that a file read so far includes."""
    for index, surveyed in enumerate(corpus.projects):
        entries, others = pickle.loads(corpus.trees[index])
        taken = done.setdefault(index, set())
        left = {entry.path: entry for entry in others if entry.path not in taken}
        if not left or not (first or taken):
            continue
        names = {path.rsplit("/", 1)[-1] for path in left}
        resolver: Resolver | None = None
        found: dict[str, Entry] = {}
        for file in [*surveyed.files(state), *surveyed.material(state)]:
            for include in file.includes:
                if include.target.rsplit("/", 1)[-1] not in names:
                    continue
                if resolver is None:
                    paths = sorted([*(entry.path for entry in entries), *left, *taken])
                    resolver = Resolver(paths, surveyed.project.name)
                path = resolver.resolve(file.path, include)
                if path in left:
                    found[path] = left[path]
        if found:
            taken.update(found)
            yield index, [found[path] for path in sorted(found)]
