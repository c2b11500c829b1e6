"""The plan of a run as a table."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.plan import Plan
from nanochat.train.environment import Applied


def print_plan(plan: Plan, environment: Sequence[Applied], *, verbose: bool = False) -> None:
    """Print what was chosen and why; with `verbose`, also what was refused and why."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("hook")
    table.add_column("backend", style="bold")
    table.add_column("from", overflow="fold")
    table.add_column("why", overflow="fold")
    for choice in plan:
        table.add_row(
            choice.hook,
            choice.backend.name,
            f"{choice.distribution} {choice.version}",
            _plain(choice.reason),
        )
        if choice.warning:
            table.add_row("", "", "", _plain(f"warning: {choice.warning}"))
        if verbose:
            for refusal in choice.refusals:
                remedy = f". {refusal.remedy}" if refusal.remedy else ""
                table.add_row("", f"not {refusal.name}", "", _plain(refusal.reason + remedy))
    table.add_row("dtype", plan.dtype, "", "of activations")
    for applied in environment:
        table.add_row("environment", "", "", _plain(str(applied)))
    console.print(table)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
