"""Resuming: bit for bit the uninterrupted run, after an end, a signal, a kill or a full disk."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nanochat.train import checkpoint
from nanochat.train.folder import claimed


def keep_until(folder: Path, step: int) -> None:
    """As if the run had been killed some steps after saving that step."""
    for later in checkpoint.steps(folder / "checkpoints"):
        if later > step:
            shutil.rmtree(checkpoint.step_folder(folder / "checkpoints", later))


@pytest.mark.parametrize("resume", ["--resume", "--resume=auto", "--resume=4"])
def test_a_resumed_run_is_the_uninterrupted_one(train, tmp_path, losses, whole, resume):
    assert train("--output=cut", "--save-every=4")[0] == 0
    assert losses(tmp_path / "cut") == whole
    keep_until(tmp_path / "cut", 4)
    status, out, err = train("--output=cut", "--save-every=4", resume)
    assert (status, err) == (0, "")
    assert "step_000004" in out
    assert losses(tmp_path / "cut") == whole
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints") == [4, 8, 12]


def test_settings_come_with_the_checkpoint(tmp_path, train, losses, whole, monkeypatch, capsys):
    """A run folder is all that a resume needs, from any working directory."""
    from nanochat.cli.train import main

    assert train("--output=cut", "--save-every=4")[0] == 0
    keep_until(tmp_path / "cut", 8)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["--resume", "../cut"]) == 0, capsys.readouterr().err
    assert losses(tmp_path / "cut") == whole


def test_resuming_where_nothing_was_saved_starts_anew(train, tmp_path, losses, whole):
    status, out, _ = train("--output=new", "--resume")
    assert status == 0
    assert "starting at step 0" in out
    assert losses(tmp_path / "new") == whole


def test_a_branch_leaves_the_first_run_alone(train, tmp_path, losses, whole):
    assert train("--output=cut", "--save-every=4")[0] == 0
    place = "cut/checkpoints/step_000004"
    status, _, err = train("--resume", place)
    assert status == 2
    assert "newer checkpoints" in err
    assert train("--resume", place, "--output=branch")[0] == 0
    assert losses(tmp_path / "branch") == whole
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints") == [4, 8, 12]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--depth=4"], "n_layer is 4 here and 2 in the checkpoint"),
        (["--max-seq-len=32"], "sequence_len is 32 here and 64"),
        (["--total-batch-size=512"], "total_batch_size is 512 here and 256"),
        (["--num-iterations=2"], "beyond the 2 steps"),
    ],
)
def test_a_different_run_is_refused(train, arguments, told):
    assert train("--output=cut", "--num-iterations=4")[0] == 0
    status, _, err = train("--output=cut", "--resume", *arguments)
    assert status == 2
    assert told in err


def test_another_tokenizer_is_refused(train, data_dir, texts):
    from nanochat.data.tokenizer import Tokenizer

    assert train("--output=cut", "--num-iterations=2", data=data_dir)[0] == 0
    other = Tokenizer.train([text.replace("void", "bool") for text in texts], 320)
    assert other.vocab_size == 320
    other.save(data_dir)
    status, _, err = train("--output=cut", "--resume", data=data_dir)
    assert status == 2
    assert "tokenizer" in err


@pytest.mark.parametrize(
    ("asked", "told"),
    [("7", "It has: 2"), ("nowhere", "no such folder"), ("data", "no checkpoint in it")],
)
def test_a_checkpoint_that_is_not_there_is_told(train, data_dir, asked, told):
    assert train("--output=cut", "--num-iterations=2")[0] == 0
    status, _, err = train("--output=cut", "--resume", asked)
    assert status == 2
    assert told in err


def test_two_runs_do_not_share_a_folder(train, tmp_path):
    with claimed(tmp_path / "busy"):
        status, _, err = train("--output=busy")
    assert status == 2
    assert "another process is training into busy" in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_so(train, tmp_path, losses, whole, number, status, monkeypatch):
    """Sent from within step 5, which is still finished."""
    from nanochat.optim import MuonAdamW

    original, calls = MuonAdamW.step, []

    def step(self, closure=None):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), number)
        return original(self, closure)

    monkeypatch.setattr(MuonAdamW, "step", step)
    code, _, err = train("--output=cut")
    assert code == status
    assert f"stopped by {number.name} after 6 steps" in err
    assert "Continue with --resume" in err
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints") == [6]
    assert train("--output=cut", "--resume")[0] == 0
    assert losses(tmp_path / "cut") == whole


def test_a_signal_cuts_an_evaluation_short(train, tmp_path, losses, whole, monkeypatch):
    from nanochat.train import reports

    original = reports.bits_per_byte

    def interrupted(call, batches, *rest):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(call, batches, *rest)

    monkeypatch.setattr(reports, "bits_per_byte", interrupted)
    assert train("--output=cut", "--eval-every=12", "--resume", "--num-iterations=12")[0] == 143
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints") == []  # nothing was done yet
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert train("--output=cut", "--resume")[0] == 0
    assert losses(tmp_path / "cut") == whole


def test_a_signal_ends_the_wait_for_data(train, tmp_path, stream):
    log = tmp_path / "cut" / "log.jsonl"

    def interrupt():
        deadline = time.monotonic() + 120
        while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)  # whether it waits already or still trains, the outcome is the same
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, _, err = train("--streaming-data", "--num-iterations=999", "--output=cut", data=stream)
    thread.join()
    assert status == 143
    assert "stopped by SIGTERM" in err
    [step] = checkpoint.steps(tmp_path / "cut" / "checkpoints")
    assert f"after {step} steps" in err


DRIVER = """
import os, signal, sys
from nanochat.cli import train
from nanochat.train import checkpoint

mode, point = sys.argv[1], int(sys.argv[2])
original, calls = os.fsync, 0

def fsync(descriptor):
    global calls
    calls += 1
    if calls == point:
        if mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        import resource
        # From here on every file is full.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    return original(descriptor)

os.fsync = fsync
sys.exit(train.main(sys.argv[3:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL and RLIMIT_FSIZE are posix")
@pytest.mark.parametrize(("mode", "point"), [("kill", "7"), ("full", "5")])
def test_a_run_cut_short_in_a_save_resumes(
    train, tmp_path, tiny, corpus, losses, whole, mode, point
):
    """Killed between the files of the second checkpoint, or with no room for them: a file size
    limit stands in for a full disk, and fails the same writes with EFBIG."""
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    # A save writes two files of tensors and meta.json, then flushes them and two folders: the 5th
    # call ends the first save, the 7th is within the second.
    command = [sys.executable, str(driver), mode, point, *tiny, f"--data-dir={corpus}"]
    command += ["--output=cut", "--save-every=4"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if mode == "kill":
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(list((tmp_path / "cut" / "checkpoints").iterdir())) == 2  # one half written
    else:
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("\n") == 1
        assert "step_000004 is whole" in done.stderr
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints") == [4]
    assert train("--output=cut", "--save-every=4", "--resume=auto")[0] == 0
    assert losses(tmp_path / "cut") == whole
    left = sorted(p.name for p in (tmp_path / "cut" / "checkpoints").iterdir())
    assert left == ["step_000004", "step_000008", "step_000012"]
