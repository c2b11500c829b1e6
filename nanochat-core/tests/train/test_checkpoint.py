"""Checkpoints appear whole or not at all."""

import errno
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

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
    model = model_of(float(step))
    return checkpoint.save(folder, step, model, optimizer, {"step": step}, **options)


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
    with pytest.raises(NanochatError, match=r"meta\.json is damaged"):
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
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(NanochatError, match="MiB needed"):
        save(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def write_until(folder: Path, point: int) -> int:
    """Save in a forked process that is killed before its `point`-th system call; its status.

    A `point` of 0 lets it finish: the exit code is then the number of calls.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    calls = 0

    def counting(function):
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    status = 255
    try:
        checkpoint.save(folder, 1, {"weight": torch.ones(4)}, {"m": torch.ones(4)}, {"value": 1})
        for name in ("fsync", "rename", "mkdir", "unlink", "rmdir", "open"):
            setattr(os, name, counting(getattr(os, name)))
        twos = torch.full((4,), 2.0)
        for step in (1, 2):  # the first again, then the next, which drops the first
            checkpoint.save(folder, step, {"weight": twos}, {"m": twos}, {"value": 2}, keep=1)
        status = calls
    finally:
        os._exit(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the writer is a forked process")
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    calls = os.waitstatus_to_exitcode(write_until(tmp_path / "finished", 0))
    assert 20 < calls < 255
    for point in range(1, calls + 1):
        folder = tmp_path / f"at{point}"
        assert os.WTERMSIG(write_until(folder, point)) == signal.SIGKILL
        checkpoint.recover(folder)
        newest = checkpoint.latest(folder)
        assert newest is not None
        loaded = checkpoint.load(checkpoint.step_folder(folder, newest))
        expected = torch.full((4,), float(loaded.meta["value"]))
        assert torch.equal(loaded.model["weight"], expected)
        assert torch.equal(loaded.optimizer["m"], expected)
        assert all(p.name.startswith("step_") for p in folder.iterdir())
