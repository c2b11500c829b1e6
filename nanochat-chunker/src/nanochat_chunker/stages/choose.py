"""Step two: the order of the projects, and which files become documents."""

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from nanochat_chunker.files import Entry
from nanochat_chunker.includes import Include, Resolver, depth_first
from nanochat_chunker.neardup import NearDuplicates
from nanochat_chunker.provenance.licences import LicenceFilter
from nanochat_chunker.settings import Settings
from nanochat_chunker.stages.survey import Corpus, Surveyed
from nanochat_chunker.state import State
from nanochat_chunker.survey import Survey

KEPT = 0
# A reason of these leaves a file to others that need it, in documents of slices.
_STILL_MATERIAL = frozenset(("duplicate", "near_duplicate", "generated", "vendored"))


@dataclass
class Choice:
    """One byte a file: 0, or its reason to be dropped."""

    order: list[int]  # of the projects, the foundational ones first
    fates: dict[int, bytes] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=lambda: ["kept"])
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    other_files: int = 0

    def code(self, reason: str) -> int:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason)

    def kept(self, index: int, files: list[Survey]) -> list[Survey]:
        """Those that documents are made of."""
        fates = self.fates[index]
        return [file for file, fate in zip(files, fates, strict=True) if fate == KEPT]

    def material(self, index: int, files: list[Survey]) -> list[Survey]:
        """Those that slices may take items from."""
        fates = self.fates[index]
        return [
            file
            for file, fate in zip(files, fates, strict=True)
            if fate == KEPT or self.reasons[fate] in _STILL_MATERIAL
        ]


def choose(corpus: Corpus, settings: Settings, state: State) -> Choice:
    """Goes over all surveys once. What two projects share stays with the foundational one."""
    choice = Choice(_foundational(corpus, state))
    allowed = LicenceFilter(settings.licenses, settings.exclude_licenses)
    near = None
    if settings.near_duplicates is not None:
        near = NearDuplicates(settings.near_duplicates)
    seen: set[bytes] = set()
    for index in choice.order:
        surveyed = corpus.projects[index]
        choice.dropped.update(surveyed.dropped)
        choice.other_files += surveyed.other_files
        fates = bytearray()
        for file in surveyed.files(state):
            reason = _reason(file, surveyed, settings, allowed, seen, near)
            fates.append(KEPT if reason is None else choice.code(reason))
            if reason is not None:
                choice.dropped[reason] += 1
            else:
                choice.notes["generated"] += file.generated
                choice.notes["vendored"] += file.vendored
                choice.redacted.update(file.redacted)
        choice.fates[index] = bytes(fates)
    choice.notes = +choice.notes
    return choice


def _reason(
    file: Survey,
    surveyed: Surveyed,
    settings: Settings,
    allowed: LicenceFilter,
    seen: set[bytes],
    near: NearDuplicates | None,
) -> str | None:
    if file.dropped is not None:
        return file.dropped
    if allowed and not allowed.allows(file.licence or surveyed.licences.of(file.path)):
        return "license"
    if file.generated and "generated" in settings.skip:
        return "generated"
    if file.vendored and "vendored" in settings.skip:
        return "vendored"
    if file.digest in seen:
        return "duplicate"
    seen.add(file.digest)
    if near is not None and near.seen_like(file.minhash):
        return "near_duplicate"
    return None


def _foundational(corpus: Corpus, state: State) -> list[int]:
    """The projects, each after those whose headers it includes, ties by name."""
    count = len(corpus.projects)
    if count < 2:
        return list(range(count))
    state.set_headers(
        (posixpath.basename(entry.path), index, entry.path)
        for index in range(count)
        for entry in _entries(corpus, index)
        if _is_header(entry.path)
    )
    finder = _Finder(corpus, state)
    return depth_first(range(count), finder.needed)


def _entries(corpus: Corpus, index: int) -> list[Entry]:
    import pickle

    entries, _ = pickle.loads(corpus.trees[index])
    return list(entries)


def _is_header(path: str) -> bool:
    return posixpath.splitext(path)[1].lower().startswith((".h", ".i", ".t")) or path.endswith(
        ".cuh"
    )


class _Finder:
    """Says which projects hold the headers that a project includes and has not."""

    def __init__(self, corpus: Corpus, state: State) -> None:
        self._corpus = corpus
        self._state = state
        self._known: dict[str, tuple[int, ...]] = {}

    def needed(self, index: int) -> list[int]:
        surveyed = self._corpus.projects[index]
        found: set[int] = set()
        for target in self._outside(index, surveyed):
            if target not in self._known:
                self._known[target] = tuple(self._holders(target))
            holders = self._known[target]
            # A header that many projects hold says nothing about any of them.
            if len(holders) == 1:
                found.update(holders)
        return sorted(found - {index})

    def _outside(self, index: int, surveyed: Surveyed) -> list[str]:
        resolver = Resolver(
            [entry.path for entry in _entries(self._corpus, index)], surveyed.project.name
        )
        missing: dict[Include, None] = {}
        for file in surveyed.files(self._state):
            for include in file.includes:
                # A bare name may be the standard library's, or anybody's.
                if "/" in include.target and resolver.resolve(file.path, include) is None:
                    missing[include] = None
        return sorted({include.target for include in missing})

    def _holders(self, target: str) -> Iterator[int]:
        plain = posixpath.normpath(target.lstrip("/"))
        while plain.startswith("../"):
            plain = plain[3:]
        found = {
            index
            for index, path in self._state.headers(posixpath.basename(plain))
            if f"/{self._corpus.projects[index].project.name}/{path}".endswith(f"/{plain}")
        }
        yield from sorted(found)
