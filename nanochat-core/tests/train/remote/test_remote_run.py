"""A checkpoint at an address is complete or does not count."""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from nanochat.errors import UsageError
from nanochat.train import checkpoint, transfer
from nanochat.train.bucket import bucket_address
from nanochat.train.remote import MANIFEST, NotWhole, RemoteRun, fetch
from nanochat.train.transfer import Transfer


def upload(remote: RemoteRun, place: Path) -> Transfer:
    step, sent = checkpoint.step_of(place.name), Transfer()
    assert step is not None
    opened = remote.open(step, place)
    remote.upload(opened, sent)
    opened.close()
    return sent


def contents(place: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in place.iterdir() if p.name != MANIFEST}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("gs://bucket/prefix/", "gs://bucket/prefix"),
        ("bucket", "gs://bucket"),
        ("my.bucket/and/a prefix", "gs://my.bucket/and/a prefix"),
        ("s3://bucket", "s3://bucket"),
        ("/mnt/disk", "file:///mnt/disk"),
        ("", ""),
    ],
)
def test_what_a_bucket_is_called(monkeypatch, given, meant):
    assert bucket_address(given) == meant
    monkeypatch.setenv("NANOCHAT_GCS_CHECKPOINT_BUCKET", given)
    assert bucket_address("") == meant
    assert bucket_address("gs://other") == "gs://other"


def test_a_typing_error_is_no_bucket():
    with pytest.raises(UsageError, match="no bucket's name"):
        bucket_address("gs:/bucket")


@pytest.mark.parametrize("where", ["memory", "file", "gcs"])
def test_what_is_uploaded_is_downloaded(tmp_path, save, memory, request, where):
    if where == "gcs":
        request.getfixturevalue("gcs")
    bucket = {"memory": memory, "file": (tmp_path / "b").as_uri(), "gcs": "gs://bucket/a"}[where]
    remote = RemoteRun(bucket, "run")
    remote.probe()
    assert remote.steps() == []
    first, second = save(tmp_path / "c", 1), save(tmp_path / "c", 2)
    for place in (first, second):
        upload(remote, place)
    assert remote.steps() == [1, 2]
    lines: list[str] = []
    place = fetch(remote, 2, tmp_path / "new", lines.append)
    assert contents(place) == contents(second)
    assert checkpoint.latest(tmp_path / "new" / "checkpoints") == 2
    assert lines[0].startswith(f"downloaded {bucket}/run/checkpoints/step_000002 to ")


def test_a_store_that_joins_objects_is_sent_parts(tmp_path, save, gcs, monkeypatch):
    """As large checkpoints are, for a single stream would not fill the network."""
    from nanochat.train import remote as module

    monkeypatch.setattr(module, "PART", 2**20)
    place = save(tmp_path / "c", 1, size=2**20 + 12345)
    remote = RemoteRun("gs://bucket", "run")
    sent = upload(remote, place)
    assert sent.sent == sent.total == sum(len(data) for data in contents(place).values())
    names = {name.rpartition("/")[2] for name in gcs.objects}
    assert names == {*contents(place), MANIFEST}  # no part is left
    assert contents(fetch(remote, 1, tmp_path / "new", [].append)) == contents(place)


@pytest.mark.parametrize(
    ("name", "spoil", "why"),
    [
        ("model.safetensors", lambda data: data[:-1], r"its model.safetensors has \d+ bytes"),
        ("model.safetensors", lambda data: data[:-1] + b"\1", "is not what was sent"),
        ("optimizer.safetensors", None, "its optimizer.safetensors has no bytes"),
        (MANIFEST, None, "its upload was cut short"),
        (MANIFEST, lambda data: data[:30], "its manifest.json is damaged"),
        (MANIFEST, lambda data: b"[]", "its manifest.json is damaged"),
        (MANIFEST, lambda data: data.replace(b'"format": 1', b'"format": 9'), "another format"),
    ],
)
def test_what_is_not_whole_is_not_taken(tmp_path, save, name, spoil, why):
    remote = RemoteRun((tmp_path / "b").as_uri(), "run")
    upload(remote, save(tmp_path / "c", 1))
    file = tmp_path / "b" / "run" / "checkpoints" / "step_000001" / name
    if spoil is None:
        file.unlink()
    else:
        file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(NotWhole, match=why):
        fetch(remote, 1, tmp_path / "new", [].append)
    left = tmp_path / "new" / "checkpoints"
    assert not left.exists() or list(left.iterdir()) == []


