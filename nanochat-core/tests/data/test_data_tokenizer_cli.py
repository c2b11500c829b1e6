"""nanochat-tokenizer as it is typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.cli.tokenizer import main
from nanochat.data.tokenizer import Tokenizer


@pytest.mark.parametrize("dash", ["-", "_"])
def test_train_then_inspect(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dash: str
) -> None:
    train = ["train", f"--data{dash}dir", str(data_dir), f"--vocab{dash}size", "320"]
    assert main([*train, "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "learnt 320 ids" in said
    assert "of 114 documents" in said  # three shards of 38 with text: none of the validation shard
    assert "bytes per token on shard_00003.parquet" in said

    assert main(["inspect", str(tmp_path / "out"), "--text", "int é <|bos|>"]) == 0
    said = capsys.readouterr().out
    assert r"b'\xc3'" in said
    assert "14 bytes" in said
    assert main(["inspect", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "320" in said
    assert "<|fim_prefix|>" in said
    assert Tokenizer.load(tmp_path / "out").fingerprint in said


def test_max_chars_limits_what_is_read(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--data-dir", str(data_dir), "--vocab-size", "400"]
    assert main([*train, "--output", str(tmp_path), "--max-chars", "1000"]) == 0
    assert "from 1,000 characters" in capsys.readouterr().out


def test_too_little_text_warns(
    tmp_path: Path, shard: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shard(tmp_path / "a.parquet", ["few words"])
    shard(tmp_path / "b.parquet", ["held out"])
    train = ["train", "--data-dir", str(tmp_path), "--output", str(tmp_path)]
    assert main(train) == 0
    assert "too few different words for 32,768 ids" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "--data-dir", "{empty}", "--output", "{out}"], "has no shards"),
        (["train", "--data-dir", "{empty}/no", "--output", "{out}"], "does not exist"),
        (
            ["train", "--data-dir", "{data}", "--output", "{data}/shard_00000.parquet"],
            "cannot make",
        ),
        (["train", "--data-dir", "{data}", "--output", "{out}", "--vocab-size", "9"], "too small"),
        (["train", "--data-dir", "{data}", "--output", "{out}", "--max-chars", "0"], "--max-chars"),
        (["train", "--data-dir", "{data}"], "--output"),
        (["inspect", "{empty}"], "no tokenizer.json"),
        ([], "COMMAND"),
    ],
)
def test_wrong_use_is_one_message(
    data_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "out": tmp_path / "out", "data": data_dir}
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
