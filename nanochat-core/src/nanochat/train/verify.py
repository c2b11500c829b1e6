"""`--verify-kernels`: one step of a run is profiled, and the plan's kernels must be in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from nanochat.errors import NanochatError, UsageError
from nanochat.optim import MuonAdamW
from nanochat.plan import Plan
from nanochat.profiling import evidence_of, recorded, warm_profiler
from nanochat.proof import prove
from nanochat.runtime import Runtime
from nanochat.train.ranks import speak

VERIFIED_STEP = 2
"""Counted from where this process started: what compiles has compiled by then."""


class KernelVerifier:
    """Stands for the model in the loop and records the first micro-batch of one step.

    The forward pass is its call, the backward pass all until the next call or the optimiser's
    step. Before that step it says of each backend what was seen, on the first rank, and raises
    NanochatError on all ranks if one of them did not see what the plan promises.
    """

    def __init__(
        self,
        call: Callable[..., Tensor],
        optimizer: MuonAdamW,
        plan: Plan,
        runtime: Runtime,
        *,
        steps: int,
        quantized: bool,
        say: Callable[[str], None],
    ) -> None:
        if runtime.records:
            raise UsageError(
                "--verify-kernels looks for kernels in the calls of a step, and this device runs "
                "whole programs",
                "Train without it: a backend that was asked for by name runs or the command fails",
            )
        if 0 < steps <= VERIFIED_STEP:
            raise UsageError(
                f"--verify-kernels looks at step {VERIFIED_STEP}, and this run has {steps} steps",
                f"Train for at least {VERIFIED_STEP + 1}, or leave it out",
            )
        self._call = call
        self._plan = plan
        self._runtime = runtime
        self._quantized = quantized
        self._say = say
        self._step = 0
        self._backward = ExitStack()
        self._found: dict[str, list[Any]] = {}
        self._hook = optimizer.register_step_pre_hook(self._before_update)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self._backward.close()
        if self._step != VERIFIED_STEP or self._found:
            return self._call(*args, **kwargs)
        warm_profiler(self._runtime)
        with recorded(self._runtime, "forward") as forward:
            loss = self._call(*args, **kwargs)
        backward = self._backward.enter_context(recorded(self._runtime, "backward"))
        self._found = {"forward": forward, "backward": backward}
        return loss

    def _before_update(self, *_: Any) -> None:
        self._backward.close()
        if self._step == VERIFIED_STEP:
            self._hook.remove()
            self._judge()
        self._step += 1

    def _judge(self) -> None:
        evidence = evidence_of(self._runtime.device)
        forward, backward = (
            [kernel.name for kernel in self._found[phase]] for phase in ("forward", "backward")
        )
        verdicts = [
            prove(
                choice.backend,
                forward,
                backward,
                evidence,
                problem=self._plan.problems.get(choice.hook),
                in_use=choice.hook != "quantization" or self._quantized,
            )
            for choice in self._plan
            if choice.hook != "device"
        ]
        self._found = {"forward": [], "backward": []}
        for verdict in verdicts:
            self._say(f"step {VERIFIED_STEP}: {verdict}")
        mine = [str(v) for v in verdicts if v.state == "unproven"]
        for rank, unproven in enumerate(self._runtime.all_gather_object(mine)):
            if unproven:
                where = f" on rank {rank}" if rank else ""
                speak(
                    self._runtime,
                    NanochatError(
                        f"the plan's kernels did not run{where}: {'; '.join(unproven)}",
                        "Choose other backends, or train without --verify-kernels",
                    ),
                )
