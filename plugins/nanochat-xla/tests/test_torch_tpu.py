"""The stack of TorchTPU as far as a machine without a TPU goes: fake tensors and refusals.

Its import takes ten seconds and a real tensor without a chip aborts the process, so that all of it
is asked in one process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata

import pytest

from nanochat_xla import ahead

SCRIPT = """
import json, sys
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from nanochat.backend import Target
from nanochat.errors import UsageError
from nanochat_xla import Pallas, Tpu

report = {}
v6e = Target("tpu", "TPU v6e", generation="v6e")
backend = Pallas()
report["check"] = backend.check(v6e).reason
backend.load()


def draw(device):
    shapes = ((2, 300, 4, 64), (2, 300, 2, 64), (2, 300, 2, 64))
    return [torch.empty(s, dtype=torch.bfloat16, device=device, requires_grad=True) for s in shapes]


def told(x):
    return [list(x.shape), str(x.dtype)]


with FakeTensorMode():
    for name, window, documents in (
        ("window", 100, None),
        ("documents", None, torch.empty(2, 300, dtype=torch.int32)),
    ):
        qkv = draw("cpu")
        y = backend.attention(*qkv, window=window, scale=0.1, documents=documents)
        y.sum().backward()
        report[name] = [told(y), *(told(x.grad) for x in qkv)]

graphs = []


def keep(graph, inputs):
    graphs.append(graph)
    return graph


qkv = draw("meta")
compiled = torch.compile(
    lambda q, k, v: backend.attention(q, k, v, window=None, scale=0.1), fullgraph=True, backend=keep
)
report["compiled"] = told(compiled(*qkv))
report["graph"] = [str(n.target) for n in graphs[0].graph.nodes if n.op == "call_function"]
try:
    Tpu().setup(v6e)
except UsageError as error:
    report["refused"] = [error.message, error.remedy]
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report():
    try:
        metadata.version("torch-tpu")
    except metadata.PackageNotFoundError:
        pytest.skip("torch-tpu is not here: hatch run torch-tpu:test")
    with ahead.exclusive():  # it loads libtpu
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=os.environ | ahead.environment("v6e") | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_same_attention_through_its_bridge(report):
    assert report["check"] == "through TorchTPU"
    q, kv = [[2, 300, 4, 64], "torch.bfloat16"], [[2, 300, 2, 64], "torch.bfloat16"]
    for case in ("window", "documents"):
        assert report[case] == [q, q, kv, kv], case


def test_the_compiler_keeps_it_whole(report):
    assert report["compiled"] == [[2, 300, 4, 64], "torch.bfloat16"]
    assert any("nanochat_xla.torch_tpu_forward" in target for target in report["graph"])


def test_a_machine_on_which_torchtpu_finds_no_chip_is_refused(report):
    message, remedy = report["refused"]
    assert "TorchTPU finds none" in message
    assert remedy