def upload_until(bucket: Path, folder: Path, point: int) -> int:
    """Upload the second step, and the first again, in a forked process that is killed before its
    `point`-th call of the file system. 0: not killed, the exit code is the number of calls."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 255
    try:
        from fsspec.implementations.local import LocalFileOpener, LocalFileSystem

        calls = 0

        def counting(function):
            def wrapped(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return wrapped

        transfer.BLOCK = 64
        for owner, name in (
            (LocalFileSystem, "_open"),
            (LocalFileSystem, "makedirs"),
            (LocalFileSystem, "rm_file"),
            (LocalFileOpener, "write"),
            (LocalFileOpener, "close"),
        ):
            setattr(owner, name, counting(getattr(owner, name)))
        remote = RemoteRun(bucket.as_uri(), "run")
        for step in (2, 1):
            upload(remote, checkpoint.step_folder(folder, step))
        remote.tidy(2, keep=1)
        status = calls
    finally:
        os._exit(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the sender is a forked process")
def test_a_kill_at_any_moment_leaves_only_complete_checkpoints(tmp_path, save):
    places = {step: save(tmp_path / "c", step) for step in (1, 2)}
    calls = os.waitstatus_to_exitcode(upload_until(tmp_path / "whole", tmp_path / "c", 0))
    assert 30 < calls < 255
    seen = set()
    for point in range(1, calls + 1):
        bucket = tmp_path / f"at{point}"
        remote = RemoteRun(bucket.as_uri(), "run")
        upload(remote, places[1])
        assert os.WTERMSIG(upload_until(bucket, tmp_path / "c", point)) == signal.SIGKILL
        for step in remote.steps():
            try:
                remote.manifest(step)
            except NotWhole:
                continue  # the manifest itself is cut short: only here, not in an object store
            taken = fetch(remote, step, tmp_path / f"new{point}", [].append)
            assert contents(taken) == contents(places[step])
            seen.add(step)
    assert seen == {1, 2}


def test_tidying_leaves_the_newest(tmp_path, save, memory):
    remote = RemoteRun(memory, "run")
    for step in (1, 2, 3):
        upload(remote, save(tmp_path / "c", step))
    remote._fs.rm_file(f"{remote._folder_of(1)}/{MANIFEST}")
    remote.tidy(3, keep=0)
    assert sorted(remote._listing()) == [2, 3]  # what was cut short is gone
    remote.tidy(3, keep=1)
    assert sorted(remote._listing()) == [3]


def test_the_manifest_names_every_file(tmp_path, save, memory):
    remote = RemoteRun(memory, "run")
    place = save(tmp_path / "c", 1)
    upload(remote, place)
    manifest = json.loads(remote._fs.cat_file(f"{remote._folder_of(1)}/{MANIFEST}"))
    assert manifest["files"].keys() == contents(place).keys()
    assert manifest["step"] == 1


@pytest.mark.parametrize(("status", "told"), [(403, "no storage.objects.create"), (401, "401")])
def test_a_bucket_that_refuses_is_told(gcs, status, told):
    gcs.refused = status
    with pytest.raises(UsageError, match=told) as caught:
        RemoteRun("gs://bucket", "run").probe()
    assert "Storage Object User" in caught.value.remedy


def test_a_bucket_that_is_not_there_is_told_and_not_made(gcs):
    remote = RemoteRun("gs://buckett", "run")
    with pytest.raises(UsageError, match="no such bucket"):
        remote.probe()
    assert gcs.objects == {}


def test_what_is_not_installed_is_told(monkeypatch):
    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for name in ("gs", "gcs"):
        monkeypatch.delitem(known, name, raising=False)
    with pytest.raises(UsageError, match="gcsfs") as caught:
        RemoteRun("gs://bucket", "run")
    assert caught.value.remedy == "pip install 'nanochat-core[gcs]'"
    with pytest.raises(UsageError, match="nowhere"):
        RemoteRun("nowhere://bucket", "run")
