"""What a run leaves behind while it runs: log.jsonl always, wandb where it is wanted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from nanochat.train.config import NO_RUN_NAME

LOG = "log.jsonl"


class Sink(Protocol):
    """Takes the records of a run: plain values, with the step under "step"."""

    def write(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, flushed at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class Wandb:
    """A run of Weights & Biases, which must be installed; offline where there is no key."""

    def __init__(self, name: str, folder: Path, config: dict[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]

        mode = None if "WANDB_MODE" in os.environ or _has_wandb_key() else "offline"
        self._run = wandb.init(
            project="nanochat", name=name, dir=str(folder), config=config, mode=mode
        )

    def write(self, record: dict[str, Any]) -> None:
        event = record.get("event", "step")
        values = {k: v for k, v in record.items() if isinstance(v, (int, float))}
        self._run.log({k if k == "step" else f"{event}/{k}": v for k, v in values.items()})

    def close(self) -> None:
        self._run.finish()


class Silence:
    """Takes everything and keeps nothing: for the ranks that do not record."""

    def write(self, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class Sinks:
    """Several sinks as one."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def write(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.write(record)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()


def open_sinks(folder: Path, run: str, config: dict[str, Any], say: Callable[[str], None]) -> Sink:
    """The sinks of a run in its folder; `say` is told once if wandb is wanted but missing."""
    log = JsonLines(folder / LOG)
    if run in (NO_RUN_NAME, ""):
        return log
    try:
        return Sinks(log, Wandb(run, folder, config))
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        say(f"--run {run}: wandb is not installed, the run is recorded in {folder / LOG} alone")
        return log


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log. A last line that a killed process left unfinished is left out."""
    records = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                records.append(json.loads(line))
    return records


def copy_log(source: Path, path: Path) -> None:
    """Let a run that branches off another begin with that one's records."""
    if not path.exists() and source.exists():
        shutil.copyfile(source, path)


def rewind_log(path: Path, step: int) -> None:
    """Keep only what was recorded before a step, so that a resumed run records nothing twice."""
    if not path.exists():
        return
    kept = [json.dumps(r) + "\n" for r in read_log(path) if r["step"] < step]
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
