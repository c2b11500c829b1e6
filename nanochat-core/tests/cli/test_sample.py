"""nanochat-sample as it is typed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli.sample import main
from nanochat.data.tokenizer import Tokenizer
from nanochat.errors import UsageError
from nanochat.generate.load import decoders, open_checkpoint
from nanochat.registry import Registered, discover


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_PLUGINS", "")


@pytest.fixture
def copied_run(tiny_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run.folder, tmp_path / "copy"))


def typed(run: Any, *more: str) -> list[str]:
    return ["--checkpoint", str(run.folder), "--max-tokens", "6", "--device", "cpu", *more]


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """The status and the one line of standard error of a command that prints nothing else."""
    status = main(argv)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return status, captured.err


def test_as_typed_in_a_shell(tiny_run: Any) -> None:
    """The module is run like the console script; --max_tokens is the other spelling."""
    command = [sys.executable, "-m", "nanochat.cli.sample", "--checkpoint", str(tiny_run.newest)]
    done = subprocess.run(
        [*command, "--prompt", "int €", "--max_tokens", "5", "--temperature", "0"],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("int €")
    assert done.stdout.endswith("\n")
    assert done.stderr == ""


def test_a_wrong_folder_is_told_without_importing_torch() -> None:
    code = (
        "import sys; from nanochat.cli.sample import main\n"
        "status = main(['--checkpoint', '/nowhere', '--device', 'cpu'])\n"
        "print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert "there is no folder /nowhere" in done.stderr


def test_the_seed_decides(tiny_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for seed in ("1", "1", "2"):
        assert main(typed(tiny_run, "--max-tokens", "20", "--seed", seed, "--top-p", "0.95")) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]


def test_several_samples_are_told_apart(tiny_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed(tiny_run, "--prompt", "int", "--num-samples", "3", "--top-k", "40")) == 0
    text = capsys.readouterr().out
    for number in (1, 2, 3):
        assert f"--- sample {number} of 3 ---\nint" in text


def test_streamed_text_is_that_of_the_whole(
    tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random model emits broken UTF-8 all the time: one sample streams, two are decoded whole."""
    flags = typed(tiny_run, "--max-tokens", "60", "--temperature", "0")
    assert main(flags) == 0
    one = capsys.readouterr().out
    assert main([*flags, "--num-samples", "2"]) == 0
    two = capsys.readouterr().out
    assert two == f"--- sample 1 of 2 ---\n{one}--- sample 2 of 2 ---\n{one}"


def test_the_newest_checkpoint_is_taken_unless_one_is_named(
    tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = {}
    older = tiny_run.newest.with_name("step_000005")
    for place in (tiny_run.folder, tiny_run.folder / "checkpoints", tiny_run.newest, older):
        argv = ["--checkpoint", str(place), "--max-tokens", "12", "--temperature", "0"]
        assert main(argv) == 0
        outputs[place] = capsys.readouterr().out
    newest = outputs.pop(tiny_run.newest)
    assert outputs.pop(older) != newest
    assert set(outputs.values()) == {newest}


def test_filling_in_the_middle(tiny_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed(tiny_run, "--prompt", "int f(", "--suffix", ") {}")) == 0
    out = capsys.readouterr().out
    assert out.startswith("int f(")
    assert out.endswith(") {}\n")


def test_running_out_of_positions_is_said(
    tiny_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed(tiny_run, "--max-tokens", "9999", "--temperature", "0")) == 0
    assert "note: the model has room for 320 more tokens, not for 9999" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "x " * 2000], "the model has room for 320"),
        (["--num-samples", "0"], "--num-samples is 0"),
        (["--max-tokens", "-3"], "--max-tokens is -3"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-k", "0"], "top-k is 0"),
        (["--top-p", "2"], "top-p is 2.0"),
        (["--seed", "-1"], "seed is -1"),
        (["--temperature", "0", "--top-k", "5"], "no effect"),
        (["--temperature", "warm"], "invalid float value: 'warm'"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--device", "abacus"], "no device backend is called 'abacus'"),
        (["--attention", "abacus"], "no attention backend is called 'abacus'"),
        (["--promt", "x"], "Did you mean --prompt?"),
        (["--tokenizer", "/nowhere"], "there is no tokenizer at /nowhere"),
    ],
)
def test_wrong_use_ends_in_one_line(
    tiny_run: Any, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    status, line = fails(capsys, *typed(tiny_run, *flags))
    assert status == 2
    assert message in line


def test_a_folder_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, line = fails(capsys, "--checkpoint", str(tmp_path))
    assert (status, "holds no checkpoint" in line) == (2, True)


def test_a_run_without_its_tokenizer(copied_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied_run / "tokenizer.json").unlink()
    status, line = fails(capsys, "--checkpoint", str(copied_run))
    assert (status, "Give --tokenizer" in line) == (2, True)


def test_another_tokenizer_is_refused(copied_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Tokenizer.train(["something else entirely " * 9], 275).save(copied_run)
    status, line = fails(capsys, "--checkpoint", str(copied_run))
    assert (status, "is not the tokenizer" in line) == (2, True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "model.safetensors"),
        ("gone", "model.safetensors"),
        ("shape", "does not fit"),
        ("meta", "does not describe the model"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    copied_run: Path, capsys: pytest.CaptureFixture[str], damage: str, message: str
) -> None:
    step = copied_run / "checkpoints" / "step_000010"
    weights, meta = step / "model.safetensors", json.loads((step / "meta.json").read_text())
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "gone":
        weights.unlink()
    elif damage == "shape":
        meta["model"]["n_layer"] = 3
    else:
        del meta["model"]
    (step / "meta.json").write_text(json.dumps(meta))
    status, line = fails(capsys, "--checkpoint", str(copied_run))
    assert status == 1
    assert message in line


def test_attention_without_a_cache_is_passed_over_or_refused() -> None:
    registry = discover("")
    found = registry.find("attention", "sdpa")
    assert found is not None

    class Cacheless(type(found.backend)):  # type: ignore[misc]
        name = "cacheless"
        capabilities = ("window",)

    registry.add(Registered(Cacheless(), "test", "test", "1"))
    names = [r.backend.name for r in decoders(registry, "auto").backends("attention")]
    assert "cacheless" not in names
    assert "sdpa" in names
    with pytest.raises(UsageError, match=r"'cacheless' cannot decode.*--attention sdpa"):
        decoders(registry, "cacheless")


def test_the_weights_are_those_of_the_checkpoint(tiny_run: Any) -> None:
    from nanochat.train import checkpoint

    opened = open_checkpoint(tiny_run.folder, asked={"device": "cpu"})
    saved = checkpoint.load(tiny_run.newest, optimizer=False).model
    held = opened.model.state_dict()
    assert opened.step == 10
    assert held.keys() == saved.keys()
    assert all(held[name].equal(saved[name]) for name in saved)
    assert opened.plan.quantization.backend.name == "none"
