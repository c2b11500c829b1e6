"""The published evaluation bundle of the CORE metric, as a folder on disk.

    core.yaml            icl_tasks: label, dataset_uri, num_fewshot, icl_task_type, ...
    eval_meta_data.csv   the accuracy of guessing, in per cent, for each task
    eval_data/           one JSON line an example

It is the `eval_bundle.zip` that karpathy/nanochat publishes, unpacked; the tasks are those of the
DCLM paper (arXiv:2406.11794).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from nanochat.errors import UsageError

Kind = Literal["multiple_choice", "schema", "language_modeling"]
Example = dict[str, Any]

FIELDS: Mapping[Kind, tuple[str, ...]] = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}
OPTIONS: Mapping[Kind, str] = {"multiple_choice": "choices", "schema": "context_options"}
REMEDY = "Unpack the eval_bundle.zip of karpathy/nanochat and name its folder"


@dataclass(frozen=True)
class Task:
    """One task. `baseline` is the accuracy of guessing, between 0 and 1."""

    label: str
    kind: Kind
    path: Path
    num_fewshot: int
    delimiter: str
    baseline: float

    def centered(self, accuracy: float) -> float:
        """Accuracy on a scale where guessing is 0 and perfection 1."""
        return (accuracy - self.baseline) / (1.0 - self.baseline)

    def examples(self) -> list[Example]:
        """Every example in the order of the file. Raises UsageError naming the line at fault."""
        examples = []
        with self.path.open(encoding="utf-8") as lines:
            try:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        examples.append(self._example(line, number))
            except UnicodeDecodeError as error:
                raise UsageError(f"{self.path} is not UTF-8: {error.reason}", REMEDY) from error
        if not examples:
            raise UsageError(f"{self.path} has no examples", REMEDY)
        return examples

    def _example(self, line: str, number: int) -> Example:
        where = f"{self.path} line {number}"
        try:
            example = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{where} is not JSON: {error.msg}", REMEDY) from error
        missing = [
            f for f in FIELDS[self.kind] if not isinstance(example, dict) or f not in example
        ]
        if missing:
            raise UsageError(
                f"{where} has no {' and no '.join(missing)}, which a {self.kind} task needs", REMEDY
            )
        if self.kind in OPTIONS:
            options, gold = example[OPTIONS[self.kind]], example["gold"]
            if not isinstance(options, list) or not options:
                raise UsageError(f"{where} has no {OPTIONS[self.kind]} to choose from", REMEDY)
            if not isinstance(gold, int) or not 0 <= gold < len(options):
                raise UsageError(f"{where} has gold {gold!r} among {len(options)} options", REMEDY)
        if "continuation" in example and not str(example["continuation"]).strip():
            raise UsageError(f"{where} has an empty continuation", REMEDY)
        return cast(Example, example)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose tasks are all present. Their examples are read when they are evaluated."""

    folder: Path
    tasks: tuple[Task, ...]


def load_bundle(path: Path | str) -> Bundle:
    """Read a bundle's list of tasks. Raises UsageError naming the first thing that is missing."""
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"the CORE bundle {folder} is not a folder", REMEDY)
    entries = _read_tasks(folder / "core.yaml")
    baselines = _read_baselines(folder / "eval_meta_data.csv")
    tasks = tuple(_task(entry, folder, baselines) for entry in entries)
    labels = [task.label for task in tasks]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UsageError(f"{folder / 'core.yaml'} lists {', '.join(twice)} more than once", REMEDY)
    absent = [str(task.path) for task in tasks if not task.path.is_file()]
    if absent:
        more = f" and {len(absent) - 1} more files" if len(absent) > 1 else ""
        raise UsageError(f"the CORE bundle has no {absent[0]}{more}", REMEDY)
    return Bundle(folder, tasks)


def _read_tasks(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise UsageError(f"the CORE bundle has no {path}", REMEDY)
    try:
        import yaml
    except ImportError as error:
        raise UsageError(
            f"reading {path} needs PyYAML, which is not installed",
            "pip install 'nanochat-core[eval]'",
        ) from error
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {str(error).splitlines()[0]}", REMEDY) from error
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{path} has no list of icl_tasks", REMEDY)
    return entries


def _read_baselines(path: Path) -> dict[str, float]:
    """The accuracy of guessing by task, in per cent."""
    if not path.is_file():
        raise UsageError(f"the CORE bundle has no {path}", REMEDY)
    baselines = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            try:
                baselines[row["Eval Task"]] = float(row["Random baseline"])
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"{path} has a row without the columns 'Eval Task' and 'Random baseline'",
                    REMEDY,
                ) from error
    return baselines


def _task(entry: object, folder: Path, baselines: Mapping[str, float]) -> Task:
    where = folder / "core.yaml"
    if not isinstance(entry, dict):
        raise UsageError(f"{where} has the task {entry!r} which is not a mapping", REMEDY)
    for name in ("label", "dataset_uri", "num_fewshot", "icl_task_type"):
        if name not in entry:
            raise UsageError(f"{where}: task {entry.get('label', '?')!r} has no {name}", REMEDY)
    label, kind, shots = str(entry["label"]), entry["icl_task_type"], entry["num_fewshot"]
    if kind not in FIELDS:
        raise UsageError(
            f"{where}: task {label!r} is of type {kind!r}, known are {', '.join(FIELDS)}", REMEDY
        )
    # The published file gives a list of one number of examples.
    shots = shots[0] if isinstance(shots, list) and shots else shots
    if not isinstance(shots, int) or shots < 0:
        raise UsageError(f"{where}: task {label!r} has num_fewshot {shots!r}", REMEDY)
    if label not in baselines:
        raise UsageError(f"{folder / 'eval_meta_data.csv'} has no baseline of {label!r}", REMEDY)
    baseline = 0.01 * baselines[label]
    if not 0.0 <= baseline < 1.0:
        raise UsageError(
            f"{folder / 'eval_meta_data.csv'} has a baseline of {baselines[label]} for {label!r}, "
            "it must be a percentage below 100",
            REMEDY,
        )
    return Task(
        label=label,
        kind=cast(Kind, kind),
        path=folder / "eval_data" / str(entry["dataset_uri"]),
        num_fewshot=shots,
        delimiter=str(entry.get("continuation_delimiter", " ")),
        baseline=baseline,
    )
