"""Opens a checkpoint as a model that is ready to compute, with its tokenizer and a plan.

Torch is imported only after the plan is made and the variables that the device wants are set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.backend import AttentionProblem, Hook, Target
from nanochat.errors import NanochatError, UsageError
from nanochat.model.config import GPTConfig
from nanochat.plan import Plan, Problems, make_plan
from nanochat.registry import Registry, discover, one_line
from nanochat.train import checkpoint, environment
from nanochat.train.folder import CHECKPOINTS
from nanochat.train.problems import problems_of

if TYPE_CHECKING:
    from nanochat.data.tokenizer import Tokenizer
    from nanochat.model.gpt import GPT
    from nanochat.runtime import Runtime

DECODING = "kvcache"
"""The capability of attention backends that decoding needs."""


@dataclass(frozen=True)
class Opened:
    """A model on its device. Close `runtime` when done with it."""

    model: GPT
    tokenizer: Tokenizer
    runtime: Runtime
    plan: Plan
    meta: Mapping[str, Any]
    folder: Path

    @property
    def step(self) -> int:
        return int(self.meta["step"])


def find_checkpoint(path: Path | str) -> Path:
    """The checkpoint that a path means: itself, or the newest one of a run folder.

    Raises UsageError if there is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", "Give a run folder or a checkpoint in it")
    if (folder / checkpoint.META).is_file():
        return folder
    for place in (folder / CHECKPOINTS, folder):
        newest = checkpoint.latest(place)
        if newest is not None:
            return checkpoint.step_folder(place, newest)
    raise UsageError(
        f"{folder} holds no checkpoint",
        f"Give a run folder (with {CHECKPOINTS}/step_...) or one of its checkpoints",
    )


def find_tokenizer(folder: Path) -> Path:
    """The tokenizer.json of a checkpoint, from its own folder up to that of its run."""
    for place in (folder, *folder.resolve().parents[:2]):
        if (place / "tokenizer.json").is_file():
            return place / "tokenizer.json"
    raise UsageError(f"there is no tokenizer.json beside {folder}", "Give --tokenizer")


def open_checkpoint(
    path: Path | str,
    *,
    asked: Mapping[Hook, str] | None = None,
    dtype: str | None = None,
    tokenizer: Path | str | None = None,
    batch: int = 1,
    decoding: bool = True,
    registry: Registry | None = None,
) -> Opened:
    """Load the weights of a run folder's newest checkpoint, or of one checkpoint, onto a device.

    `asked` names backends as on the command line; the model is never quantised. `dtype` is that
    of activations, by default the device's; `batch` the rows at a time that backends are chosen
    for; `decoding` asks for attention that works with a key-value cache. Raises UsageError for
    what is missing or cannot run here, NanochatError for what is damaged.
    """
    folder = find_checkpoint(path)
    meta = checkpoint.read_meta(folder)
    config = model_config(meta, folder)
    registry = registry or discover()
    asked = {**(asked or {}), "quantization": "none"}
    if decoding:
        registry = decoders(registry, asked.get("attention", "auto"))

    def problems(target: Target, dtype: str) -> Problems:
        training = problems_of(config, batch, target, dtype, compiled=False)
        attention = training["attention"]
        assert isinstance(attention, AttentionProblem)
        return {**training, "attention": replace(attention, training=False)}

    plan = make_plan(registry, asked, problems, dtype=dtype)
    environment.apply(plan.device.backend.environment(plan.target), os.environ)
    return _load(folder, meta, config, plan, Path(tokenizer or find_tokenizer(folder)))


def model_config(meta: Mapping[str, Any], folder: Path) -> GPTConfig:
    """The shape of a checkpoint's model. Raises NanochatError if meta.json does not tell it."""
    shape = meta.get("model")
    known = {field.name for field in fields(GPTConfig)}
    if not isinstance(shape, dict) or set(shape) - known or "step" not in meta:
        raise NanochatError(
            f"{folder / checkpoint.META} does not describe the model as this version does",
            "Use the version of nanochat that wrote it",
        )
    return GPTConfig(**shape)


def decoders(registry: Registry, asked: str) -> Registry:
    """The registry without the attention backends that cannot decode.

    Raises UsageError if the one asked for is among them.
    """
    able = [r for r in registry.backends("attention") if DECODING in r.backend.capabilities]
    named = registry.find("attention", asked)
    if named is not None and named not in able:
        raise UsageError(
            f"attention {named.backend.name!r} cannot decode: it knows no key-value cache",
            f"Use --attention {able[0].backend.name}" if able else "",
        )
    left = Registry(broken=registry.broken)
    for registered in registry:
        if registered.backend.hook != "attention" or registered in able:
            left.add(registered)
    return left


def _load(
    folder: Path, meta: Mapping[str, Any], config: GPTConfig, plan: Plan, tokenizer_path: Path
) -> Opened:
    import torch

    from nanochat.data.tokenizer import Tokenizer
    from nanochat.model.gpt import GPT

    tokenizer = Tokenizer.load(tokenizer_path)
    if meta.get("tokenizer") not in (None, tokenizer.fingerprint):
        raise UsageError(
            f"{tokenizer_path} is not the tokenizer that {folder} was trained with",
            "Give --tokenizer",
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"{tokenizer_path} has {tokenizer.vocab_size} tokens, the model of {folder} has "
            f"{config.vocab_size}",
            "Give --tokenizer",
        )
    plan.load()
    runtime = plan.device.backend.setup(plan.target, getattr(torch, plan.dtype))
    with torch.device("meta"):
        model = GPT(
            config,
            attention=plan.attention.backend,
            loss=plan.loss.backend,
            dtype=runtime.dtype,
        )
    runtime.materialize(model)
    weights = checkpoint.load(folder, runtime.load_device, optimizer=False).model
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise NanochatError(
            f"{folder / checkpoint.MODEL} does not fit the model of its meta.json: "
            f"{one_line(error)}",
            "Take another checkpoint",
        ) from error
    return Opened(model.eval(), tokenizer, runtime, plan, meta, folder)
