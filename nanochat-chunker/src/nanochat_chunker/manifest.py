"""The account of a run: what was asked, what was kept, what was dropped and why."""

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nanochat_chunker import __version__

FORMAT = 2
# What has a say in the documents, where it is installed.
_PACKAGES = ("pyarrow", "detect-secrets", "rensa", "libclang")


@dataclass
class ProjectAccount:
    """What became of one project."""

    files: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    commit: str | None = None


@dataclass
class Account:
    """Counts over a run."""

    kept_files: int = 0
    kept_bytes: int = 0  # of their text as UTF-8
    other_files: int = 0
    duplicate_documents: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    redacted: Counter[str] = field(default_factory=Counter)
    definitions: Counter[str] = field(default_factory=Counter)  # with slices: see `Made`
    projects: dict[str, ProjectAccount] = field(default_factory=dict)
    semantic: dict[str, Any] | None = None  # what libclang made of the files, where it was asked


def build_manifest(
    program: str,
    settings: dict[str, Any],
    tokens: dict[str, Any],
    account: Account,
    lengths: Counter[int],
    validation: Counter[int],
) -> dict[str, Any]:
    """The manifest; no time and no worker count is in it, so equal runs write equal bytes.

    `lengths` counts all documents by their tokens, `validation` those held out.
    """
    train = lengths - validation
    semantic = {} if account.semantic is None else {"semantic": account.semantic}
    return {
        "program": program,
        "format": FORMAT,
        "versions": _versions(),
        "settings": settings,
        "tokens_by": tokens,
        "files": {
            "kept": account.kept_files,
            "kept_bytes": account.kept_bytes,
            "dropped": _sorted(account.dropped),
            "not_c_or_cpp": account.other_files,
            "notes": _sorted(account.notes),
            "redacted": _sorted(account.redacted),
        },
        **semantic,
        "documents": {
            "train": train.total(),
            "validation": validation.total(),
            "train_tokens": _tokens(train),
            "validation_tokens": _tokens(validation),
            "bytes": sum(project.text_bytes for project in account.projects.values()),
            "dropped": {"duplicate": account.duplicate_documents},
        },
        **_definitions(account.definitions),
        "lengths": describe_lengths(lengths),
        "projects": {name: vars(project) for name, project in sorted(account.projects.items())},
    }


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"nanochat-chunker": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _definitions(counts: Counter[str]) -> dict[str, Any]:
    """With slices: definitions that are roots, and those that are not, by reason."""
    if not counts:
        return {}
    roots = counts["roots"]
    left_out = {name: count for name, count in counts.items() if name != "roots"}
    return {"definitions": {"roots": roots, "left_out": _sorted(left_out)}}


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts) if counts[name]}


def _tokens(lengths: Counter[int]) -> int:
    return sum(tokens * documents for tokens, documents in lengths.items())


def describe_lengths(lengths: Counter[int]) -> dict[str, Any]:
    """Least, median, mean, most, and a histogram by powers of two: from <= tokens < below."""
    bins: Counter[int] = Counter()
    for tokens, documents in lengths.items():
        bins[tokens.bit_length()] += documents
    total = lengths.total()
    return {
        "least": min(lengths),
        "median": _middle(lengths),
        "mean": round(_tokens(lengths) / total, 1),
        "most": max(lengths),
        "histogram": [
            {"from": 1 << (bits - 1), "below": 1 << bits, "documents": bins[bits]}
            for bits in range(min(bins), max(bins) + 1)
        ],
    }


def _middle(lengths: Counter[int]) -> int:
    """The lower of the two in the middle, as statistics.median_low gives it."""
    before = 0
    for tokens in sorted(lengths):
        before += lengths[tokens]
        if 2 * before >= lengths.total():
            return tokens
    raise ValueError("no documents")
