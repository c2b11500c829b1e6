"""A training run from its plan to its summary: builds what the loop needs and puts it away."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from nanochat.data.loader import TrainLoader
from nanochat.data.tokenizer import Tokenizer
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.optim import OptimizerSettings, Schedule, build_optimizer
from nanochat.plan import Plan
from nanochat.runtime import Runtime
from nanochat.train.config import TrainConfig
from nanochat.train.ending import announce, await_uploads, finish, stopped, write_json
from nanochat.train.folder import CHECKPOINTS, Resume, claimed, new_folder
from nanochat.train.horizon import REFERENCE_DEPTH, Horizon, plan_horizon
from nanochat.train.loop import Boundaries, Loop, Speed
from nanochat.train.meter import Meter
from nanochat.train.preemption import Notices, metadata_host
from nanochat.train.problems import quantizable
from nanochat.train.progress import Progress
from nanochat.train.ranks import agree, on_first_rank
from nanochat.train.record import LOG, Silence, Sink, copy_log, open_sinks, rewind_log
from nanochat.train.remote import RemoteRun
from nanochat.train.reports import Reports, open_core_bundle
from nanochat.train.snapshot import Snapshots, check_same, restore
from nanochat.train.stopping import StopRequest
from nanochat.train.uploads import open_uploads
from nanochat.train.verify import KernelVerifier

NOTICE = "\nstopping: the step is finished and saved first; Ctrl-C to stop at once\n"


def run(config: TrainConfig, plan: Plan, resume: Resume | None = None) -> Path:
    """Train as configured, on the plan's backends, and return the run folder.

    Raises NanochatError for whatever the user can mend, `Stopped` after a signal. All ranks call
    it with the same arguments.
    """
    plan.load()
    runtime = plan.device.backend.setup(plan.target, getattr(torch, plan.dtype))
    agree(runtime, config, plan, resume)
    with ExitStack() as stack:

        def open_folder() -> Path:
            bucket = config.checkpoint_bucket
            if resume is not None:
                found = resume.folder
            else:
                found = new_folder(config.output, config.run, config.depth, bucket)
            stack.enter_context(claimed(found))
            if bucket:
                RemoteRun.of(bucket, found).probe()
            return found

        folder = on_first_rank(runtime, open_folder)
        _train(config, plan, runtime, folder, resume, stack)
    runtime.close()
    return folder


def _train(
    config: TrainConfig,
    plan: Plan,
    runtime: Runtime,
    folder: Path,
    resume: Resume | None,
    stack: ExitStack,
) -> None:
    first = runtime.rank == 0
    tokenizer = Tokenizer.load(config.tokenizer_path())
    shape = config.model_config(tokenizer.vocab_size, tokenizer.bos_id)
    model, horizon = build_model(config, plan, runtime, shape)
    source = resume.checkpoint if resume else None
    if resume is not None and source is not None:
        check_same(resume.meta, model.config, tokenizer.fingerprint, horizon)

    runtime.seed(config.seed)
    runtime.materialize(model)
    optimizer = build_optimizer(
        model, optimizer_settings(config, horizon), runtime, compile=config.compile
    )
    optimizer.allocate()
    meter, start, position = Meter(), 0, None
    if resume is not None and source is not None:
        meter = restore(source, model, optimizer, runtime)
        start, position = int(resume.meta["step"]), resume.meta["data"]
    # Linear layers are swapped after loading: checkpoints know nothing of quantization.
    swapped = plan.quantization.backend.prepare(model, may_quantize)
    call = runtime.compile_model(model) if config.compile else runtime.call_model(model)

    progress = stack.enter_context(Progress(every=config.log_every, quiet=not first))
    stop = stack.enter_context(
        StopRequest(cuts=runtime.world_size == 1, notice=NOTICE if first else "")
    )
    uploads = open_uploads(config, folder, source, progress.say, stop, stack) if first else None
    notices = stack.enter_context(
        Notices(stop, progress.say, saves=runtime.world_size == 1).listening(
            metadata_host(config.preemption_notice) if runtime.local_rank == 0 else None
        )
    )
    bundle = open_core_bundle(config, progress)
    loader = TrainLoader(
        config.data_path(),
        tokenizer,
        batch_size=config.device_batch_size * runtime.devices,
        sequence_len=config.max_seq_len,
        rank=runtime.rank,
        world_size=runtime.world_size,
        streaming=config.streaming_data,
        pinned=runtime.pinned,
        state=position,
        # Enough for a whole step, so that one is ready when the step before it is launched.
        prefetch=max(4, 2 * horizon.accumulation_steps),
        long_documents=config.long_documents,
        notify=progress.say,
    )
    stack.callback(loader.close)

    sink: Sink = Silence()
    if first:
        if source is not None:
            copy_log(source.parent.parent / LOG, folder / LOG)
        rewind_log(folder / LOG, start)
        sink = open_sinks(folder, config.run, config.as_dict(), progress.say)
        write_json(folder / "plan.json", plan.as_dict())
        tokenizer.save(folder)
        announce(progress, model, horizon, folder, resume)
    stack.callback(sink.close)

    reports = Reports(config, plan, runtime, model, call, tokenizer, bundle, sink, progress, stop)
    snapshots = Snapshots(
        folder=folder / CHECKPOINTS,
        config=config,
        plan=plan,
        runtime=runtime,
        model=model,
        optimizer=optimizer,
        horizon=horizon,
        fingerprint=tokenizer.fingerprint,
        meter=meter,
        written=uploads.add if uploads is not None else None,
    )
    last, every = horizon.num_iterations, config.save_every
    saved = start

    def save(step: int) -> None:
        nonlocal saved
        if every == 0 or step == saved:
            return
        position = loop.position.as_dict() if loop.position is not None else None
        place = snapshots.save(step, position)
        saved = step
        if place is not None:
            loop.last_checkpoint = str(place)
            sink.write({"event": "save", "step": step, "checkpoint": str(place)})
            progress.say(f"step {step}: saved {place}")

    def saves(step: int) -> bool:
        periodic = every > 0 and step > 0 and step % every == 0
        return step == last or periodic or notices.save_wanted

    def act(step: int) -> None:
        # Saving comes first: what follows may take long, or fail.
        if saves(step):
            notices.save_wanted = False
            save(step)
        reports.act(step, last, meter)

    verifier: KernelVerifier | None = None
    if config.verify_kernels:
        verifier = KernelVerifier(
            call,
            optimizer,
            plan,
            runtime,
            steps=last - start,
            quantized=swapped > 0,
            say=progress.say,
        )

    loop = Loop(
        call=verifier or call,
        quantization=plan.quantization.backend,
        optimizer=optimizer,
        schedule=Schedule(
            num_iterations=last,
            warmup_steps=config.warmup_steps,
            warmdown_ratio=config.warmdown_ratio,
            final_lr_frac=config.final_lr_frac,
            weight_decay=horizon.weight_decay,
        ),
        runtime=runtime,
        loader=loader,
        horizon=horizon,
        meter=meter,
        speed=Speed(
            tokens_per_step=horizon.total_batch_size,
            flops_per_token=model.flops_per_token(),
            peak_flops=peak_flops(plan, runtime),
        ),
        sink=sink,
        progress=progress,
        stop=stop,
        boundaries=Boundaries(lambda step: saves(step) or reports.due(step, last), act, save),
        step=start,
        last_checkpoint=str(source or ""),
    )
    if not loop.run():
        stop.told_by_another()
        # The others wait meanwhile: a launcher that sees one of them end would end the first, too.
        on_first_rank(
            runtime, lambda: stopped(stop, loop.step, loop.last_checkpoint, folder, uploads)
        )
    if first:
        finish(folder, meter, runtime.memory_peak(), loader.stats, progress)
        await_uploads(uploads, loop.last_checkpoint)


def build_model(
    config: TrainConfig, plan: Plan, runtime: Runtime, model_config: GPTConfig
) -> tuple[GPT, Horizon]:
    """The model, still without memory, and the horizon that follows from its size."""

    def on_meta(shape: GPTConfig) -> GPT:
        with torch.device("meta"):
            return GPT(
                shape,
                attention=plan.attention.backend,
                loss=plan.loss.backend,
                dtype=runtime.dtype,
            )

    def scaling_params(model: GPT) -> int:
        counts = model.parameter_counts()
        return counts["matrices"] + counts["output"]

    model = on_meta(model_config)
    reference = replace(config, depth=REFERENCE_DEPTH, kv_heads=0)
    horizon = plan_horizon(
        scaling_params=scaling_params(model),
        reference_params=scaling_params(on_meta(reference.model_config(model_config.vocab_size))),
        flops_per_token=model.flops_per_token(),
        num_iterations=config.num_iterations,
        target_flops=config.target_flops,
        target_param_data_ratio=config.target_param_data_ratio,
        total_batch_size=config.total_batch_size,
        micro_batch=config.device_batch_size * config.max_seq_len * runtime.all_devices,
        weight_decay=config.weight_decay,
    )
    return model, horizon


def optimizer_settings(config: TrainConfig, horizon: Horizon) -> OptimizerSettings:
    """The settings' rates, scaled to the batch."""
    return OptimizerSettings(
        embedding_lr=config.embedding_lr * horizon.lr_scale,
        unembedding_lr=config.unembedding_lr * horizon.lr_scale,
        matrix_lr=config.matrix_lr * horizon.lr_scale,
        scalar_lr=config.scalar_lr * horizon.lr_scale,
        weight_decay=horizon.weight_decay,
    )


def may_quantize(name: str, module: nn.Module) -> bool:
    """The linear layers that may run in a narrower format: the blocks' large ones."""
    return (
        name.startswith("blocks.")
        and isinstance(module, nn.Linear)
        and quantizable(module.out_features, module.in_features)
    )


def peak_flops(plan: Plan, runtime: Runtime) -> float | None:
    """Of all devices. Quantized runs are measured against it too, so that runs can be compared."""
    peak = plan.device.backend.peak_flops(plan.target, plan.dtype)
    return None if peak is None else peak * runtime.all_devices
