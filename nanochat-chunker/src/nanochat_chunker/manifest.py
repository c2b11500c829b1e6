"""The account of a run: what was asked, what was kept, what was dropped and why."""

import platform
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat_chunker import __version__

FORMAT = 1


@dataclass
class ProjectAccount:
    """What became of one project."""

    files: int = 0
    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0


@dataclass
class Account:
    """Counts over a run."""

    kept_files: int = 0
    kept_bytes: int = 0  # of their text as UTF-8
    other_files: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    projects: dict[str, ProjectAccount] = field(default_factory=dict)


def build_manifest(
    program: str,
    settings: dict[str, Any],
    tokens: dict[str, Any],
    account: Account,
    lengths: Sequence[int],
    validation: int,
) -> dict[str, Any]:
    """The manifest; no time and no worker count is in it, so equal runs write equal bytes.

    `lengths` are the tokens of every document in the order written, the first `validation` of
    them held out.
    """
    from importlib.metadata import version

    return {
        "program": program,
        "format": FORMAT,
        "versions": {
            "nanochat-chunker": __version__,
            "python": platform.python_version(),
            "pyarrow": version("pyarrow"),
        },
        "settings": settings,
        "tokens_by": tokens,
        "files": {
            "kept": account.kept_files,
            "kept_bytes": account.kept_bytes,
            "dropped": dict(sorted(account.dropped.items())),
            "not_c_or_cpp": account.other_files,
            "notes": dict(sorted(account.notes.items())),
        },
        "documents": {
            "train": len(lengths) - validation,
            "validation": validation,
            "train_tokens": sum(lengths[validation:]),
            "validation_tokens": sum(lengths[:validation]),
            "bytes": sum(project.text_bytes for project in account.projects.values()),
        },
        "lengths": describe_lengths(lengths),
        "projects": {name: vars(project) for name, project in sorted(account.projects.items())},
    }


def describe_lengths(lengths: Sequence[int]) -> dict[str, Any]:
    """Least, median, mean, most, and a histogram by powers of two: from <= tokens < below."""
    bins = Counter(length.bit_length() for length in lengths)
    return {
        "least": min(lengths),
        "median": statistics.median_low(lengths),
        "mean": round(statistics.fmean(lengths), 1),
        "most": max(lengths),
        "histogram": [
            {"from": 1 << (bits - 1), "below": 1 << bits, "documents": bins[bits]}
            for bits in range(min(bins), max(bins) + 1)
        ],
    }
