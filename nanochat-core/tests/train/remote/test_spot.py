"""A run on machines that vanish: killed, given notice, continued from the bucket elsewhere."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from nanochat.optim import MuonAdamW
from nanochat.train import checkpoint
from nanochat.train.remote import RemoteRun
from nanochat.train.transfer import Transfer


def vanish(folder):
    """The machine's disk is gone."""
    shutil.rmtree(folder)


@pytest.fixture
def at_step(monkeypatch):
    """Call something from within an update, counted from 1."""

    def arrange(number, action):
        original, calls = MuonAdamW.step, []

        def step(self, closure=None):
            calls.append(1)
            if len(calls) == number:
                action()
            return original(self, closure)

        monkeypatch.setattr(MuonAdamW, "step", step)

    return arrange


@pytest.mark.parametrize("how", ["--resume", "--resume=8", "memory://bucket/cut", "step"])
def test_a_run_goes_on_from_the_bucket_alone(train, tmp_path, memory, losses, whole, how):
    bucket = f"--checkpoint-bucket={memory}"
    assert train("--output=cut", "--save-every=4", bucket)[0] == 0
    remote = RemoteRun(memory, "cut")
    assert remote.steps() == [4, 8, 12]
    remote._delete(12, remote._listing()[12])
    vanish(tmp_path / "cut")
    if how == "step":
        how = remote.address_of(8)
    resume = how if how.startswith("--") else f"--resume={how}"
    status, out, err = train("--output=cut", "--save-every=4", bucket, resume)
    assert (status, err) == (0, "")
    assert "downloaded memory://bucket/cut/checkpoints/step_000008 to cut/checkpoints" in out
    assert losses(tmp_path / "cut") == whole
    assert remote.steps() == [4, 8, 12]


def test_the_newest_whole_one_of_both_is_taken(train, tmp_path, memory, losses, whole):
    bucket = f"--checkpoint-bucket={memory}"
    assert train("--output=cut", "--save-every=4", bucket)[0] == 0
    here, remote = tmp_path / "cut" / "checkpoints", RemoteRun(memory, "cut")
    # Step 12 is damaged there and gone here, step 8 is whole there alone.
    path = f"{remote._folder_of(12)}/model.safetensors"
    remote._fs.pipe_file(path, bytes(remote._fs.size(path)))
    for step in (8, 12):
        shutil.rmtree(checkpoint.step_folder(here, step))
    status, out, err = train("--output=cut", "--save-every=4", bucket, "--resume=auto")
    assert (status, err) == (0, "")
    assert f"{remote.address_of(12)} is not taken: its model.safetensors is not what was" in out
    assert "continuing cut/checkpoints/step_000008" in out
    assert losses(tmp_path / "cut") == whole
    # Now the newest is here alone: nothing is downloaded, and it is uploaded.
    remote._delete(12, remote._listing()[12])
    status, out, _ = train("--output=cut", "--save-every=4", bucket, "--resume=auto")
    assert status == 0
    assert "downloaded" not in out
    assert remote.manifest(12).step == 12


def test_runs_in_a_bucket_do_not_mix(train, tmp_path, memory, losses, whole):
    bucket = f"--checkpoint-bucket={memory}"
    assert train("--output=cut", "--save-every=4", bucket)[0] == 0
    vanish(tmp_path / "cut")
    status, _, err = train("--output=cut", bucket)
    assert status == 2
    assert "memory://bucket/cut already holds a run" in err
    status, _, err = train("--output=cut", bucket, "--resume=4")
    assert status == 2
    assert "has a newer checkpoint (of step 12) than step 4" in err
    place = "memory://bucket/cut/checkpoints/step_000004"
    assert f"--resume {place} --output NEW" in err
    status, _, err = train("--output=new", bucket, f"--resume={place}")
    assert (status, err) == (0, "")
    assert losses(tmp_path / "new") == whole
    assert RemoteRun(memory, "new").steps() == [4, 8, 12]
    status, _, err = train("--output=cut", bucket, "--resume=5")
    assert status == 2
    status, _, err = train("--output=other", bucket, "--resume=new/checkpoints/step_000004")
    assert status == 0
    vanish(tmp_path / "other")
    status, _, err = train("--output=other", bucket, "--resume=new/checkpoints/step_000004")
    assert status == 2
    assert "memory://bucket/other already holds another run" in err
    status, _, err = train("--output=none", "--resume=memory://bucket/no")
    assert status == 2
    assert "no complete checkpoint in it" in err


