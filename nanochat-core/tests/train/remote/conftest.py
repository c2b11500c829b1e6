"""A fake of Google Cloud Storage and of a machine's metadata server, both on localhost."""

import json
import os
import re
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import torch

from nanochat.train import checkpoint


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY: many small answers

    def answer(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that was killed hangs up: that is what some tests are about."""


class Serving:
    """A server on a free port while it is entered."""

    def __init__(self, handler):
        self.server = Server(("127.0.0.1", 0), handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class FakeGCS(Serving):
    """The part of the JSON API that gcsfs calls, for one bucket.

    `stall` holds up what is written to objects whose name it matches: `stalled` is set then, and
    the object never comes to be. `refused` is the HTTP status with which writes are answered.
    """

    def __init__(self, bucket="bucket"):
        self.bucket = bucket
        self.objects = {}
        self.uploads = {}
        self.stall = None
        self.stalled = threading.Event()
        self.refused = None
        self.released = threading.Event()
        outer = self

        class Storage(Handler):
            fake = outer

            def do_GET(self):
                outer.get(self, *outer.parse(self.path))

            def do_POST(self):
                outer.post(self, *outer.parse(self.path), self.body())

            do_PUT = do_POST

            def do_DELETE(self):
                name, _ = outer.parse(self.path)
                found = outer.objects.pop(name, None)
                self.answer(404 if found is None else 204)

        super().__init__(Storage)

    def __exit__(self, *_):
        self.released.set()
        super().__exit__()

    def parse(self, path):
        parts = urlsplit(path)
        query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        found = re.fullmatch(
            r"(?:/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?", parts.path
        )
        if found is None or found.group(1) != self.bucket:
            return None, query
        return unquote(found.group(2) or ""), query

    def about(self, name):
        size = str(len(self.objects[name]))
        return {"kind": "storage#object", "name": name, "bucket": self.bucket, "size": size}

    def get(self, request, name, query):
        if name is None:
            request.answer(404, {"error": {"code": 404, "message": "no such bucket"}})
        elif name == "":
            prefix = query.get("prefix", "")
            items = [self.about(n) for n in sorted(self.objects) if n.startswith(prefix)]
            request.answer(200, {"kind": "storage#objects", "items": items})
        elif name not in self.objects:
            request.answer(404, {"error": {"code": 404, "message": "no such object"}})
        elif query.get("alt") == "media":
            data = self.objects[name]
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range") or "")
            if asked:
                data = data[int(asked.group(1)) : int(asked.group(2)) + 1]
            request.answer(206 if asked else 200, data)
        else:
            request.answer(200, self.about(name))

    def post(self, request, name, query, body):
        if name is None:
            request.answer(404, {"error": {"code": 404, "message": "no such bucket"}})
        elif self.refused:
            error = {"code": self.refused, "message": "no storage.objects.create access"}
            request.answer(self.refused, {"error": error})
        elif name.endswith("/compose"):
            name = name.removesuffix("/compose")
            parts = json.loads(body)["sourceObjects"]
            self.objects[name] = b"".join(self.objects[part["name"]] for part in parts)
            request.answer(200, self.about(name))
        elif query.get("upload_id"):
            self.resume(request, query["upload_id"], body)
        elif query["uploadType"] == "resumable":
            upload = uuid.uuid4().hex
            self.uploads[upload] = (query["name"], bytearray())
            place = f"http://{self.host}/upload/storage/v1/b/{self.bucket}/o?upload_id={upload}"
            request.answer(200, Location=place)
        else:
            about, data = re.fullmatch(
                rb"--==0==\n.*?\n\n(.*?)\n--==0==\n.*?\n\n(.*)\n--==0==--", body, re.DOTALL
            ).groups()
            self.store(request, json.loads(about)["name"], data)

    def resume(self, request, upload, body):
        name, data = self.uploads[upload]
        data += body
        total = request.headers["Content-Range"].rpartition("/")[2]
        if total == "*":
            request.answer(308, Range=f"bytes=0-{len(data) - 1}")
        else:
            self.store(request, name, bytes(data))

    def store(self, request, name, data):
        if self.stall is not None and re.search(self.stall, name):
            self.stalled.set()
            self.released.wait(120)
            return
        self.objects[name] = data
        request.answer(200, self.about(name))


class FakeMachine(Serving):
    """A metadata server; `values` are its keys below `instance/`, `change` sets one."""

    def __init__(self):
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.changed = threading.Condition()
        self.asked = []
        outer = self

        class Metadata(Handler):
            def do_GET(self):
                parts = urlsplit(self.path)
                key = parts.path.removeprefix("/computeMetadata/v1/instance/")
                query = {k: v[0] for k, v in parse_qs(parts.query).items()}
                outer.asked.append((key, query, self.headers.get("Metadata-Flavor")))
                if self.headers.get("Metadata-Flavor") != "Google":
                    self.answer(403)
                    return
                if key not in outer.values:
                    self.answer(404)
                    return
                with outer.changed:
                    if query.get("wait_for_change") == "true":
                        outer.changed.wait_for(
                            lambda: query.get("last_etag") != outer.tag(key),
                            timeout=float(query["timeout_sec"]),
                        )
                    self.answer(200, outer.values[key].encode(), ETag=outer.tag(key))

        super().__init__(Metadata)

    def tag(self, key):
        return f"{hash(self.values.get(key)) & 0xFFFF:x}"

    def change(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()


@pytest.fixture
def gcs(monkeypatch):
    """A fake of Google Cloud Storage that gcsfs, here and in child processes, takes for the real
    one. gcsfs asks another service, by gRPC, for the kind of a bucket: that is turned off."""
    with FakeGCS() as fake:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://{fake.host}")
        monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
        import gcsfs

        gcsfs.GCSFileSystem.clear_instance_cache()
        yield fake
        gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def machine(monkeypatch):
    with FakeMachine() as fake:
        monkeypatch.setenv("GCE_METADATA_HOST", fake.host)
        yield fake


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty before and after: a place in it."""
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    yield "memory://bucket"
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="session")
def save():
    """Save a small checkpoint of a step in a folder."""

    def write(folder, step, size=4, **options):
        model = {"weight": torch.full((size,), float(step))}
        optimizer = {"momentum": torch.full((size,), -float(step))}
        return checkpoint.save(folder, step, model, optimizer, {"step": step}, **options)

    return write


@pytest.fixture
def spawn(tmp_path, tiny, corpus):
    """Start nanochat-train on the corpus as a process of its own in the test's folder."""
    children = []

    def start(*arguments, **variables):
        child = subprocess.Popen(
            [sys.executable, "-m", "nanochat.cli.train", *tiny, f"--data-dir={corpus}", *arguments],
            cwd=tmp_path,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()
