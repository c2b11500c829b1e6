"""Splash attention on tensors of torch_xla, whose CPU device runs its kernels in an interpreter."""

from __future__ import annotations

import os
from functools import partial
from importlib.util import find_spec
from itertools import pairwise

import pytest

if find_spec("torch_xla") is None:
    pytest.skip("torch_xla is not here: hatch run torch-xla:test", allow_module_level=True)
os.environ.setdefault("PJRT_DEVICE", "CPU")

import torch
import torch_xla
import torch_xla.debug.metrics as met

from nanochat.backend import LossProblem, Target
from nanochat.bench.timing import play, time_rounds
from nanochat.bench.work import loss_round
from nanochat.builtin.loss import Chunked
from nanochat_xla import Pallas
from nanochat_xla.hardware import HOST_KIND
from nanochat_xla.torch_xla_runtime import TorchXlaRuntime

SCALE = 0.11


@pytest.fixture(scope="module")
def backend():
    torch_xla.device()  # after a backward pass on the processor alone, torch would refuse this one
    found = Pallas()
    assert found.check(Target(HOST_KIND, "the processor behind XLA")).ok
    found.load()
    return found


def draw(batch, length, heads, kv_heads, head_dim, dtype):
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, length, h, head_dim) for h in (heads, kv_heads, kv_heads, heads)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def reference(q, k, v, window, documents):
    group = q.size(2) // k.size(2)
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * SCALE
    distance = torch.arange(q.size(1))[:, None] - torch.arange(q.size(1))
    seen = (distance >= 0) & (distance <= (q.size(1) if window is None else window))
    if documents is not None:
        seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v)


@pytest.mark.parametrize(
    ("shape", "window", "with_documents", "dtype", "limit"),
    [
        ((2, 160, 4, 2, 64), None, False, torch.float32, 4e-6),
        ((1, 300, 2, 1, 32), 100, True, torch.float32, 4e-6),
        ((1, 256, 2, 2, 128), 64, False, torch.bfloat16, 2e-2),
    ],
    ids=["groups", "window, documents", "bfloat16"],
)
def test_values_and_gradients_against_float64(backend, shape, window, with_documents, dtype, limit):
    *qkv, grad = draw(*shape, dtype)
    documents = None
    if with_documents:
        documents = (torch.arange(shape[1]) // 90).int().expand(shape[0], -1).contiguous()
    exact = [x.double().requires_grad_() for x in qkv]
    y = reference(*exact, window, documents)
    y.backward(grad.double())

    device = torch_xla.device()
    mine = [x.to(device).requires_grad_() for x in qkv]
    told = None if documents is None else documents.to(device)
    z = backend.attention(*mine, window=window, scale=SCALE, documents=told)
    z.backward(grad.to(device))
    torch_xla.sync()

    pairs = [
        (z.detach(), y.detach()),
        *((m.grad, e.grad) for m, e in zip(mine, exact, strict=True)),
    ]
    for got, want in pairs:
        assert got.dtype == dtype
        assert (got.cpu().double() - want).abs().max() < limit * want.abs().max()


def test_a_prompt_and_its_tokens_are_two_compilations(backend):
    device = torch_xla.device()
    q, k, v, _ = (x.to(device) for x in draw(2, 24, 4, 2, 32, torch.float32))
    caches = [torch.zeros(2, 32, 2, 32, device=device) for _ in range(2)]
    filled = torch.zeros(2, dtype=torch.int32, device=device)
    torch_xla.sync()
    met.clear_all()
    found = []
    for start, end in pairwise([0, 16, *range(17, 25)]):
        new = [x[:, :1].contiguous() if start else x[:, :16].contiguous() for x in (q, k, v)]
        torch_xla.sync()
        before = met.counter_value("UncachedCompile") or 0
        found.append(
            backend.attention_with_kvcache(
                new[0], *caches, *new[1:], cache_seqlens=filled, window=8, scale=SCALE
            )
        )
        filled = filled + (end - start)
        torch_xla.sync()
        compiled = (met.counter_value("UncachedCompile") or 0) - before
        assert compiled == (1 if start in (0, 16) else 0), (start, compiled)
    assert all(torch.isfinite(y.cpu()).all() for y in found)


def test_what_is_timed_is_computed(backend):
    """`measure` forgets the gradients of a round, and what nothing holds is never run."""
    runtime = TorchXlaRuntime(torch_xla.device(), torch.float32, devices=1)
    problem = LossProblem(HOST_KIND, dtype="float32", tokens=64, hidden=32, vocab=100)
    loss = Chunked()
    loss.load()
    round = loss_round(loss, problem, runtime, compile=True)
    (result, grads) = runtime.compile_step(partial(play, round))()
    for tensor in (result, *grads):
        assert "device_data" in torch_xla._XLAC._get_xla_tensors_text([tensor])
        assert "aten" not in torch_xla._XLAC._get_xla_tensors_text([tensor])
    timing = time_rounds(round, runtime, warmup=0, repeats=2)
    assert min(timing.ms) > 0