def test_a_bucket_that_cannot_be_used_ends_the_run_before_it_begins(train, tmp_path, gcs):
    for bucket, told in (("buckett", "no such bucket"), ("no bucket", "no bucket's name")):
        status, out, err = train("--output=cut", f"--checkpoint-bucket={bucket}")
        assert status == 2
        assert told in err
        assert err.count("\n") == 1
        assert "step 1" not in out
    gcs.refused = 403
    status, _, err = train("--output=cut", "--checkpoint-bucket=bucket")
    assert status == 2
    assert "Storage Object User" in err
    assert err.count("\n") == 1


def test_a_process_killed_in_an_upload(spawn, train, tmp_path, gcs, losses, whole, monkeypatch):
    """SIGKILL while the optimiser's state of the second checkpoint is on its way, then a new
    machine with an empty disk."""
    monkeypatch.setenv("NANOCHAT_GCS_CHECKPOINT_BUCKET", "bucket/prefix")
    gcs.stall = "step_000008/optimizer"
    child = spawn("--output=cut", "--save-every=4")
    assert gcs.stalled.wait(120), child.communicate()
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert any("step_000008/optimizer" in name for name, _ in gcs.uploads.values())
    assert not any("step_000008/manifest" in name for name in gcs.objects)
    vanish(tmp_path / "cut")
    gcs.stall = None
    status, out, err = train("--output=cut", "--save-every=4", "--resume")
    assert (status, err) == (0, "")
    assert "downloaded gs://bucket/prefix/cut/checkpoints/step_000004" in out
    assert losses(tmp_path / "cut") == whole
    assert RemoteRun("gs://bucket/prefix", "cut").steps() == [4, 8, 12]


@pytest.mark.parametrize(("hangs", "grace"), [("step_000004/optimizer", 30), ("optimizer", 3)])
def test_a_notice_in_an_upload_that_hangs(spawn, tmp_path, gcs, hangs, grace):
    """The newest checkpoint is tried while the older one hangs. If it hangs too, the local one
    stands, and the message says so. Either way the process ends in time."""
    gcs.stall = hangs
    child = spawn(
        "--output=cut",
        "--save-every=4",
        "--num-iterations=100000",
        f"--grace-seconds={grace}",
        NANOCHAT_GCS_CHECKPOINT_BUCKET="gs://bucket",
    )
    assert gcs.stalled.wait(120), child.communicate()
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGTERM)  # as a shutdown and a launcher do
    out, err = child.communicate(timeout=120)
    assert child.returncode == 143, out
    newest = checkpoint.latest(tmp_path / "cut" / "checkpoints")
    there = RemoteRun("gs://bucket", "cut").steps()
    assert f"the last checkpoint is cut/checkpoints/step_{newest:06d}" in err
    if newest == 4 or hangs == "optimizer":
        late = f"step {newest} did not arrive within {grace}s of the notice"
        assert f"NOT uploaded to gs://bucket/cut: {late}" in err
        assert there == []
    else:
        assert f"uploaded as gs://bucket/cut/checkpoints/step_{newest:06d}" in err, out
        assert there == [newest]
    assert "Continue with --resume cut" in err
    assert "Traceback" not in err


RANK = """
import os, signal, sys
from nanochat.cli.train import main
from nanochat.optim import MuonAdamW

original, calls = MuonAdamW.step, []

def step(self, closure=None):
    calls.append(1)
    if len(calls) == 5 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return original(self, closure)

MuonAdamW.step = step
sys.exit(main())
"""


