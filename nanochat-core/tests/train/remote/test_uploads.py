"""Uploads in the background: one at a time, the newest of those waiting, until it works."""

import signal
import threading
import time

import pytest

from nanochat.train import uploads as module
from nanochat.train.remote import RemoteRun
from nanochat.train.stopping import StopRequest
from nanochat.train.transfer import Transfer
from nanochat.train.uploads import Uploads, finishes_older


class Slow(RemoteRun):
    """Uploads that wait: `begun` counts them, `go` lets them go on."""

    def __init__(self, bucket, run):
        super().__init__(bucket, run)
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()

    def upload(self, opened, transfer):
        self.begun.release()
        while not self.go.wait(0.01):
            transfer.check()
        super().upload(opened, transfer)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def make(tmp_path, memory, lines, monkeypatch):
    monkeypatch.setattr(module, "FIRST_DELAY", 0.02)

    def build(remote_class=RemoteRun, **options):
        stop = StopRequest(cuts=False)
        remote = remote_class(memory, "run")
        return remote, stop, Uploads(remote, tmp_path / "log.jsonl", lines.append, stop, **options)

    return build


def test_the_newest_of_those_waiting_goes_next(make, save, tmp_path, lines):
    remote, _, uploads = make(Slow)
    uploads.add(1, save(tmp_path / "c", 1))
    remote.begun.acquire()
    uploads.add(2, save(tmp_path / "c", 2))
    uploads.add(3, save(tmp_path / "c", 3))
    assert remote.steps() == []
    remote.go.set()
    assert uploads.finish().startswith("uploaded as memory://bucket/run/checkpoints/step_000003: ")
    assert remote.steps() == [1, 3]
    assert lines[0] == "step 2 is not uploaded: step 3 is newer and goes first"


def test_records_follow_the_checkpoint(make, save, tmp_path):
    (tmp_path / "log.jsonl").write_text("{}\n")
    remote, _, uploads = make()
    uploads.add(1, save(tmp_path / "c", 1))
    uploads.finish()
    remote.get_log(tmp_path / "brought.jsonl")
    assert (tmp_path / "brought.jsonl").read_text() == "{}\n"


def test_a_failure_is_told_and_tried_again(make, save, tmp_path, lines, monkeypatch):
    remote, _, uploads = make()
    original, calls = remote.upload, []

    def flaky(opened, transfer):
        calls.append(opened.step)
        if len(calls) < 3:
            raise ConnectionResetError("the network is down")
        original(opened, transfer)

    monkeypatch.setattr(remote, "upload", flaky)
    uploads.add(1, save(tmp_path / "c", 1))
    uploads.finish()
    assert remote.steps() == [1]
    assert uploads.failure == ""
    assert sum("ConnectionResetError: the network is down" in line for line in lines) == 2


def test_the_end_of_a_run_gives_up_after_some_tries(make, save, tmp_path, monkeypatch):
    remote, _, uploads = make()
    calls = []

    def failing(opened, transfer):
        calls.append(opened.step)
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(remote, "upload", failing)
    uploads.add(1, save(tmp_path / "c", 1))
    told = uploads.finish()
    assert told == "NOT uploaded to memory://bucket/run: PermissionError: 403 Forbidden"
    assert module.LAST_TRIES <= len(calls) <= module.LAST_TRIES + 2


def test_a_newer_checkpoint_ends_the_tries_of_an_older_one(make, save, tmp_path, monkeypatch):
    remote, _, uploads = make()
    original, failed = remote.upload, threading.Event()

    def first_fails(opened, transfer):
        if opened.step == 1:
            failed.set()
            raise ConnectionResetError
        original(opened, transfer)

    monkeypatch.setattr(remote, "upload", first_fails)
    monkeypatch.setattr(module, "FIRST_DELAY", 600)
    uploads.add(1, save(tmp_path / "c", 1))
    assert failed.wait(10)
    uploads.add(2, save(tmp_path / "c", 2))
    uploads.finish()
    assert remote.steps() == [2]


def test_a_checkpoint_deleted_on_its_way_still_arrives(make, save, tmp_path):
    remote, _, uploads = make(keep=1)
    sending, release = threading.Event(), threading.Event()
    original = remote._fs.open

    def waiting(path, *args, **kwargs):
        sending.set()
        assert release.wait(10)
        return original(path, *args, **kwargs)

    remote._fs.open = waiting
    try:
        uploads.add(1, save(tmp_path / "c", 1))
        assert sending.wait(10)
        save(tmp_path / "c", 2, keep=1)  # deletes the first, here
        release.set()
        uploads.finish()
    finally:
        del remote._fs.open
    assert remote.steps() == [1]


def test_after_a_notice_it_waits_no_longer_than_the_machine(make, save, tmp_path):
    remote, stop, uploads = make(Slow, grace=0.4)
    uploads.add(1, save(tmp_path / "c", 1))
    remote.begun.acquire()
    stop.told_by_another()
    told = uploads.finish()
    assert "step 1 did not arrive within 0s of the notice" in told
    assert uploads.done is None
    assert remote.steps() == []


def test_after_a_notice_the_newest_replaces_one_that_is_slow(make, save, tmp_path, lines):
    """Nothing of the first was sent so far: the second may still arrive."""
    remote, stop, uploads = make(Slow, grace=60)
    uploads.add(1, save(tmp_path / "c", 1))
    remote.begun.acquire()
    stop.told_by_another()
    uploads.add(2, save(tmp_path / "c", 2))
    threading.Thread(target=lambda: (remote.begun.acquire(), remote.go.set())).start()
    uploads.finish()
    assert remote.steps() == [2]
    assert "step 1 is given up on its way: step 2 goes first" in lines


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        (50, 8),  # of 30: the newest would take 16 of those that are left
        (100, 11),  # all but the last answer: it has stood still for 10, and 19 are left
    ],
)
def test_an_upload_that_does_not_get_on_is_let_go_in_time(sent, seconds):
    """So much was sent after a second, and nothing since."""
    transfer = Transfer(100)
    transfer.sent, now = sent, time.monotonic()
    for passed in range(1, 30):
        transfer.started, transfer.moved = now - passed, now - passed + 1
        if not finishes_older(transfer, 100, 30 - passed):
            break
    assert passed == seconds


@pytest.mark.parametrize(
    ("sent", "left", "older_first"),
    [
        (90, 30, True),  # 10 and 100 more bytes at 10 a second: both arrive
        (10, 15, False),  # 90 and 100: the newest alone arrives
        (90, 5, True),  # only the older can arrive
        (10, 5, False),  # none seems to
        (0, 30, False),  # nothing is known
    ],
)
def test_what_goes_first_when_time_is_short(sent, left, older_first):
    transfer = Transfer(100)
    transfer.sent = sent
    transfer.started = time.monotonic() - sent / 10
    assert finishes_older(transfer, 100, left) is older_first


def test_a_second_sigterm_soon_after_the_first_changes_nothing(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(cuts=False) as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        left = stop.left(30)
        assert left is not None
        assert 0 < left <= 30
        killed = []
        monkeypatch.setattr("os.kill", lambda _, number: killed.append(number))
        monkeypatch.setattr(StopRequest, "REPEATS", -1.0)
        signal.raise_signal(signal.SIGTERM)
        assert killed == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
