"""One optimiser for a whole model: Muon for the matrices of its blocks, AdamW for the rest.

With several ranks, gradients are averaged here: each rank gets a share of every large tensor,
updates it with its own share of the optimiser's state, and sends the result to the others
(ZeRO-2, arXiv:1910.02054). The model needs no wrapper for data parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nanochat.errors import NanochatError
from nanochat.model.gpt import GPT
from nanochat.model.layers import SelfAttention
from nanochat.optim import sharding
from nanochat.optim.adamw import adamw_update
from nanochat.optim.muon import muon_update, variance_shape
from nanochat.runtime import Runtime

SHARDED_FROM = 1024
"""Elements from which an AdamW tensor is shared out among ranks."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Learning rates at the reference width of 768 and batch of 2**19 tokens."""

    matrix_lr: float = 0.02
    embedding_lr: float = 0.3
    unembedding_lr: float = 0.008
    scalar_lr: float = 0.5
    weight_decay: float = 0.0


class MatrixBlock(NamedTuple):
    """Rows of a parameter that Muon treats as one matrix."""

    name: str
    param: nn.Parameter
    start: int
    rows: int

    def of(self, tensor: Tensor) -> Tensor:
        return tensor[self.start : self.start + self.rows]


def build_optimizer(
    model: GPT, settings: OptimizerSettings, runtime: Runtime, *, compile: bool = True
) -> MuonAdamW:
    """Group the model's parameters and give each group its rate, after karpathy/nanochat.

    AdamW's rates for embeddings scale with 1 / sqrt(width). Muon's matrices are stacked by shape.
    """
    width_scale = (model.config.n_embd / 768) ** -0.5
    embedding_lr = settings.embedding_lr * width_scale

    def adamw(
        names: str | Iterable[str], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> dict[str, Any]:
        prefixes = (names,) if isinstance(names, str) else tuple(names)
        chosen = [(n, p) for n, p in model.named_parameters() if n.startswith(prefixes)]
        return {
            "kind": "adamw",
            "params": [p for _, p in chosen],
            "names": [n for n, _ in chosen],
            "lr": lr,
            "betas": betas,
            "eps": 1e-10,
            "weight_decay": weight_decay,
        }

    groups = [
        adamw("output.", settings.unembedding_lr * width_scale, (0.8, 0.96), 0.01),
        adamw("embedding.", embedding_lr, (0.8, 0.995), 0.001),
        adamw("value_embeddings.", 0.5 * embedding_lr, (0.8, 0.995), 0.01),
        adamw("residual_scale", 0.01 * settings.scalar_lr, (0.8, 0.95), 0.05),
        adamw("embedding_scale", settings.scalar_lr, (0.96, 0.95), 0.0),
        adamw(("smear_", "backout_"), 0.2, (0.8, 0.95), 0.0),
    ]
    for blocks in _blocks_by_shape(model).values():
        params = {id(b.param): b.param for b in blocks}
        groups.append(
            {
                "kind": "muon",
                "params": list(params.values()),
                "blocks": blocks,
                "lr": settings.matrix_lr,
                "momentum": 0.95,
                "beta2": 0.9,
                "weight_decay": settings.weight_decay,
            }
        )
    return MuonAdamW(groups, runtime, compile=compile)


def _blocks_by_shape(model: GPT) -> dict[tuple[int, int], list[MatrixBlock]]:
    by_shape: dict[tuple[int, int], list[MatrixBlock]] = {}
    owners = dict(model.named_modules())
    for name, param in model.named_parameters():
        if not name.startswith("blocks."):
            continue
        owner = owners[name.rpartition(".")[0].rpartition(".")[0]]
        sizes = [param.size(0)]
        if isinstance(owner, SelfAttention) and param is owner.qkv.weight:
            sizes = owner.row_blocks
        start = 0
        for index, rows in enumerate(sizes):
            block = MatrixBlock(f"{name}.{index}", param, start, rows)
            by_shape.setdefault((rows, param.size(1)), []).append(block)
            start += rows
    return dict(sorted(by_shape.items()))


class MuonAdamW(torch.optim.Optimizer):
    """See `build_optimizer`, which makes its groups.

    `state_dict` returns a flat mapping of names to whole tensors: the same for any number of
    ranks. It and `load_state_dict` are collective calls.
    """

    def __init__(
        self, groups: list[dict[str, Any]], runtime: Runtime, *, compile: bool = True
    ) -> None:
        # A parameter whose rows belong to several Muon groups would be refused by the base class.
        seen: set[int] = set()
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in seen]
            seen.update(id(p) for p in group["params"])
        super().__init__([g for g in groups if g["params"] or g.get("blocks")], defaults={})
        for group in self.param_groups:
            group["initial_lr"] = group["lr"]
        self.runtime = runtime
        self.rank, self.world_size = runtime.rank, runtime.world_size
        self.product_dtype = torch.bfloat16 if runtime.dtype == torch.bfloat16 else torch.float32
        self.steps = 0
        self._muon = runtime.compile_update(muon_update) if compile else muon_update
        self._adamw = runtime.compile_update(_adamw_updates) if compile else _adamw_updates

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter from its `.grad`."""
        assert closure is None
        self.steps += 1
        settings = self._settings()
        reduced = [self._reduce(group) for group in self.param_groups]
        waits: list[Callable[[], None]] = []
        for group, shards, moving in zip(self.param_groups, reduced, settings, strict=True):
            for shard in shards:
                shard.wait()
            update = self._update_muon if group["kind"] == "muon" else self._update_adamw
            waits += update(group, shards, moving)
        for wait in waits:
            wait()

    def allocate(self) -> None:
        """Make all state now, and not in the first step, which would be a program of its own where
        steps are compiled."""
        for group in self.param_groups:
            if group["kind"] == "muon":
                self._muon_state(group)
            else:
                for param in group["params"]:
                    self._adamw_state(param)

    def _settings(self) -> list[list[Tensor]]:
        """What moves from step to step, of each group, in the order that its update takes it."""
        values = [
            _muon_settings(group) if group["kind"] == "muon" else _adamw_settings(group, self.steps)
            for group in self.param_groups
        ]
        tensors = iter(self.runtime.scalars([v for of_group in values for v in of_group]))
        return [[next(tensors) for _ in of_group] for of_group in values]

    def _reduce(self, group: dict[str, Any]) -> list[sharding.Shard]:
        """Launch the averaging of a group's gradients over ranks."""
        if group["kind"] == "adamw":
            return [
                sharding.reduce_scatter_mean(_grad(p), self.rank, self.world_size)
                if self._is_sharded(p)
                else sharding.all_reduce_mean(_grad(p), self.world_size)
                for p in group["params"]
            ]
        stacked = self._stack([b.of(_grad(b.param)) for b in group["blocks"]])
        return [sharding.reduce_scatter_mean(stacked, self.rank, self.world_size)]

    def _update_adamw(
        self, group: dict[str, Any], shards: list[sharding.Shard], settings: list[Tensor]
    ) -> list[Callable[[], None]]:
        parts, states = [], []
        for param in group["params"]:
            parts.append(self._own_rows(param) if self._is_sharded(param) else param)
            states.append(self._adamw_state(param))
        self._adamw(
            parts,
            [s.part for s in shards],
            [s["mean"] for s in states],
            [s["square"] for s in states],
            *settings,
        )
        return [
            sharding.all_gather(param.data, part, self.world_size)
            for param, part in zip(group["params"], parts, strict=True)
            if self._is_sharded(param)
        ]

    def _update_muon(
        self, group: dict[str, Any], shards: list[sharding.Shard], settings: list[Tensor]
    ) -> list[Callable[[], None]]:
        blocks: list[MatrixBlock] = group["blocks"]
        (shard,) = shards
        own = self._own_blocks(blocks)
        params = self._stack([b.of(b.param) for b in own], whole=False)
        state = self._muon_state(group)
        if own:
            self._muon(
                params,
                shard.part[: len(own)],
                state["momentum"],
                state["variance"],
                *settings,
                product_dtype=self.product_dtype,
            )
        if self.world_size == 1:
            torch._foreach_copy_([b.of(b.param) for b in blocks], list(params))
            return []
        # The memory of the averaged gradients becomes that of the gathered parameters.
        part = torch.zeros_like(shard.part)
        if own:
            part[: len(own)] = params
        gathered = sharding.all_gather(shard.whole, part, self.world_size)

        def copy_back() -> None:
            gathered()
            targets = [b.of(b.param) for b in blocks]
            torch._foreach_copy_(targets, list(shard.whole[: len(blocks)]))

        return [copy_back]

    @torch.no_grad()
    def _adamw_state(self, param: Tensor) -> dict[str, Tensor]:
        state = self.state[param]
        if not state:
            part = self._own_rows(param) if self._is_sharded(param) else param
            state["mean"] = torch.zeros_like(part)
            state["square"] = torch.zeros_like(part)
        return state

    def _muon_state(self, group: dict[str, Any]) -> dict[str, Tensor]:
        blocks: list[MatrixBlock] = group["blocks"]
        own = self._own_blocks(blocks)
        state = group.setdefault("state", {})
        if not state:
            first = blocks[0]
            rows, columns, device = first.rows, first.param.size(1), first.param.device
            state["momentum"] = torch.zeros(len(own), rows, columns, device=device)
            state["variance"] = torch.zeros(variance_shape(len(own), rows, columns), device=device)
        return state

    def _stack(self, tensors: list[Tensor], whole: bool = True) -> Tensor:
        """(K, m, n); with `whole`, padded with zeros so that the ranks' shares are equal."""
        if not whole or self.world_size == 1:
            return torch.stack(tensors) if tensors else torch.empty(0)
        count = sharding.rows_per_rank(len(tensors), self.world_size) * self.world_size
        stacked = tensors[0].new_zeros(count, *tensors[0].shape)
        torch._foreach_copy_(list(stacked[: len(tensors)]), tensors)
        return stacked

    def _own_blocks(self, blocks: list[MatrixBlock]) -> list[MatrixBlock]:
        share = sharding.rows_per_rank(len(blocks), self.world_size)
        return blocks[self.rank * share : (self.rank + 1) * share]

    def _is_sharded(self, param: Tensor) -> bool:
        return (
            self.world_size > 1
            and param.numel() >= SHARDED_FROM
            and param.size(0) % self.world_size == 0
        )

    def _own_rows(self, param: Tensor) -> Tensor:
        share = param.size(0) // self.world_size
        return param[self.rank * share : (self.rank + 1) * share]

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Every moment by its parameter's name, whole, and the number of steps taken."""
        flat: dict[str, Any] = {"steps": torch.tensor(self.steps)}
        if self.steps == 0:
            return flat
        for group in self.param_groups:
            if group["kind"] == "adamw":
                for name, param in zip(group["names"], group["params"], strict=True):
                    for key, part in self.state[param].items():
                        sharded = self._is_sharded(param)
                        flat[f"{name}.{key}"] = self._gather(part) if sharded else part
                continue
            blocks: list[MatrixBlock] = group["blocks"]
            share = sharding.rows_per_rank(len(blocks), self.world_size)
            for key, part in self._muon_state(group).items():
                padded = part.new_zeros(share, *part.shape[1:])
                padded[: len(part)] = part
                for block, value in zip(blocks, self._gather(padded), strict=False):
                    flat[f"{block.name}.{key}"] = value
        return flat

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        """Take this rank's share of what `state_dict` returned. Raises NanochatError."""

        def saved(key: str, like: Tensor) -> Tensor:
            if key not in state_dict:
                raise NanochatError(f"the saved optimiser state lacks {key!r}")
            value = state_dict[key]
            if value.shape != like.shape:
                raise NanochatError(
                    f"the saved optimiser state has {key!r} of shape {tuple(value.shape)}, "
                    f"this model needs {tuple(like.shape)}"
                )
            return value.to(device=like.device, dtype=like.dtype)

        self.steps = int(saved("steps", torch.tensor(0)))
        if self.steps == 0:
            self.state.clear()
            for group in self.param_groups:
                group.pop("state", None)
            return

        for group in self.param_groups:
            if group["kind"] == "adamw":
                for name, param in zip(group["names"], group["params"], strict=True):
                    for key in ("mean", "square"):
                        whole = saved(f"{name}.{key}", param)
                        part = self._own_rows(whole) if self._is_sharded(param) else whole
                        self.state[param][key] = part.clone()
                continue
            state = self._muon_state(group)
            for index, block in enumerate(self._own_blocks(group["blocks"])):
                for key, part in state.items():
                    part[index] = saved(f"{block.name}.{key}", part[index])

    def _gather(self, part: Tensor) -> Tensor:
        if self.world_size == 1:
            return part
        whole = part.new_empty(self.world_size * part.size(0), *part.shape[1:])
        sharding.all_gather(whole, part, self.world_size)()
        return whole


def _adamw_updates(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    *settings: Tensor,
) -> None:
    """A group's updates in one graph: one launch from Python for all of its tensors."""
    for param, grad, mean, square in zip(params, grads, means, squares, strict=True):
        adamw_update(param, grad, mean, square, *settings)


def _adamw_settings(group: Mapping[str, Any], step: int) -> list[float]:
    beta1, beta2 = group["betas"]
    return [float(step), group["lr"], beta1, beta2, group["eps"], group["weight_decay"]]


def _muon_settings(group: Mapping[str, Any]) -> list[float]:
    first: MatrixBlock = group["blocks"][0]
    lr = group["lr"] * max(1.0, first.rows / first.param.size(1)) ** 0.5
    return [group["momentum"], lr, group["weight_decay"], group["beta2"]]


def _grad(param: nn.Parameter) -> Tensor:
    if param.grad is None:
        return torch.zeros_like(param)
    return param.grad