def test_ranks_stop_together_and_the_first_uploads(tmp_path, tiny, corpus):
    """The second rank alone has notice."""
    (tmp_path / "rank.py").write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    bucket = tmp_path / "b"
    arguments = [f"--data-dir={corpus}", "--output=cut", f"--checkpoint-bucket={bucket}"]
    done = subprocess.run(
        [*torchrun, "rank.py", *tiny, *arguments, "--device-batch-size=1"],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    [step] = RemoteRun(bucket.as_uri(), "cut").steps()
    assert step in (5, 6)
    assert f"after {step} steps, the last checkpoint is cut/checkpoints" in done.stderr
    assert "uploaded as file:///" in done.stderr


def test_ranks_bring_one_checkpoint_for_all(tmp_path, save):
    """Each asks for the newest, none has it yet."""
    remote = RemoteRun((tmp_path / "b").as_uri(), "cut")
    place = save(tmp_path / "c", 4, size=2**20)
    remote.upload(remote.open(4, place), Transfer())
    ask = (
        "import sys; from nanochat.train.folder import find_resume; "
        "print(find_resume('auto', 'cut', '', 2, sys.argv[1]).checkpoint)"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ask, (tmp_path / "b").as_uri()],
            cwd=tmp_path,
            env={**os.environ, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(4)
    ]
    told = [rank.communicate()[0].splitlines() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks)
    assert [lines[-1] for lines in told] == ["cut/checkpoints/step_000004"] * 4
    assert sum("downloaded" in line for lines in told for line in lines) == 1


def test_a_notice_of_preemption(train, tmp_path, memory, machine, at_step, losses, whole):
    at_step(6, lambda: (machine.change("preempted", "TRUE"), time.sleep(1)))
    status, out, err = train("--output=cut", f"--checkpoint-bucket={memory}")
    assert status == 143
    assert "notice: this spot machine is being taken back" in out
    assert "stopped by SIGTERM (this spot machine is being taken back) after 6 steps" in err
    assert "uploaded as memory://bucket/cut/checkpoints/step_000006" in err
    assert "on another machine with the same command and --resume auto" in err
    waits = [query for key, query, _ in machine.asked if key == "preempted"][1:]
    assert all(query["wait_for_change"] == "true" for query in waits)
    machine.change("preempted", "FALSE")
    vanish(tmp_path / "cut")
    status, _, err = train("--output=cut", f"--checkpoint-bucket={memory}", "--resume=auto")
    assert (status, err) == (0, "")
    assert losses(tmp_path / "cut") == whole


def test_an_upload_does_not_wait_for_a_slow_disk(train, tmp_path, memory, at_step, monkeypatch):
    """The last flush takes until the checkpoint has arrived."""
    remote, flush, arrived = RemoteRun(memory, "cut"), checkpoint._flush, []

    def slow(writing):
        deadline = time.monotonic() + 20
        while remote.steps() != [6] and time.monotonic() < deadline:
            time.sleep(0.05)
        arrived.extend(remote.steps())
        flush(writing)

    monkeypatch.setattr(checkpoint, "_flush", slow)
    at_step(6, lambda: os.kill(os.getpid(), signal.SIGTERM))
    status, _, err = train("--output=cut", f"--checkpoint-bucket={memory}")
    assert status == 143
    assert arrived == [6]
    assert "uploaded as memory://bucket/cut/checkpoints/step_000006" in err
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints") == [6]


def test_an_end_for_maintenance_is_saved_for(train, tmp_path, machine, at_step, losses, whole):
    def announce():
        machine.change("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")
        time.sleep(1)

    at_step(6, announce)
    status, out, err = train("--output=cut")
    assert (status, err) == (0, "")
    assert "notice: this machine will be stopped for maintenance, saving after this step" in out
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints") == [6, 12]
    assert losses(tmp_path / "cut") == whole


def test_a_machine_that_gives_no_notice_is_told(train, machine):
    del machine.values["preempted"]
    status, out, _ = train("--output=cut", "--num-iterations=4")
    assert status == 0
    assert f"notice of preempted is not to be had from {machine.host}: HTTP status 404" in out


def test_no_notice_is_asked_for_where_none_is_wanted(train, machine):
    assert train("--output=cut", "--num-iterations=2", "--preemption-notice=off")[0] == 0
    assert machine.asked == []
    status, _, err = train("--preemption-notice=aws")
    assert status == 2
    assert "Use auto, gce or off" in err


def test_an_upload_that_fails_at_the_end_is_an_error(train, tmp_path, gcs, monkeypatch):
    from nanochat.train import uploads

    monkeypatch.setattr(uploads, "FIRST_DELAY", 0.01)
    original = RemoteRun.probe

    def probe(self):
        original(self)
        gcs.refused = 403

    monkeypatch.setattr(RemoteRun, "probe", probe)
    status, out, err = train("--output=cut", "--checkpoint-bucket=gs://bucket")
    assert status == 1
    assert "trying to upload it again" in out
    assert "its last checkpoint is cut/checkpoints/step_000012, NOT uploaded to gs://bucket" in err
    assert "same command with --resume auto" in err
    assert err.count("\n") == 1
    assert os.path.exists(tmp_path / "cut" / "summary.json")
