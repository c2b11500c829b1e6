"""`--verify-kernels`: one step of the run is profiled. Evidence of kernels is a stand-in here."""

import contextlib

import pytest
import torch

from nanochat.backend import KernelPatterns
from nanochat.builtin.attention import Sdpa
from nanochat.builtin.loss import Torch
from nanochat.builtin.quantization import NoQuantization
from nanochat.errors import NanochatError, UsageError
from nanochat.plan import Choice
from nanochat.proof import Kernel
from nanochat.runtime import Runtime
from nanochat.train import verify
from nanochat.train.verify import KernelVerifier


class Choices(list):
    """A plan as far as the verifier looks at it."""

    problems = {}


class Run:
    """Two micro-batches a step under a verifier, on a processor."""

    def __init__(self, loss, steps=3):
        self.weight = torch.nn.Parameter(torch.randn(8, 8))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1)
        self.said = []
        backends = (Sdpa(), loss, NoQuantization())
        plan = Choices(Choice(b.hook, b, "core", "1", "auto", "") for b in backends)
        self.call = KernelVerifier(
            self._forward,
            self.optimizer,
            plan,
            Runtime(torch.device("cpu"), torch.float32),
            steps=steps,
            quantized=False,
            say=self.said.append,
        )

    def _forward(self, x):
        q = (x @ self.weight).view(1, 4, 1, 8).expand(1, 4, 1, 8)
        y = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        return torch.nn.functional.cross_entropy(y.view(4, 8), torch.arange(4))

    def steps(self, count):
        for _ in range(count):
            for _ in range(2):
                self.call(torch.randn(4, 8)).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


def test_it_is_said_once_after_step_2_what_ran():
    run = Run(Torch())
    run.steps(2)
    assert run.said == []
    run.steps(3)
    assert run.said == [
        "step 2: attention sdpa: proven (by the names of operators)",
        "step 2: loss torch: proven (by the names of operators)",
        "step 2: quantization none: nothing to prove (it changed nothing)",
    ]


def test_an_operator_that_is_not_seen_proves_nothing_on_a_processor():
    class Absent(Torch):
        kernels = KernelPatterns(forward=("no_such_kernel",))

    run = Run(Absent())
    run.steps(4)
    assert "loss torch: not provable" in run.said[1]


def test_a_kernel_that_did_not_run_ends_the_run_before_the_update(monkeypatch):
    @contextlib.contextmanager
    def recorded(runtime, phase):
        yield [Kernel("flash_fwd", phase, 1.0, 1), Kernel("flash_bwd", phase, 1.0, 1)]

    monkeypatch.setattr(verify, "recorded", recorded)
    monkeypatch.setattr(verify, "evidence_of", lambda device: "kernels")
    run = Run(Torch())
    run.steps(2)
    before = run.weight.detach().clone()
    with pytest.raises(NanochatError, match="loss torch: unproven") as error:
        run.steps(1)
    assert error.value.status == 1
    assert "sdpa" not in error.value.message
    assert torch.equal(run.weight, before)


def test_a_run_that_is_too_short_is_told_before_it_starts():
    with pytest.raises(UsageError, match="this run has 2 steps"):
        Run(Torch(), steps=2)
