"""A manifest as tables and as a plot."""

from pathlib import Path
from typing import Any

from nanochat_chunker.errors import UsageError

_BAR = 40  # characters of the longest bar


def counted(count: int, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def show(manifest: dict[str, Any], output: str, most_projects: int) -> None:
    """Prints lengths, drops, redactions and the largest projects."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    files, documents, lengths = manifest["files"], manifest["documents"], manifest["lengths"]
    total = documents["train"] + documents["validation"]
    tokens = documents["train_tokens"] + documents["validation_tokens"]
    settings = manifest["settings"]
    console.print(Text(f"{output}: {counted(total, 'document')}, {tokens:,} tokens "
                       f"({manifest['tokens_by']['method']}), mode {settings['mode']}, at most "
                       f"{settings['max_tokens']:,} tokens each"))  # fmt: skip
    if "definitions" in manifest:
        console.print(f"around {manifest['definitions']['roots']:,} definitions")
    console.print(f"{counted(files['kept'], 'file')} of "
                  f"{counted(len(manifest['projects']), 'project')}, "
                  f"{files['kept_bytes'] / 1e6:,.1f} MB")  # fmt: skip

    table = Table(title="Tokens of a document", title_justify="left")
    table.add_column("from", justify="right")
    table.add_column("below", justify="right")
    table.add_column("documents", justify="right")
    table.add_column("")
    most = max(bin["documents"] for bin in lengths["histogram"])
    for bin in lengths["histogram"]:
        bar = "\u2588" * max(round(_BAR * bin["documents"] / most), bool(bin["documents"]))
        table.add_row(f"{bin['from']:,}", f"{bin['below']:,}", f"{bin['documents']:,}", bar)
    console.print(table)
    console.print(f"least {lengths['least']:,}, median {lengths['median']:,}, "
                  f"mean {lengths['mean']:,}, most {lengths['most']:,}")  # fmt: skip

    for title, counts in _counts(manifest):
        table = Table(title=title, title_justify="left")
        table.add_column("reason")
        table.add_column("count", justify="right")
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            table.add_row(Text(name), f"{count:,}")
        console.print(table)

    table = Table(title="Largest projects", title_justify="left")
    for name in ("project", "files", "documents", "tokens"):
        table.add_column(name, justify="left" if name == "project" else "right")
    ranked = sorted(manifest["projects"].items(), key=lambda item: (-item[1]["tokens"], item[0]))
    for name, project in ranked[:most_projects]:
        numbers = (f"{project[key]:,}" for key in ("files", "documents", "tokens"))
        table.add_row(Text(name), *numbers)
    console.print(table)
    if len(ranked) > most_projects:
        console.print(f"and {len(ranked) - most_projects:,} more (--projects N)")


def _counts(manifest: dict[str, Any]) -> list[tuple[str, dict[str, int]]]:
    files = manifest["files"]
    named = [
        ("Files dropped", files["dropped"]),
        ("Documents dropped", manifest["documents"]["dropped"]),
        ("Definitions in no document", manifest.get("definitions", {}).get("left_out", {})),
        ("Redacted", files["redacted"]),
        ("Noted", files["notes"]),
        ("Sliced by names alone", manifest.get("semantic", {}).get("fallback", {})),
    ]
    shown = [(title, {k: v for k, v in counts.items() if v}) for title, counts in named]
    return [(title, counts) for title, counts in shown if counts]


def check_picture(path: Path) -> None:
    """Raises `UsageError` where `plot` could not draw into a file of this name."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(
            "--plot needs the package matplotlib, which is not installed",
            "Type: pip install 'nanochat-chunker[plot]'",
        ) from None
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--plot {path} names no kind of picture", "End it in .png, .svg or .pdf")
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} for --plot", "Make it, or name another")


def plot(manifest: dict[str, Any], path: Path) -> None:
    """Draws the lengths and what was dropped."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    bins = manifest["lengths"]["histogram"]
    dropped = {**manifest["files"]["dropped"]}
    dropped |= {f"document {k}": v for k, v in manifest["documents"]["dropped"].items() if v}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    left.bar([f"{bin['from']:,}" for bin in bins], [bin["documents"] for bin in bins])
    left.set_xlabel("tokens of a document, from")
    left.set_ylabel("documents")
    left.tick_params(axis="x", rotation=45)
    left.set_title(f"median {manifest['lengths']['median']:,} tokens")
    ranked = sorted(dropped.items(), key=lambda item: (item[1], item[0]))
    right.barh([name for name, _ in ranked], [count for _, count in ranked])
    right.set_title(f"dropped, {manifest['files']['kept']:,} files kept")
    figure.savefig(path, dpi=120)
    plt.close(figure)
