"""The rows of a comparison as a Markdown table, as plain values, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat.bench.jobs import Job, Outcome
from nanochat.proof import GROUPS, QUANTISE_LIMIT

Row = tuple[Job, Outcome]


def label(job: Job, outcome: Outcome | None = None) -> str:
    """The backends of a row: those that ran, where it is known what `auto` took."""
    ran = outcome.backends if outcome is not None else {}
    return ", ".join((ran or job.backends).values())


def proof(outcome: Outcome) -> str:
    """The worst that the profiler says of any backend of a row."""
    states = {verdict["state"] for verdict in outcome.verdicts}
    worst = ("unproven", "not provable", "proven")
    return next((state for state in worst if state in states), "")


def unproven(rows: Sequence[Row]) -> bool:
    return any(proof(outcome) == "unproven" for _, outcome in rows)


def plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For --json."""
    return [
        {"asked": label(job), **outcome.as_dict(), "proof": proof(outcome)} for job, outcome in rows
    ]


def markdown(rows: Sequence[Row]) -> str:
    """The comparison; ratios are to the first row that ran."""
    first = next((outcome for _, outcome in rows if outcome.ok), None)
    whole = bool(rows) and rows[0][0].work == "step"
    heads = ["backends", "ms", "tokens/s" if whole else "TFLOP/s", "ratio", "MFU"]
    heads += ["peak" if whole else "extra peak", "ratio", "compile", "proof"]
    lines = [_line(heads), "|" + "---|" * len(heads)]
    for job, o in rows:
        if first is None or not o.ok or o.ms is None or first.ms is None:
            told = f"{o.state}: {o.reason}".replace("|", "/")
            lines.append(_line([label(job), told, *[""] * (len(heads) - 2)]))
            continue
        rate = o.tokens_per_second if whole else (o.flops_per_second or 0.0) / 1e12
        memory, base = (o.peak, first.peak) if whole else (o.extra, first.extra)
        lines.append(
            _line(
                [
                    label(job, o),
                    f"{o.ms:.3f}",
                    f"{rate:,.0f}" if whole else f"{rate:,.2f}",
                    f"{first.ms / o.ms:.3f}",
                    "" if o.mfu is None else f"{o.mfu:.1%}",
                    "" if memory is None else f"{memory / 2**20:,.0f} MiB",
                    f"{memory / base:.3f}" if memory is not None and base else "",
                    f"{o.compile_seconds or 0.0:.1f} s",
                    proof(o),
                ]
            )
        )
    return "\n".join(lines)


def notes(rows: Sequence[Row]) -> list[str]:
    """What is behind each row's proof, and warnings."""
    told = []
    for job, outcome in rows:
        for verdict in outcome.verdicts:
            if verdict["state"] in ("unproven", "not provable"):
                text = f"{verdict['hook']} {verdict['backend']} is {verdict['state']}"
                told.append(f"{label(job, outcome)}: {text}: {verdict['reason']}")
        share = outcome.shares.get("quantise and transpose", 0.0)
        if share > QUANTISE_LIMIT:
            told.append(
                f"{label(job, outcome)}: warning: {share:.1%} of the time goes into quantising and "
                f"transposing (limit {QUANTISE_LIMIT:.0%})"
            )
    return told


def profiles(rows: Sequence[Row], top: int) -> str:
    """Where the time of each row goes: by group, and the longest kernels."""
    sections = []
    for job, outcome in rows:
        if not outcome.shares:
            continue
        total = sum(k[3] for k in outcome.kernels)
        sections += ["", f"{label(job, outcome)} (by {outcome.evidence})", "", _line(GROUPS)]
        sections += ["|" + "---|" * len(GROUPS)]
        sections.append(_line([f"{outcome.shares[g]:.1%}" for g in GROUPS]))
        sections += ["", _line(["ms", "of these", "calls", "phase", "group", "name"])]
        sections.append("|---|---|---|---|---|---|")
        for name, phase, group, ms, calls in outcome.kernels[:top]:
            short = name.replace("|", "/")[:100]
            sections.append(
                _line([f"{ms:.3f}", f"{ms / total:.1%}", str(calls), phase, group, f"`{short}`"])
            )
    return "\n".join(sections)


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Bars of the time of each row, to a PNG. Raises ModuleNotFoundError without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ran = [(label(job, outcome), outcome.ms) for job, outcome in rows if outcome.ms is not None]
    figure = Figure(figsize=(8, 1.2 + 0.4 * len(ran)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.barh([name for name, _ in ran], [ms for _, ms in ran], color="#1f4e88")
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds, forward and backward")
    axes.set_title(title)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
