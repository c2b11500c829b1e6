"""The run: survey the files, drop duplicates, pack each project, shuffle, write.

Three passes over the disk keep memory small. The survey reads each file for its digest and its
includes, in parallel over files. Duplicates are dropped in the fixed order of projects and paths,
in this process. Packing reads the kept files again, in parallel over projects, into a spool on
disk. The shuffle is over references; the texts are read from the spool in their shuffled order.
"""

import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nanochat_chunker.documents import Packer
from nanochat_chunker.errors import ChunkerError, UsageError
from nanochat_chunker.files import (
    Dropped,
    Project,
    Survey,
    Tree,
    digest_of,
    find_projects,
    read_source,
    show_path,
    survey,
    walk,
)
from nanochat_chunker.includes import include_order
from nanochat_chunker.manifest import Account, ProjectAccount, build_manifest
from nanochat_chunker.output import PROGRAM, Output
from nanochat_chunker.progress import Progress
from nanochat_chunker.settings import Settings
from nanochat_chunker.spool import References, Spooled, SpoolReader, SpoolWriter
from nanochat_chunker.tokens import Meter, make_meter
from nanochat_chunker.workers import executor
from nanochat_chunker.writers import Row

_BATCH = 128  # files surveyed by one task


@dataclass
class Packed:
    """What packing one project gave."""

    spooled: Spooled
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    files: int = 0
    kept_bytes: int = 0


def run(settings: Settings, progress: Progress | None = None) -> dict[str, Any]:
    """Does all of it and returns the manifest.

    Raises `UsageError` for input or output that will not do, before anything is written, and
    `ChunkerError` or `OSError` where the machine fails; then `_COMPLETE` is not there.
    """
    progress = progress or Progress()
    meter = make_meter(settings.tokenizer)
    output = Output(settings)
    output.check()
    projects = find_projects(settings.project_dirs, settings.extensions, settings.layout)
    account = Account()
    references = References()
    with output.workspace() as work:
        progress.reading(len(projects))
        try:
            with executor(settings.workers) as pool:
                _pack_all(pool, projects, settings, work, account, references, progress)
        except BrokenProcessPool:
            raise ChunkerError(
                "a worker process was ended from outside, most often for lack of memory",
                "Try fewer --workers",
            ) from None
        _check_not_empty(settings, account, references)
        order = list(range(len(references)))
        random.Random(settings.seed).shuffle(order)
        validation = settings.validation_count(len(order))
        lengths = [references.tokens[index] for index in order]
        manifest = build_manifest(
            PROGRAM, settings.describe(), meter.describe(), account, lengths, validation
        )
        progress.writing(len(order))
        with SpoolReader(work, references) as reader:

            def rows(start: int, stop: int) -> Iterator[Row]:
                for index in order[start:stop]:
                    document = reader.read(index)
                    name = projects[references.project[index]].name
                    yield Row(document.text, name, document.paths, document.tokens)
                    progress.wrote()

            output.write(rows, len(order) - validation, validation, manifest)
    return manifest


def _check_not_empty(settings: Settings, account: Account, references: References) -> None:
    if len(references):
        return
    where = ", ".join(str(path) for path in settings.project_dirs)
    if account.dropped:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(account.dropped.items()))
        raise UsageError(
            f"no C or C++ file in {where} could be used (dropped: {reasons})",
            "Check the folders and --max-file-bytes",
        )
    raise UsageError(
        f"no C or C++ files in {where}",
        f"Give folders that hold files ending in {' '.join(settings.extensions)}, or --extensions",
    )


def _pack_all(
    pool: Executor,
    projects: Sequence[Project],
    settings: Settings,
    work: Path,
    account: Account,
    references: References,
    progress: Progress,
) -> None:
    """Fills `account` and `references`, project by project in their order."""
    seen: set[bytes] = set()
    packing: deque[tuple[int, Future[Packed]]] = deque()

    def collect() -> None:
        index, future = packing.popleft()
        packed = future.result()
        references.extend(index, packed.spooled)
        account.dropped.update(packed.dropped)
        account.notes.update(packed.notes)
        account.kept_files += packed.files
        account.kept_bytes += packed.kept_bytes
        account.projects[projects[index].name] = ProjectAccount(
            files=packed.files,
            documents=len(packed.spooled.tokens),
            tokens=sum(packed.spooled.tokens),
            text_bytes=packed.spooled.text_bytes,
        )
        progress.packed(len(packed.spooled.tokens))

    for index, tree, surveys in _surveyed(pool, projects, settings, progress):
        account.dropped.update(tree.dropped)
        account.other_files += tree.other_files
        kept = []
        for file in surveys:
            if file.dropped is not None:
                account.dropped[file.dropped] += 1
            elif file.digest in seen:
                account.dropped["duplicate"] += 1
            else:
                seen.add(file.digest)
                kept.append(file)
        packing.append((index, pool.submit(pack_project, projects[index], kept, settings, work)))
        while len(packing) > 2 * settings.workers:
            collect()
    while packing:
        collect()


def _surveyed(
    pool: Executor, projects: Sequence[Project], settings: Settings, progress: Progress
) -> Iterator[tuple[int, Tree, list[Survey]]]:
    """Projects in order with the survey of their files, a few tasks ahead of the one given."""
    ahead: deque[tuple[int, Tree, list[Future[list[Survey]]]]] = deque()
    tasks = 0

    def first() -> tuple[int, Tree, list[Survey]]:
        nonlocal tasks
        index, tree, futures = ahead.popleft()
        surveys = []
        for future in futures:
            batch = future.result()
            tasks -= 1
            progress.read(len(batch), sum(file.size for file in batch))
            surveys.extend(batch)
        return index, tree, surveys

    for index, project in enumerate(projects):
        tree = walk(project, settings.extensions)
        futures = [
            pool.submit(survey, project.root, tree.paths[i : i + _BATCH], settings.max_file_bytes)
            for i in range(0, len(tree.paths), _BATCH)
        ]
        ahead.append((index, tree, futures))
        tasks += len(futures)
        while tasks > 4 * settings.workers:
            yield first()
    while ahead:
        yield first()


def pack_project(
    project: Project, kept: Sequence[Survey], settings: Settings, work: Path
) -> Packed:
    """The second pass over a project: its kept files, in include order, into the spool."""
    packer = Packer(_meter(settings.tokenizer), settings.max_tokens)
    files = {file.path: file for file in kept}
    with SpoolWriter(work) as spool:
        packed = Packed(spool.spooled)
        for path in include_order({file.path: file.includes for file in kept}, project.name):
            source = read_source(project.root / path, settings.max_file_bytes)
            if isinstance(source, Dropped):
                packed.dropped[source.reason] += 1
                continue
            if digest_of(source.text) != files[path].digest:
                packed.dropped["changed_while_reading"] += 1
                continue
            packed.files += 1
            packed.kept_bytes += files[path].size
            if files[path].encoding != "utf-8":
                packed.notes[f"decoded_{files[path].encoding}"] += 1
            for document in packer.add(show_path(path), source.text):
                spool.append(document)
        for document in packer.finish():
            spool.append(document)
    packed.notes.update(packer.notes)
    return packed


@cache
def _meter(tokenizer: Path | None) -> Meter:
    """Loaded once in each worker."""
    return make_meter(tokenizer)
