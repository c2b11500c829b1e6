"""The run: survey the files, choose among them, make documents, write them.

Passes over the disk keep memory small. Each step is a module in `stages/` and puts what it has done
into the state, so that a run that was killed goes on where it was.
"""

from collections import Counter
from typing import Any

from nanochat_chunker.errors import UsageError
from nanochat_chunker.execution import Limits, make_pool
from nanochat_chunker.manifest import Account, ProjectAccount, build_manifest
from nanochat_chunker.output import PROGRAM, Output
from nanochat_chunker.progress import Progress
from nanochat_chunker.settings import Settings
from nanochat_chunker.spool import Spool
from nanochat_chunker.stages.choose import Choice, choose
from nanochat_chunker.stages.make import Unit, make
from nanochat_chunker.stages.survey import Corpus, find, survey_all
from nanochat_chunker.stages.write import Writer
from nanochat_chunker.state import State
from nanochat_chunker.tokens import make_meter


def run(settings: Settings, progress: Progress | None = None) -> dict[str, Any]:
    """Does all of it and returns the manifest.

    Raises `UsageError` for input or output that will not do, before anything is written, and
    `ChunkerError` or `OSError` where the machine fails; then the same call goes on from there.
    """
    progress = progress or Progress()
    tokens = make_meter(settings.tokenizer).describe()
    _check_installed(settings)
    output = Output(settings)
    output.check()
    limits = Limits(settings.max_seconds_per_file, settings.worker_bytes())
    pool = make_pool(
        settings.executor,
        workers=settings.workers,
        limits=limits,
        ray_address=settings.ray_address,
    )
    with output.workspace() as work, pool:
        state = State(work / "state.sqlite")
        try:
            corpus = find(settings, pool, work)
            survey_all(corpus, settings, pool, state, progress)
            choice = choose(corpus, settings, state)
            account = _account(corpus, choice)
            facts: dict[int, bytes] = {}
            if settings.semantic:
                from nanochat_chunker.stages.semantic import read_all

                semantics = read_all(corpus, choice, pool, state, progress)
                facts, account.semantic = semantics.keys, semantics.describe()
            names = [surveyed.project.name for surveyed in corpus.projects]
            with (
                Spool(work / "documents.spool") as spool,
                Writer(output, settings, names, spool, state, progress) as writer,
            ):
                units = make(corpus, choice, settings, tokens, pool, state, spool, progress, facts)
                for unit in units:
                    _count(account, names[unit.project], unit, writer.add(unit.references))
                account.duplicate_documents = writer.duplicates
                _check_not_empty(settings, account, writer)
                manifest: dict[str, Any] = {}

                def write_manifest() -> None:
                    manifest.update(
                        build_manifest(
                            PROGRAM, settings.describe(), tokens, account,
                            writer.lengths, writer.validation_lengths,
                        )
                    )  # fmt: skip
                    output.write_manifest(manifest)

                writer.finish(write_manifest)
        finally:
            state.close()
    return manifest


def _check_installed(settings: Settings) -> None:
    """What a flag needs is there, or it is said before any work."""
    if settings.semantic:
        from nanochat_chunker.semantic.headers import builtin_headers

        builtin_headers()
    if settings.near_duplicates is not None:
        from nanochat_chunker.neardup import check_installed

        check_installed()
    if "secrets" in settings.redact:
        from nanochat_chunker.redaction import secret_patterns

        secret_patterns()


def _account(corpus: Corpus, choice: Choice) -> Account:
    return Account(
        other_files=choice.other_files,
        dropped=Counter(choice.dropped),
        notes=Counter(choice.notes),
        redacted=Counter(choice.redacted),
        projects={
            surveyed.project.name: ProjectAccount(commit=surveyed.commit)
            for surveyed in corpus.projects
        },
    )


def _count(account: Account, name: str, unit: Unit, new: int) -> None:
    account.dropped.update(unit.dropped)
    account.notes.update(unit.notes)
    account.definitions.update(unit.definitions)
    account.kept_files += unit.files
    account.kept_bytes += unit.kept_bytes
    project = account.projects[name]
    project.files += unit.files
    project.documents += new
    project.tokens += sum(unit.references.tokens)
    project.text_bytes += unit.text_bytes


def _check_not_empty(settings: Settings, account: Account, writer: Writer) -> None:
    if len(writer):
        return
    where = ", ".join(map(str, settings.inputs or settings.project_dirs))
    if account.dropped:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(account.dropped.items()))
        raise UsageError(
            f"no C or C++ file in {where} could be used (dropped: {reasons})",
            "Check the input and --max-file-bytes",
        )
    if account.kept_files:
        raise UsageError(
            f"no document came of the {account.kept_files} files in {where}",
            "Raise --max-tokens",
        )
    raise UsageError(
        f"no C or C++ files in {where}",
        f"Give files ending in {' '.join(settings.extensions)}, or --extensions",
    )
