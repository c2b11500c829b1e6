"""Checks of a device backend on the hardware that it found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from nanochat.backend import DeviceBackend, DeviceProblem, Variable
from nanochat.runtime import Runtime
from nanochat.testing.contract import Case, ConformanceError, Subject

PRECISIONS = ("float32", "bfloat16", "float8")


def _driver(subject: Subject) -> DeviceBackend:
    assert isinstance(subject.backend, DeviceBackend)
    return subject.backend


def facts(subject: Subject) -> Iterator[Case]:
    """Probing twice finds the same; dtype, peak and variables are what a run can use."""

    def verify() -> None:
        driver, target = _driver(subject), subject.target
        again = driver.probe()
        if again is None or replace(again, memory=None) != replace(target, memory=None):
            raise ConformanceError(f"probing again finds {again}, not {target}")
        dtype = driver.default_dtype(target)
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ConformanceError(f"default_dtype() is {dtype!r}, not a torch dtype")
        for precision in PRECISIONS:
            peak = driver.peak_flops(target, precision)
            if peak is not None and not peak > 0:
                raise ConformanceError(f"peak_flops() at {precision} is {peak!r}")
        for variable in driver.environment(target):
            if not (isinstance(variable, Variable) and isinstance(variable.value, str)):
                raise ConformanceError(f"environment() holds {variable!r}, not a Variable of text")
            if not variable.reason:
                raise ConformanceError(f"{variable.name} comes without a reason")

    yield Case("", DeviceProblem(), verify)


def computes(subject: Subject) -> Iterator[Case]:
    """The runtime places a tensor, and the device multiplies and differentiates in its dtype."""

    def verify() -> None:
        driver = _driver(subject)
        runtime = driver.setup(subject.target, getattr(torch, subject.dtype))
        if not isinstance(runtime, Runtime):
            raise ConformanceError(f"setup() returned {runtime!r}, not a Runtime")
        if runtime.dtype != getattr(torch, subject.dtype):
            raise ConformanceError(f"setup() was asked for {subject.dtype}, gives {runtime.dtype}")
        whole = torch.arange(64.0).view(8, 8)
        placed = runtime.place(whole)
        if placed.device.type != runtime.device.type:
            raise ConformanceError(f"place() puts a tensor on {placed.device}")
        x = (placed / 64).to(runtime.dtype).requires_grad_()
        y = (x @ x.T).float().sum()
        y.backward()
        runtime.synchronize()
        wide = (whole / 64).double()
        right = (wide @ wide.T).sum()
        if x.grad is None or not torch.allclose(y.detach().cpu().double(), right, rtol=2e-2):
            raise ConformanceError(f"a product sums to {y.item()}, not {right.item()}")
        peak = runtime.memory_peak()
        if peak is not None and not peak > 0:
            raise ConformanceError(f"memory_peak() is {peak!r}")

    yield Case("", DeviceProblem(subject.dtype), verify)


CHECKS = (facts, computes)
