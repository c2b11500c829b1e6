"""A bundle that is incomplete or damaged is refused with the name of the file at fault."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from nanochat.errors import UsageError
from nanochat.evaluate.core_bundle import load_bundle

CHOICE = {"query": "q", "choices": ["a", "b"], "gold": 1}
CONFIG = """\
icl_tasks:
- label: one
  dataset_uri: a/one.jsonl
  num_fewshot: [10]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
- label: two
  dataset_uri: a/two.jsonl
  num_fewshot:
  - 0
  icl_task_type: language_modeling
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("yaml", reason="core.yaml is read by PyYAML, of the extra `eval`")
    (tmp_path / "eval_data" / "a").mkdir(parents=True)
    (tmp_path / "core.yaml").write_text(CONFIG)
    (tmp_path / "eval_meta_data.csv").write_text(
        "Eval Task,Random baseline,Human\none,25.0,\ntwo,0,99\nelsewhere,50,\n"
    )
    (tmp_path / "eval_data" / "a" / "one.jsonl").write_text(json.dumps(CHOICE) + "\n\n")
    two = {"context": "c", "continuation": "d", "more": [1]}
    (tmp_path / "eval_data" / "a" / "two.jsonl").write_text(json.dumps(two))
    return tmp_path


def test_tasks_as_written(folder: Path) -> None:
    one, two = load_bundle(folder).tasks
    assert (one.label, one.kind, one.num_fewshot) == ("one", "multiple_choice", 10)
    assert (one.delimiter, one.baseline) == ("\nAnswer: ", 0.25)
    assert (two.label, two.kind, two.num_fewshot) == ("two", "language_modeling", 0)
    assert (two.delimiter, two.baseline) == (" ", 0.0)
    assert one.examples() == [CHOICE]
    assert one.centered(0.25) == 0.0
    assert one.centered(1.0) == 1.0


@pytest.mark.parametrize("name", ["core.yaml", "eval_meta_data.csv", "eval_data/a/two.jsonl"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UsageError, match=rf"has no {folder / name}"):
        load_bundle(folder)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere is not a folder.*eval_bundle.zip"):
        load_bundle(tmp_path / "nowhere")


def test_without_pyyaml_the_message_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UsageError, match=r"PyYAML.*nanochat-core\[eval\]"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (CONFIG, "icl_tasks: [", "not YAML"),
        (CONFIG, "tasks: []", "no list of icl_tasks"),
        (CONFIG, "icl_tasks: [7]", "not a mapping"),
        ("  dataset_uri: a/one.jsonl\n", "", "'one' has no dataset_uri"),
        ("multiple_choice", "essay", "type 'essay'"),
        ("[10]", "many", "num_fewshot 'many'"),
        ("label: two", "label: three", "no baseline of 'three'"),
        ("label: two", "label: one", "one more than once"),
    ],
)
def test_a_damaged_list_of_tasks(folder: Path, old: str, new: str, message: str) -> None:
    path = folder / "core.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UsageError, match=message) as caught:
        load_bundle(folder)
    assert str(folder) in caught.value.message


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("Task,Baseline\none,1\n", "without the columns"),
        ("Eval Task,Random baseline\none,often\n", "without the columns"),
        ("Eval Task,Random baseline\none,100\ntwo,0\n", "baseline of 100.0 for 'one'"),
    ],
)
def test_damaged_baselines(folder: Path, table: str, message: str) -> None:
    (folder / "eval_meta_data.csv").write_text(table)
    with pytest.raises(UsageError, match=message):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 has no query and no choices and no gold"),
        ('{"query": "q", "choices": [], "gold": 0}', "line 2 has no choices"),
        ('{"query": "q", "choices": ["a"], "gold": 1}', "line 2 has gold 1 among 1 options"),
        ('{"query": "q", "choices": ["a"], "gold": "a"}', "line 2 has gold 'a' among 1 options"),
    ],
)
def test_a_damaged_example_is_named_by_its_line(folder: Path, line: str, message: str) -> None:
    path = folder / "eval_data" / "a" / "one.jsonl"
    path.write_text(json.dumps(CHOICE) + "\n" + line + "\n")
    with pytest.raises(UsageError, match=rf"one.jsonl {message}"):
        load_bundle(folder).tasks[0].examples()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n", "has no examples"),
        (b"\xff\n", "not UTF-8"),
        (b'{"context": "c", "continuation": " "}\n', "empty continuation"),
    ],
)
def test_damaged_data(folder: Path, content: bytes, message: str) -> None:
    (folder / "eval_data" / "a" / "two.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_bundle(folder).tasks[1].examples()
