"""A GPT at the level of karpathy/nanochat's, which knows its backends and no library.

Beside the plain transformer: rotary positions, QK norm, squared ReLU, untied embeddings, a norm
after the embedding, value embeddings, learnable residual scalars, a smear of the previous token,
a subtraction of the middle layer ("backout"), sliding windows and a soft cap on the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanochat.backend import AttentionBackend, LossBackend, Reduction
from nanochat.errors import NanochatError
from nanochat.fused.heads import rotary_table
from nanochat.model.cache import KVCache
from nanochat.model.config import GPTConfig
from nanochat.model.layers import Block, Linear, norm

SMEAR_CHANNELS = 24
ROTARY_LENGTH_FACTOR = 10
"""Positions beyond the training length that evaluation prompts may use."""


class GPT(nn.Module):
    """The model. Build it under `torch.device("meta")`, then call `initialize(device)`.

    `dtype` is the dtype of activations and of the embedding tables; other weights are float32.
    """

    def __init__(
        self,
        config: GPTConfig,
        *,
        attention: AttentionBackend,
        loss: LossBackend,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.loss = loss
        layers, rows = config.n_layer, config.padded_vocab_size
        kv_width = config.n_kv_head * config.head_dim
        # Tables tolerate bfloat16 and are large. float16 gradients of a table would overflow.
        table_dtype = torch.float32 if dtype == torch.float16 else dtype
        self.embedding = nn.Embedding(rows, config.n_embd, dtype=table_dtype)
        self.value_embeddings = nn.ModuleDict(
            {
                str(layer): nn.Embedding(rows, kv_width, dtype=table_dtype)
                for layer in range(layers)
                if config.has_value_embedding(layer)
            }
        )
        self.blocks = nn.ModuleList(Block(config, layer, attention) for layer in range(layers))
        self.output = Linear(config.n_embd, rows)
        self.residual_scale = nn.Parameter(torch.empty(layers))
        self.embedding_scale = nn.Parameter(torch.empty(layers))
        self.smear_gate = Linear(SMEAR_CHANNELS, 1)
        self.smear_scale = nn.Parameter(torch.empty(1))
        self.backout_scale = nn.Parameter(torch.empty(1))
        self.rotary: Tensor
        self.register_buffer("rotary", torch.empty(0), persistent=False)

    @property
    def positions(self) -> int:
        """How many positions a row may have."""
        return self.rotary.size(1)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @torch.no_grad()
    def initialize(self, device: torch.device | str) -> GPT:
        """Allocate every tensor on `device` and draw the initial weights. Returns self."""
        self.to_empty(device=device)
        config = self.config
        bound = (3 / config.n_embd) ** 0.5  # a uniform of standard deviation 1 / sqrt(n_embd)
        nn.init.normal_(self.embedding.weight, std=0.8)
        nn.init.normal_(self.output.weight, std=0.001)
        for table in self.value_embeddings.values():
            assert isinstance(table, nn.Embedding)
            nn.init.uniform_(table.weight, -bound, bound)
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.uniform_(block.attention.qkv.weight, -bound, bound)
            nn.init.zeros_(block.attention.out.weight)
            nn.init.uniform_(block.feed_forward.up.weight, -0.4 * bound, 0.4 * bound)
            nn.init.zeros_(block.feed_forward.down.weight)
            if block.attention.value_gate is not None:
                nn.init.uniform_(block.attention.value_gate.weight, 0.0, 0.02)
        self.residual_scale.copy_(torch.linspace(1.15, 1.05, config.n_layer))
        self.embedding_scale.copy_(torch.linspace(0.20, 0.05, config.n_layer))
        nn.init.uniform_(self.smear_gate.weight, 0.0, 0.02)
        nn.init.zeros_(self.smear_scale)
        nn.init.constant_(self.backout_scale, 0.2)
        length = ROTARY_LENGTH_FACTOR * config.sequence_len
        self.rotary = rotary_table(length, config.head_dim, config.rope_base, self.device)
        return self

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        reduction: Reduction = "mean",
        cache: KVCache | None = None,
    ) -> Tensor:
        """The loss of `targets`, or the logits if there are none.

        tokens and targets are (B, T) int64; a target of -1 is ignored. Returns a float32 scalar
        ((B * T,) for reduction "none"), or float32 logits (B, T, vocab_size). With a cache, the T
        tokens continue what it holds and are appended to it; then a row is one document.
        """
        hidden = self.hidden(tokens, cache)
        weight = self.output.weight[: self.config.vocab_size].to(hidden.dtype)
        if targets is not None:
            return self.loss.linear_cross_entropy(
                hidden.flatten(0, 1),
                weight,
                targets.flatten(),
                ignore_index=-1,
                softcap=self.config.softcap,
                reduction=reduction,
            )
        logits = nn.functional.linear(hidden, weight).float()
        cap = self.config.softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """The normalised final hidden states (B, T, n_embd)."""
        start = 0 if cache is None else cache.position
        end = start + tokens.size(1)
        if end > self.positions or (cache is not None and end > cache.length):
            room = self.positions if cache is None else min(self.positions, cache.length)
            raise NanochatError(f"position {end} is beyond the {room} that were made room for")
        if cache is None:
            rotary = self.rotary[:, :end].contiguous()
        else:
            rotary = self.rotary.index_select(1, cache.places(tokens.size(1)))

        starts, documents = self._documents(tokens) if cache is None else (None, None)
        x = norm(self.embedding(tokens).to(self.dtype))
        x = self._smear(x, cache, starts)
        embedded, middle = x, x
        for index, block in enumerate(self.blocks):
            x = self.residual_scale[index] * x + self.embedding_scale[index] * embedded
            value = None
            if self.config.has_value_embedding(index):
                value = self.value_embeddings[str(index)](tokens).to(x.dtype)
            layer_cache = None if cache is None else cache.layer(index)
            x = block(x, value, rotary, layer_cache, documents)
            if index == self.config.n_layer // 2:
                middle = x
        if cache is not None:
            cache.advance(tokens.size(1))
        # Features that served only the lower layers need not reach the logits.
        return norm(x - self.backout_scale.to(x.dtype) * middle)

    def _documents(self, tokens: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Where documents begin, (B, T) bool, and the number of each position's, (B, T) int32.

        Both are None where the model does not keep documents apart.
        """
        if self.config.document_token is None:
            return None, None
        starts = tokens == self.config.document_token
        return starts, starts.cumsum(dim=1).int()

    def _smear(self, x: Tensor, cache: KVCache | None, starts: Tensor | None) -> Tensor:
        """Mix a little of the previous token's embedding into each: cheap bigrams."""
        if cache is None:
            # The first position has no predecessor; a zero vector leaves it as it is.
            previous = nn.functional.pad(x[:, :-1], (0, 0, 1, 0))
            if starts is not None:
                previous = previous.masked_fill(starts.unsqueeze(-1), 0)
        else:
            previous = torch.cat((cache.last_embedding, x[:, :-1]), dim=1)
            cache.remember(x)
        gate = torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))
        return x + self.smear_scale.to(x.dtype) * gate * previous

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by the role they play in scaling laws, and their total."""
        counts = {
            "embedding": self.embedding.weight.numel(),
            "value_embedding": sum(p.numel() for p in self.value_embeddings.parameters()),
            "output": self.output.weight.numel(),
            "matrices": sum(p.numel() for p in self.blocks.parameters()),
        }
        total = sum(p.numel() for p in self.parameters())
        return {**counts, "scalars": total - sum(counts.values()), "total": total}

    def flops_per_token(self) -> float:
        """Operations a token of forward and backward, by the convention of PaLM (2204.02311).

        Six for each weight of a matrix product and 12 * width * context for attention, where the
        context is a layer's window or the whole sequence: neither causality nor the ends of
        documents are discounted.
        """
        config = self.config
        weights = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        context = sum(
            config.sequence_len if w is None else min(w, config.sequence_len)
            for w in config.windows
        )
        return 6.0 * weights + 12.0 * config.n_embd * context
