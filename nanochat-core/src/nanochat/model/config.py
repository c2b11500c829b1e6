"""The shape of a GPT: a frozen record that needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.errors import UsageError

SHORT_WINDOW_MULTIPLE = 128
"""Short windows are rounded up to the block that windowed kernels skip in."""


@dataclass(frozen=True)
class GPTConfig:
    """Everything that the parameters' shapes and the computation depend on.

    `window_pattern` is tiled over the layers: L sees the whole sequence, S a quarter of it; the
    last layer always sees all. `document_token` is the token that begins a document: with it,
    positions of different documents in a row do not see each other.
    """

    sequence_len: int = 2048
    vocab_size: int = 32768
    n_layer: int = 12
    n_head: int = 6
    n_kv_head: int = 6
    n_embd: int = 768
    window_pattern: str = "SSSL"
    softcap: float | None = 15.0
    rope_base: float = 100_000.0
    document_token: int | None = None

    def __post_init__(self) -> None:
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.n_embd % self.n_head or self.head_dim % 2:
            raise UsageError(
                f"n_embd {self.n_embd} does not split into {self.n_head} heads of an even size"
            )
        if self.n_head % self.n_kv_head:
            raise UsageError(
                f"{self.n_head} query heads cannot share {self.n_kv_head} key-value heads evenly"
            )
        if not self.window_pattern or set(self.window_pattern.upper()) - {"S", "L"}:
            raise UsageError(
                f"window pattern {self.window_pattern!r} has letters other than S and L",
                "Use for example L, SL or SSSL",
            )

    @classmethod
    def from_depth(
        cls,
        depth: int,
        *,
        vocab_size: int,
        sequence_len: int = 2048,
        aspect_ratio: int = 64,
        head_dim: int = 128,
        kv_heads: int | None = None,
        window_pattern: str = "SSSL",
        document_token: int | None = None,
    ) -> GPTConfig:
        """The one dial: width is depth * aspect_ratio, rounded up to whole heads."""
        if min(depth, aspect_ratio, head_dim) < 1:
            raise UsageError("depth, aspect ratio and head size must be at least 1")
        heads = -(-depth * aspect_ratio // head_dim)
        return cls(
            sequence_len=sequence_len,
            vocab_size=vocab_size,
            n_layer=depth,
            n_head=heads,
            n_kv_head=kv_heads or heads,
            n_embd=heads * head_dim,
            window_pattern=window_pattern,
            document_token=document_token,
        )

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding tables: a multiple of 64, which tensor cores and ranks like."""
        return -(-self.vocab_size // 64) * 64

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The window of each layer, None where it sees the whole sequence."""
        quarter = -(-self.sequence_len // 4)
        short = -(-quarter // SHORT_WINDOW_MULTIPLE) * SHORT_WINDOW_MULTIPLE
        pattern = self.window_pattern.upper()
        windows: list[int | None] = []
        for layer in range(self.n_layer):
            is_short = pattern[layer % len(pattern)] == "S" and short < self.sequence_len - 1
            windows.append(short if is_short else None)
        windows[-1] = None
        return tuple(windows)

    def has_value_embedding(self, layer: int) -> bool:
        """Every other layer mixes a second token embedding into its values, the last included."""
        return layer % 2 == (self.n_layer - 1) % 2
