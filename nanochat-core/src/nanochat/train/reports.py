"""What is measured between steps: bits per byte, CORE, samples."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nanochat.data.loader import validation_batches
from nanochat.data.tokenizer import Tokenizer
from nanochat.evaluate.bpb import bits_per_byte
from nanochat.evaluate.core_metric import Bundle, evaluate_core, load_bundle
from nanochat.generate.engine import Engine
from nanochat.model.gpt import GPT
from nanochat.plan import Plan
from nanochat.runtime import Runtime
from nanochat.train.config import CORE_VARIABLE, TrainConfig
from nanochat.train.meter import Meter
from nanochat.train.progress import Progress
from nanochat.train.record import Sink
from nanochat.train.stopping import StopRequest


def open_core_bundle(config: TrainConfig, progress: Progress) -> Bundle | None:
    """The bundle of the CORE metric if it is wanted. Says so if it is wanted and not there."""
    if config.core_metric_every <= 0:
        return None
    path = config.core_bundle or os.environ.get(CORE_VARIABLE, "")
    if path:
        return load_bundle(path)
    progress.say(
        f"the CORE metric is left out: give its evaluation bundle with --core-bundle or "
        f"{CORE_VARIABLE}"
    )
    return None


class Reports:
    """Everything that looks at the model without training it. All ranks call `act`."""

    def __init__(
        self,
        config: TrainConfig,
        plan: Plan,
        runtime: Runtime,
        model: GPT,
        call: Callable[..., Tensor],
        tokenizer: Tokenizer,
        bundle: Bundle | None,
        sink: Sink,
        progress: Progress,
        stop: StopRequest,
    ) -> None:
        self._config = config
        self._quantization = plan.quantization.backend
        self._runtime = runtime
        self._model = model
        self._call = call
        self._tokenizer = tokenizer
        self._bundle = bundle
        self._sink = sink
        self._progress = progress
        self._stop = stop
        self._token_bytes = torch.from_numpy(tokenizer.token_bytes())

    def due(self, step: int, last: int) -> bool:
        """True if `act` has something to do at this step."""
        return self._validates(step, last) or self._scores(step, last) or self._samples(step, last)

    def act(self, step: int, last: int, meter: Meter) -> None:
        """Validate, score and sample, as far as they are due. Signals cut it short."""
        if not self.due(step, last):
            return
        with self._evaluating():
            if self._validates(step, last):
                self._validate(step, meter)
            if self._scores(step, last):
                self._score(step, meter)
            if self._samples(step, last):
                self._sample(step)

    def _validates(self, step: int, last: int) -> bool:
        every = self._config.eval_every
        return every > 0 and (step % every == 0 or step == last)

    def _scores(self, step: int, last: int) -> bool:
        return self._bundle is not None and _due(self._config.core_metric_every, step, last)

    def _samples(self, step: int, last: int) -> bool:
        wanted = bool(self._config.sample_prompts)
        return wanted and _due(self._config.sample_every, step, last)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        self._model.eval()
        try:
            with self._quantization.full_precision(self._model):
                yield
        finally:
            self._model.train()

    def _validate(self, step: int, meter: Meter) -> None:
        config = self._config
        batches = validation_batches(
            config.data_path(),
            self._tokenizer,
            batch_size=config.device_batch_size * self._runtime.devices,
            sequence_len=config.max_seq_len,
            tokens=config.eval_tokens,
            rank=self._runtime.rank,
            world_size=self._runtime.world_size,
            streaming=config.streaming_data,
            pinned=self._runtime.pinned,
            long_documents=config.long_documents,
            notify=self._progress.say,
        )
        bpb = bits_per_byte(self._call, self._stop.watch(batches), self._token_bytes, self._runtime)
        meter.validated(bpb)
        self._sink.write({"event": "eval", "step": step, "val_bpb": bpb})
        self._progress.say(f"step {step}: validation {bpb:.6f} bits per byte")

    def _score(self, step: int, meter: Meter) -> None:
        assert self._bundle is not None
        result = evaluate_core(
            self._model,
            self._tokenizer,
            self._bundle,
            self._runtime,
            max_per_task=self._config.core_metric_max_per_task,
            report=self._stop.check,
        )
        meter.core_metric = result.core_metric
        self._sink.write(
            {
                "event": "core",
                "step": step,
                "core_metric": result.core_metric,
                "accuracy": result.results,
                "centered": result.centered,
            }
        )
        self._progress.say(f"step {step}: CORE {result.core_metric:.4f}")

    def _sample(self, step: int) -> None:
        """Greedy continuations, on the first rank alone."""
        if self._runtime.rank != 0:
            return
        engine = Engine(self._model, self._tokenizer, self._runtime)
        for prompt in self._stop.watch(self._config.sample_prompts):
            ids = [self._tokenizer.bos_id, *self._tokenizer.encode(prompt)]
            [continuation] = engine.generate(
                ids, max_tokens=self._config.sample_tokens, temperature=0.0
            )
            text = self._tokenizer.decode(continuation)
            self._sink.write({"event": "sample", "step": step, "prompt": prompt, "text": text})
            self._progress.say(f"step {step}: {prompt!r} -> {text!r}")


def _due(every: int, step: int, last: int) -> bool:
    return every > 0 and step > 0 and (step % every == 0 or step == last)
