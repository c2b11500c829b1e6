"""The loss curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot_loss(records: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the training loss, and the validation's bits per byte if there are any, to a PNG.

    Raises ModuleNotFoundError without matplotlib, which is an extra.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [r for r in records if r["event"] == "step"]
    evaluations = [r for r in records if r["event"] == "eval"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    x = [r["step"] for r in steps]
    axes.plot(x, [r["loss"] for r in steps], color="#9db8d6", linewidth=0.8, label="loss")
    axes.plot(x, [r["smooth_loss"] for r in steps], color="#1f4e88", label="loss, smoothed")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss (nats a token)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    if evaluations:
        right = axes.twinx()
        right.plot(
            [r["step"] for r in evaluations],
            [r["val_bpb"] for r in evaluations],
            color="#c2571a",
            marker="o",
            markersize=3,
            label="validation",
        )
        right.set_ylabel("validation (bits a byte)")
        more_handles, more_labels = right.get_legend_handles_labels()
        handles, labels = handles + more_handles, labels + more_labels
    axes.legend(handles, labels)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)
