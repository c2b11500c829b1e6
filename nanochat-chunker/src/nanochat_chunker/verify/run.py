"""Verifying a whole output: which documents, compiled side by side, and what came of it."""

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat_chunker.errors import UsageError
from nanochat_chunker.verify.compiler import Compiler, Outcome, find_compiler
from nanochat_chunker.verify.outputs import Document, Documents
from nanochat_chunker.verify.reasons import reason

_SHOWN_REASONS = 12


@dataclass
class Rate:
    """Documents compiled, and how many of them did."""

    documents: int = 0
    alone: int = 0
    with_includes: int = 0

    def add(self, alone: bool, included: bool) -> None:
        self.documents += 1
        self.alone += alone
        self.with_includes += included


@dataclass
class Report:
    """The rates of one verification. With includes counts what compiles alone as well."""

    compiler: str = ""
    total: int = 0  # documents in the output, of which `rate.documents` were compiled
    include_dirs: tuple[str, ...] = ()
    rate: Rate = field(default_factory=Rate)
    projects: dict[str, Rate] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)  # of those that fail alone
    reasons_with_includes: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """The report as text."""
        rate = self.rate
        lines = [
            f"{rate.documents} of {self.total} documents compiled with {self.compiler}",
            f"alone: {_share(rate.alone, rate.documents)}",
        ]
        if self.include_dirs:
            lines.append(f"with includes: {_share(rate.with_includes, rate.documents)}")
        named = {name: part for name, part in self.projects.items() if name}
        if named:  # JSONL says nothing of projects
            lines.append("by project:")
        for name, part in sorted(named.items()):
            line = f"  {name}: {_share(part.alone, part.documents)}"
            if self.include_dirs:
                line += f"; with includes {_share(part.with_includes, part.documents)}"
            lines.append(line)
        for title, reasons in (
            ("why not, alone", self.reasons),
            ("why not, with includes", self.reasons_with_includes),
        ):
            if reasons:
                lines.append(f"{title}:")
                ordered = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
                lines += [f"  {count:5}  {text}" for text, count in ordered[:_SHOWN_REASONS]]
        return lines

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "compiler": self.compiler,
            "total": self.total,
            "include_dirs": list(self.include_dirs),
            **vars(self.rate),
            "projects": {name: vars(rate) for name, rate in sorted(self.projects.items())},
            "reasons": dict(sorted(self.reasons.items())),
            "reasons_with_includes": dict(sorted(self.reasons_with_includes.items())),
        }


def verify_documents(
    documents: Iterable[Document],
    count: int,
    compiler: Compiler,
    *,
    include_dirs: Sequence[Path] = (),
    defines: Sequence[str] = (),
    workers: int = 1,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Report, list[bool]]:
    """Compiles `count` documents, each alone and, where it fails, with `include_dirs`.

    The second value says for each document whether it compiles alone.
    """
    report = Report(compiler.version, count, tuple(str(path) for path in include_dirs))
    projects: dict[str, Rate] = defaultdict(Rate)
    results: list[bool] = []

    def check(document: Document) -> tuple[Outcome, Outcome]:
        alone = compiler.compile(document.text, c=document.is_c)
        if alone.compiles or not include_dirs:
            return alone, alone
        return alone, compiler.compile(
            document.text, c=document.is_c, include_dirs=include_dirs, defines=defines
        )

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for document, (alone, included) in _in_turn(pool, check, documents, 4 * max(1, workers)):
            results.append(alone.compiles)
            for rate in (report.rate, projects[document.project]):
                rate.add(alone.compiles, included.compiles)
            if not alone.compiles:
                report.reasons[reason(alone.diagnostics)] += 1
            if include_dirs and not included.compiles:
                report.reasons_with_includes[reason(included.diagnostics)] += 1
            on_done(len(results), count)
    report.projects = dict(projects)
    return report, results


def _in_turn(
    pool: ThreadPoolExecutor,
    check: Callable[[Document], tuple[Outcome, Outcome]],
    documents: Iterable[Document],
    ahead: int,
) -> Iterator[tuple[Document, tuple[Outcome, Outcome]]]:
    """Documents with their outcomes, in order; only so many are in memory at a time."""
    running: deque[tuple[Document, Future[tuple[Outcome, Outcome]]]] = deque()
    for document in documents:
        running.append((document, pool.submit(check, document)))
        if len(running) == ahead:
            first, future = running.popleft()
            yield first, future.result()
    for document, future in running:
        yield document, future.result()


def verify_output(
    output: str | Path,
    *,
    sample: int | None = None,
    include_dirs: Sequence[Path] = (),
    compiler: str | None = None,
    annotate: bool = False,
    workers: int = 1,
    seed: int = 42,
    timeout_s: float = 60.0,
    memory_mb: int = 4096,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Compiles documents of `output`, all or a random sample, and reports.

    With `annotate` the result is written into the output: true, false, or null for documents that
    the sample left out. Raises `UsageError` for what cannot be read or compiled at all.
    """
    for folder in include_dirs:
        if not folder.is_dir():
            raise UsageError(f"--include {folder} is no folder", "Give a folder of headers")
    if sample is not None and sample < 1:
        raise UsageError(f"--sample is {sample}", "Give a number of 1 or more")
    found = find_compiler(compiler, timeout_s, memory_mb)
    documents = Documents(str(output))
    total = documents.count()
    if not total:
        raise UsageError(f"no documents in {output}", "Give an output of nanochat-chunker")
    chosen = None
    if sample is not None and sample < total:
        chosen = sorted(random.Random(seed).sample(range(total), sample))
    report, results = verify_documents(
        documents.read(chosen),
        total if chosen is None else len(chosen),
        found,
        include_dirs=include_dirs,
        workers=workers,
        on_done=on_done,
    )
    report.total = total
    if annotate:
        compiles: list[bool | None] = [None] * total
        for i, result in zip(range(total) if chosen is None else chosen, results, strict=True):
            compiles[i] = result
        documents.annotate(compiles)
    return report


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.1f}%)" if whole else "none"
