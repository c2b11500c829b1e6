"""The process of one job: reads it from standard input, writes its outcome to a file.

What is not caught here ends the process with a traceback, of which the parent keeps the last line.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.backend import Backend, Hook, Target
from nanochat.bench.jobs import Job, Outcome
from nanochat.errors import NanochatError
from nanochat.model.config import GPTConfig
from nanochat.plan import Plan, Problems, choose, choose_device, load_backend, make_plan
from nanochat.registry import discover
from nanochat.train import environment
from nanochat.train.problems import problems_of

if TYPE_CHECKING:
    from nanochat.bench.work import Round
    from nanochat.runtime import Runtime

KERNELS_KEPT = 40


def main(argv: list[str]) -> int:
    """Usage: child.py OUTCOME, the job on standard input."""
    job = Job.from_json(sys.stdin.read())
    try:
        outcome = perform(job)
    except NanochatError as error:
        outcome = Outcome("refused", str(error))
    except MemoryError:
        outcome = Outcome("out of memory", "the host has no more memory")
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        outcome = Outcome("out of memory", str(error).strip().splitlines()[0])
    Path(argv[0]).write_text(json.dumps(outcome.as_dict()), encoding="utf-8")
    return 0


def _out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def perform(job: Job) -> Outcome:
    """Build what the job describes, time it, and with `profile` look at one more round."""
    registry = discover()
    if job.work == "step":
        config = GPTConfig(**job.model)
        plan = make_plan(
            registry,
            {"device": job.device, **job.backends},
            lambda target, dtype: problems_of(
                config, job.batch, target, dtype, compiled=job.compile
            ),
            dtype=job.dtype or None,
        )
        environment.apply(plan.device.backend.environment(plan.target), os.environ)
        plan.load()
        runtime = _claimed(plan.device.backend, plan.target, plan.dtype)
        from nanochat.bench.work import step_round

        rounds = [step_round(plan, config, job.batch, runtime, job.compile)]
        tokens = job.batch * config.sequence_len * runtime.devices
        return _measured(
            job,
            rounds,
            runtime,
            plan.target,
            plan.device.backend,
            tokens,
            _of(plan),
            plan.problems,
        )
    device, target = choose_device(registry, job.device, job.dtype or None)
    dtype = job.dtype or device.backend.default_dtype(target)
    hook: Hook = job.work
    problem = job.problem_of()
    choice = choose(registry, hook, job.backends[hook], target, problem)
    environment.apply(device.backend.environment(target), os.environ)
    load_backend(choice.backend, choice.distribution)
    runtime = _claimed(device.backend, target, dtype)
    return _measured(
        job,
        _rounds(job, choice.backend, problem, runtime),
        runtime,
        target,
        device.backend,
        None,
        {hook: choice.backend},
        {hook: problem},
    )


def _claimed(device: Any, target: Target, dtype: str) -> Runtime:
    import torch

    runtime: Runtime = device.setup(target, getattr(torch, dtype))
    runtime.seed(0)
    return runtime


def _of(plan: Plan) -> dict[Hook, Backend]:
    return {c.hook: c.backend for c in plan if c.hook != "device"}


def _rounds(job: Job, backend: Any, problem: Any, runtime: Runtime) -> list[Round]:
    from nanochat.bench import work

    if job.work == "loss":
        return [work.loss_round(backend, problem, runtime, job.compile)]
    if job.work == "quantization":
        return [work.quantization_round(backend, problem, runtime, job.compile)]
    layers = list(job.windows or problem.windows)
    return [
        work.attention_round(backend, problem, window, layers.count(window), runtime, job.compile)
        for window in dict.fromkeys(layers)
    ]


def _measured(
    job: Job,
    rounds: list[Round],
    runtime: Runtime,
    target: Target,
    device: Any,
    tokens: int | None,
    backends: dict[Hook, Backend],
    problems: Problems,
) -> Outcome:
    import torch

    from nanochat.bench.timing import time_rounds

    timings = [time_rounds(r, runtime, warmup=job.warmup, repeats=job.repeats) for r in rounds]
    ms = sum(t.median * r.count for t, r in zip(timings, rounds, strict=True))
    flops = sum(r.flops * r.count for r in rounds) / (1e-3 * ms)
    dtype = str(runtime.dtype).removeprefix("torch.")
    ceiling = device.peak_flops(target, dtype)
    peaks = [t.peak for t in timings if t.peak is not None]
    extras = [t.extra for t in timings if t.extra is not None]
    outcome = Outcome(
        "ok",
        ms=ms,
        spread=max(t.spread for t in timings),
        tokens_per_second=None if tokens is None else tokens / (1e-3 * ms),
        flops_per_second=flops,
        mfu=None if ceiling is None else flops / ceiling,
        peak=max(peaks, default=None),
        extra=max(extras, default=None),
        compile_seconds=sum(t.first_seconds for t in timings),
        backends={hook: backend.name for hook, backend in backends.items()},
        machine={
            "target": str(target),
            "dtype": dtype,
            "torch": str(torch.__version__),
            "compiled": str(job.compile).lower(),
            "compilation cache": os.environ.get("TORCHINDUCTOR_CACHE_DIR", "torch's default"),
        },
    )
    if not job.profile or runtime.records:
        return outcome
    return _proven(outcome, rounds, runtime, backends, problems)


def _proven(
    outcome: Outcome,
    rounds: list[Round],
    runtime: Runtime,
    backends: dict[Hook, Backend],
    problems: Problems,
) -> Outcome:
    from nanochat.profiling import evidence_of, profiled, warm_profiler
    from nanochat.proof import Kernel, prove, shares

    warm_profiler(runtime)
    evidence = evidence_of(runtime.device)
    kernels: list[Kernel] = []
    for one in rounds:
        result, forward = profiled(runtime, "forward", one.forward)
        _, backward = profiled(runtime, "backward", lambda one=one, y=result: one.backward(y))
        del result
        _, update = profiled(runtime, "update", one.update)
        found = [*forward, *backward, *(update if one.updates else ())]
        kernels += [dataclasses.replace(k, ms=k.ms * one.count) for k in found]
    names = {
        phase: [k.name for k in kernels if k.phase == phase] for phase in ("forward", "backward")
    }
    swapped = sum(one.swapped for one in rounds)
    verdicts = [
        prove(
            backend,
            names["forward"],
            names["backward"],
            evidence,
            problem=problems.get(hook),
            in_use=hook != "quantization" or swapped > 0,
        )
        for hook, backend in backends.items()
    ]
    kernels.sort(key=lambda kernel: -kernel.ms)
    return dataclasses.replace(
        outcome,
        evidence=evidence,
        verdicts=tuple(v.as_dict() for v in verdicts),
        shares=shares(kernels),
        kernels=tuple(
            (k.name, k.phase, k.group, k.ms, k.calls) for k in kernels[:KERNELS_KEPT] if k.ms > 0
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
