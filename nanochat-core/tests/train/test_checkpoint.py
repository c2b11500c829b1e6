"""Checkpoints appear whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nanochat.errors import NanochatError, UsageError
from nanochat.train import checkpoint, tensors


def model_of(value: float) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.full((3, 5), value),
        "table": torch.full((2, 2), value, dtype=torch.bfloat16),
        "flag": torch.tensor(True),
        "empty": torch.empty(0, 4),
    }


def save(folder: Path, step: int, **options) -> Path:
    optimizer = {"steps": torch.tensor(step), "groups": [{"lr": 0.5, 3: (1, None)}]}
    return checkpoint.save(folder, step, model_of(float(step)), optimizer, {"step": step}, **options)


def test_what_is_saved_is_loaded(tmp_path):
    place = save(tmp_path, 7)
    loaded = checkpoint.load(place)
    assert loaded.meta["step"] == 7
    for name, tensor in model_of(7.0).items():
        assert torch.equal(loaded.model[name], tensor), name
        assert loaded.model[name].dtype == tensor.dtype
    assert int(loaded.optimizer["steps"]) == 7
    assert loaded.optimizer["groups"] == [{"lr": 0.5, 3: (1, None)}]


def test_the_library_reads_what_we_write(tmp_path):
    transposed = torch.arange(6.0).reshape(2, 3).T
    path = tmp_path / "x.safetensors"
    tensors.write_tensors(path, {"t": transposed, **model_of(1.0)})
    assert torch.equal(load_file(path)["t"], transposed)


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=2)
    assert checkpoint.steps(tmp_path) == [2, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_000002", "step_000003"]


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1)
    checkpoint.save(tmp_path, 1, model_of(9.0), None, {"step": 1})
    assert float(checkpoint.load(tmp_path / "step_000001").model["weight"][0, 0]) == 9.0
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


@pytest.mark.parametrize("name", [checkpoint.MODEL, checkpoint.OPTIMIZER])
def test_a_truncated_file_is_named(tmp_path, name):
    place = save(tmp_path, 1)
    os.truncate(place / name, (place / name).stat().st_size - 4)
    with pytest.raises(NanochatError, match=f"{name} is damaged"):
        checkpoint.load(place)


def test_damaged_and_foreign_meta_are_named(tmp_path):
    place = save(tmp_path, 1)
    (place / checkpoint.META).write_text('{"step": ')
    with pytest.raises(NanochatError, match="meta.json is damaged"):
        checkpoint.read_meta(place)
    (place / checkpoint.META).write_text('{"format": 99}')
    with pytest.raises(NanochatError, match="another format"):
        checkpoint.read_meta(place)
    with pytest.raises(UsageError, match="is not a checkpoint"):
        checkpoint.read_meta(tmp_path)


@pytest.mark.parametrize("failing", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_the_old_checkpoints(tmp_path, monkeypatch, failing):
    """A full disk is played: the n-th call of a system function fails with ENOSPC."""
    save(tmp_path, 1)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "write":
        monkeypatch.setattr(tensors, "write_tensors", full)
    else:
        monkeypatch.setattr(os, failing, full)
    with pytest.raises(NanochatError, match="the disk is full") as caught:
        save(tmp_path, 2)
    assert "step_000001 is whole" in caught.value.message
    assert caught.value.status == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_what_cannot_fit_is_refused_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: os.statvfs_result, raising=True)
    monkeypatch.setattr(
        checkpoint.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})()
    )
    with pytest.raises(NanochatError, match="MiB needed"):
        save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


KILLED_IN_A_SAVE = """
import os, signal, sys
import torch
from pathlib import Path
from nanochat.train import checkpoint

folder, point = Path(sys.argv[1]), int(sys.argv[2])
save = lambda step, value: checkpoint.save(
    folder, step, {"weight": torch.full((4,), float(value))},
    {"moment": torch.full((4,), float(value))}, {"value": value}, keep=1)
save(1, 1)
calls = 0
def counting(function):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped
for name in ("fsync", "rename", "mkdir", "unlink", "rmdir", "open"):
    setattr(os, name, counting(getattr(os, name)))
save(1, 2)
save(2, 2)
print("done", calls)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is posix")
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """The writer is killed before each of its system calls in turn."""
    script = tmp_path / "writer.py"
    script.write_text(KILLED_IN_A_SAVE)

    def write(point: int) -> tuple[Path, subprocess.CompletedProcess[str]]:
        folder = tmp_path / f"at{point}"
        command = [sys.executable, str(script), str(folder), str(point)]
        return folder, subprocess.run(command, capture_output=True, text=True)

    _, complete = write(0)
    calls = int(complete.stdout.split()[1])
    assert calls > 15
    # Around the renames every call matters; elsewhere one is like the next.
    for point in sorted({1, 2, 3, *range(4, calls + 1, 3)}):
        folder, done = write(point)
        assert done.returncode == -signal.SIGKILL, done.stderr
        checkpoint.recover(folder)
        [step] = checkpoint.steps(folder)[-1:]
        loaded = checkpoint.load(checkpoint.step_folder(folder, step))
        value = loaded.meta["value"]
        assert torch.equal(loaded.model["weight"], torch.full((4,), float(value)))
        assert torch.equal(loaded.optimizer["moment"], torch.full((4,), float(value)))
        assert all(p.name.startswith("step_") for p in folder.iterdir())
