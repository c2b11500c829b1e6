"""Every setting of a training run, in one frozen record. Needs no torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from nanochat.backend import Hook
from nanochat.errors import UsageError
from nanochat.model.config import GPTConfig
from nanochat.train.bucket import BUCKET_VARIABLE, bucket_address
from nanochat.train.settings import setting

DATA_VARIABLE = "NANOCHAT_DATA_DIR"
CORE_VARIABLE = "NANOCHAT_CORE_BUNDLE"
NO_RUN_NAME = "dummy"
"""karpathy/nanochat's word for a run without a name, which is not logged to wandb."""

DEFAULT_PROMPTS = (
    "#include <",
    "template <typename T>\n",
    "int main(",
    "The capital of France is",
)


@dataclass(frozen=True)
class TrainConfig:
    """What the user asked for. What follows from it (horizon, batch, rates) is in `horizon`."""

    # Model
    depth: int = setting(20, "layers; the one dial of the model's size", "model")
    aspect_ratio: int = setting(64, "width of the model per layer", "model")
    head_dim: int = setting(128, "size of an attention head", "model")
    kv_heads: int = setting(0, "key-value heads (0: as many as query heads)", "model")
    max_seq_len: int = setting(2048, "tokens in a row", "model")
    window_pattern: str = setting("SSSL", "window of each layer, tiled: L full, S short", "model")

    document_mask: bool = setting(
        False, "attention stays within a document, also where a row holds several", "model"
    )

    # Horizon: the first one given is used
    num_iterations: int = setting(-1, "steps to train (-1: from the next two)", "horizon")
    target_flops: float = setting(-1.0, "train for that many operations (-1: off)", "horizon")
    target_param_data_ratio: float = setting(
        12.0, "train on that many tokens per scaling parameter", "horizon"
    )

    # Optimisation
    device_batch_size: int = setting(32, "rows a device takes at a time", "optimisation")
    total_batch_size: int = setting(-1, "tokens of a step (-1: by the power law)", "optimisation")
    embedding_lr: float = setting(0.3, "learning rate of embeddings (AdamW)", "optimisation")
    unembedding_lr: float = setting(0.008, "... of the output layer (AdamW)", "optimisation")
    matrix_lr: float = setting(0.02, "... of matrices (Muon)", "optimisation")
    scalar_lr: float = setting(0.5, "... of scalars (AdamW)", "optimisation")
    weight_decay: float = setting(0.28, "cautious weight decay of matrices", "optimisation")
    warmup_steps: int = setting(40, "steps in which rates rise", "optimisation")
    warmdown_ratio: float = setting(0.65, "part of the steps in which rates fall", "optimisation")
    final_lr_frac: float = setting(0.05, "last rate as a fraction of the first", "optimisation")
    seed: int = setting(42, "seed of the initial weights", "optimisation")

    # Backends
    device: str = setting("auto", "device backend: auto or a name", "backends")
    attention: str = setting("auto", "attention backend: auto, measure or a name", "backends")
    loss: str = setting("auto", "loss backend: auto, measure or a name", "backends")
    quantization: str = setting("auto", "quantization backend: auto, measure or a name", "backends")
    dtype: str = setting("", "dtype of activations (default: the device's)", "backends")
    compile: bool = setting(True, "compile the model", "backends")
    remeasure: bool = setting(False, "with measure: time again, ignoring what is kept", "backends")
    verify_kernels: bool = setting(
        False, "profile step 2 and stop unless the plan's kernels ran", "backends"
    )

    # Data
    data_dir: str = setting("", f"parquet shards (default: ${DATA_VARIABLE} or ./data)", "data")
    tokenizer: str = setting("", "tokenizer (default: the one in the data folder)", "data")
    streaming_data: bool = setting(
        False, "take shards as they appear, until _COMPLETE ends the epoch", "data"
    )
    long_documents: Literal["crop", "split"] = setting(
        "crop", "documents longer than a row: crop or split", "data", metavar="HOW"
    )

    # Record
    run: str = setting(NO_RUN_NAME, "name of the run; logged to wandb if installed", "record")
    output: str = setting("", "run folder (default: runs/NAME)", "record")
    log_every: int = setting(10, "steps between printed lines (log.jsonl has all)", "record")
    save_every: int = setting(-1, "steps between checkpoints (-1: at the end, 0: none)", "record")
    keep_checkpoints: int = setting(0, "keep only that many newest (0: all)", "record")
    resume: str = setting(
        "", "continue: auto (the newest checkpoint), a step, a folder or an address", "record"
    )
    checkpoint_bucket: str = setting(
        "", f"upload checkpoints there: gs://BUCKET/... (default: ${BUCKET_VARIABLE})", "record"
    )
    grace_seconds: float = setting(
        30.0, "seconds a machine lasts after SIGTERM: an upload waits no longer", "record"
    )
    preemption_notice: Literal["auto", "gce", "off"] = setting(
        "auto", "ask a spot machine's metadata server for its notice: auto, gce, off", "record"
    )

    # Evaluation
    eval_every: int = setting(250, "steps between validations (-1: off)", "evaluation")
    eval_tokens: int = setting(80 * 2**19, "tokens of a validation", "evaluation")
    core_metric_every: int = setting(2000, "steps between CORE metrics (-1: off)", "evaluation")
    core_metric_max_per_task: int = setting(
        500, "examples of each CORE task (-1: all)", "evaluation"
    )
    core_bundle: str = setting(
        "", f"the CORE evaluation bundle (default: ${CORE_VARIABLE})", "evaluation"
    )
    sample_every: int = setting(2000, "steps between samples (-1: off)", "evaluation")
    sample_prompts: tuple[str, ...] = setting(
        DEFAULT_PROMPTS, "what samples start with", "evaluation", kind=str, many=True
    )
    sample_tokens: int = setting(32, "tokens of a sample", "evaluation")

    verbose: bool = setting(False, "also show what was refused, and why", "record")

    def __post_init__(self) -> None:
        at_least_one = ("depth", "aspect_ratio", "head_dim", "max_seq_len", "device_batch_size")
        for name in (*at_least_one, "log_every", "eval_tokens", "sample_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{_flag(name)} is {getattr(self, name)}, it must be at least 1")
        for name in ("kv_heads", "warmup_steps", "keep_checkpoints", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"{_flag(name)} is {getattr(self, name)}, it must not be negative")
        for name in ("warmdown_ratio", "final_lr_frac"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{_flag(name)} is {getattr(self, name)}, it must be from 0 to 1")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{_flag(field.name)} is {value}, it must be finite")
        for name in ("num_iterations", "total_batch_size", "save_every"):
            if getattr(self, name) < -1:
                raise UsageError(f"{_flag(name)} is {getattr(self, name)}", "Use -1 for none")
        if self.num_iterations == 0 or self.total_batch_size == 0:
            name = "num_iterations" if self.num_iterations == 0 else "total_batch_size"
            raise UsageError(f"{_flag(name)} is 0, it must be at least 1, or -1 to derive it")
        if self.num_iterations < 0 and self.target_flops <= 0 and self.target_param_data_ratio <= 0:
            raise UsageError(
                "there is no horizon", "Give --num-iterations, --target-flops or a positive ratio"
            )
        if self.long_documents not in ("crop", "split"):
            raise UsageError(f"--long-documents is {self.long_documents!r}", "Use crop or split")
        if self.preemption_notice not in ("auto", "gce", "off"):
            raise UsageError(
                f"--preemption-notice is {self.preemption_notice!r}", "Use auto, gce or off"
            )
        if self.grace_seconds < 0:
            raise UsageError(f"--grace-seconds is {self.grace_seconds}, it must not be negative")
        if self.dtype not in ("", "bfloat16", "float32", "float16"):
            raise UsageError(f"--dtype {self.dtype!r} is not known", "Use bfloat16 or float32")
        if self.dtype == "float16":
            raise UsageError(
                "--dtype float16 would need loss scaling, which this trainer does not do",
                "Use bfloat16 or float32",
            )

    def model_config(self, vocab_size: int, bos_id: int = 0) -> GPTConfig:
        """The shape of the model for a vocabulary, whose documents begin with `bos_id`."""
        return GPTConfig.from_depth(
            self.depth,
            vocab_size=vocab_size,
            sequence_len=self.max_seq_len,
            aspect_ratio=self.aspect_ratio,
            head_dim=self.head_dim,
            kv_heads=self.kv_heads or None,
            window_pattern=self.window_pattern,
            document_token=bos_id if self.document_mask else None,
        )

    @property
    def asked(self) -> dict[Hook, str]:
        """What was asked of each hook."""
        return {
            "device": self.device,
            "attention": self.attention,
            "loss": self.loss,
            "quantization": self.quantization,
        }

    def data_path(self) -> Path:
        """The data folder. Raises UsageError if there is none."""
        given = self.data_dir or os.environ.get(DATA_VARIABLE, "")
        path = Path(given or "data")
        if path.is_dir():
            return path
        if path.exists():
            raise UsageError(f"the data folder {path} is not a folder")
        raise UsageError(
            f"there is no data folder {path}",
            f"Give --data-dir a folder of parquet shards with a `text` column, or set "
            f"{DATA_VARIABLE}",
        )

    def tokenizer_path(self) -> Path:
        """Where the tokenizer is. Raises UsageError with the way to train one if there is none."""
        if self.tokenizer:
            path = Path(self.tokenizer)
            if path.exists():
                return path
            raise UsageError(f"there is no tokenizer {path}")
        data = self.data_path()
        for path in (data / "tokenizer.json", data / "tokenizer"):
            if path.exists():
                return path
        raise UsageError(
            f"there is no tokenizer in {data}",
            f"Train one: nanochat-tokenizer train --data-dir {data}, or give --tokenizer",
        )

    def with_absolute_paths(self) -> TrainConfig:
        """The same run from any working directory."""
        return replace(
            self,
            data_dir=str(self.data_path().resolve()),
            tokenizer=str(self.tokenizer_path().resolve()),
            core_bundle=str(Path(self.core_bundle).resolve()) if self.core_bundle else "",
            checkpoint_bucket=bucket_address(self.checkpoint_bucket),
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def build(*layers: Mapping[str, Any]) -> TrainConfig:
    """A configuration from layers of settings, the later ones winning over the earlier ones."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged.update(layer)
    if isinstance(merged.get("sample_prompts"), list):
        merged["sample_prompts"] = tuple(merged["sample_prompts"])
    if merged.get("loss") == "current":
        merged["loss"] = "torch"
    return TrainConfig(**merged)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
