"""nanochat-eval as it is typed."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.cli.evaluate import main
from nanochat.data.loader import validation_batches
from nanochat.generate.load import open_checkpoint


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_PLUGINS", "")
    monkeypatch.delenv("NANOCHAT_DATA_DIR", raising=False)
    monkeypatch.delenv("NANOCHAT_CORE_BUNDLE", raising=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    pytest.importorskip("yaml", reason="core.yaml is read by PyYAML, of the extra `eval`")
    (tmp_path / "eval_data").mkdir()
    (tmp_path / "core.yaml").write_text(
        "icl_tasks:\n- label: signs\n  dataset_uri: signs.jsonl\n  num_fewshot: [1]\n"
        "  icl_task_type: multiple_choice\n"
    )
    with (tmp_path / "eval_meta_data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Eval Task", "Random baseline"], ["signs", 50]])
    examples = [{"query": f"x {n}", "choices": ["+", "-"], "gold": n % 2} for n in range(8)]
    lines = "".join(json.dumps(e) + "\n" for e in examples)
    (tmp_path / "eval_data" / "signs.jsonl").write_text(lines)
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of standard error of a command that ends with status 2."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@torch.no_grad()
def bpb_by_hand(run: Any) -> float:
    opened = open_checkpoint(run.folder, asked={"device": "cpu"})
    sizes = opened.tokenizer.token_bytes()
    nats, count = 0.0, 0
    for batch in validation_batches(
        run.data, opened.tokenizer, batch_size=2, sequence_len=32, tokens=640
    ):
        chances = opened.model(batch.inputs).double().log_softmax(-1)
        for row in range(2):
            for position, target in enumerate(batch.targets[row].tolist()):
                if target >= 0 and sizes[target]:
                    nats -= chances[row, position, target].item()
                    count += int(sizes[target])
    return nats / math.log(2) / count


def test_as_typed_in_a_shell(tiny_run: Any, bundle: Path) -> None:
    """Everything as one JSON object on standard output, lines for people on standard error."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "nanochat.cli.evaluate", "--checkpoint", str(tiny_run.folder)),
            *("--eval", "sample,bpb,core", "--core_bundle", str(bundle), "--max-per-task", "6"),
            *("--device", "cpu", "--prompt", "int ", "--max-tokens", "4", "--json"),
        ],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["checkpoint"], found["step"]) == (str(tiny_run.newest), 10)
    assert found["plan"]["device"]["backend"] == "cpu"
    assert found["bpb"] == pytest.approx(bpb_by_hand(tiny_run), rel=1e-5)
    accuracy = found["core"]["accuracy"]["signs"]
    assert accuracy * 6 == pytest.approx(round(accuracy * 6))
    assert found["core"]["core_metric"] == pytest.approx(2 * accuracy - 1)
    assert [s["prompt"] for s in found["sample"]] == ["int "]
    assert f"validation: {found['bpb']:.6f} bits per byte" in done.stderr


def test_bits_per_byte_and_samples_by_default(
    tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--checkpoint", str(tiny_run.folder), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "bits per byte" in out
    assert "sample: '#include <' -> " in out
    assert "CORE" not in out


def test_a_bundle_in_the_environment_adds_core(
    tiny_run: Any,
    bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOCHAT_CORE_BUNDLE", str(bundle))
    argv = ["--checkpoint", str(tiny_run.folder), "--device", "cpu", "--max-tokens", "2"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "signs: accuracy" in out
    assert "CORE:" in out


def test_loss_backends_agree(tiny_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for loss in ("torch", "chunked"):
        argv = ["--checkpoint", str(tiny_run.folder), "--device", "cpu", "--eval", "bpb"]
        assert main([*argv, "--loss", loss, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["bpb"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval", "bpb,speed"], "there is no evaluation 'speed'. Use some of bpb,core,sample"),
        (["--eval", ","], "--eval names nothing"),
        (["--eval", "core"], "needs its evaluation bundle. Give --core-bundle"),
        (["--core-bundle", "/nowhere"], "the CORE bundle /nowhere is not a folder"),
        (["--data-dir", "/nowhere"], "there is no data folder /nowhere"),
        (["--eval-tokens", "0"], "--eval-tokens is 0"),
        (["--device-batch-size", "0"], "--device-batch-size is 0"),
        (["--loss", "abacus"], "no loss backend is called 'abacus'"),
    ],
)
def test_wrong_use_ends_in_one_line(
    tiny_run: Any, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert message in fails(capsys, "--checkpoint", str(tiny_run.folder), *flags)


def test_a_data_folder_without_shards(
    tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--checkpoint", str(tiny_run.folder), "--eval", "bpb", "--data-dir", str(tmp_path)]
    assert main(argv) == 2
    assert str(tmp_path) in capsys.readouterr().err
