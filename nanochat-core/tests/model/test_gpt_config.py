"""The shape of a model: windows, the one dial, and shapes that cannot be."""

import math

import pytest

from nanochat.errors import UsageError
from nanochat.model.config import GPTConfig


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sequence_len": 0}, "sequence_len is 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_head": -1}, "n_head is -1"),
        ({"n_kv_head": 0}, "n_kv_head is 0"),
        ({"n_embd": 0}, "n_embd is 0"),
        ({"n_embd": 770}, "does not split into 6 heads"),
        ({"n_embd": 6 * 7}, "heads of an even size"),
        ({"n_kv_head": 4}, "cannot share 4 key-value heads"),
        ({"n_kv_head": 12}, "cannot share 12 key-value heads"),
        ({"window_pattern": ""}, "window pattern ''"),
        ({"window_pattern": "SXL"}, "window pattern 'SXL'"),
    ],
)
def test_shapes_that_cannot_be_are_refused(changes, reason):
    with pytest.raises(UsageError) as error:
        GPTConfig(**changes)
    assert reason in error.value.message


@pytest.mark.parametrize(
    ("sequence_len", "short"),
    [(2048, 512), (2000, 512), (8192, 2048), (1024, 256), (1100, 384), (512, 128), (300, 128)],
)
def test_short_windows_are_a_quarter_rounded_up_to_blocks(sequence_len, short):
    assert short == math.ceil(sequence_len / 4 / 128) * 128
    config = GPTConfig(sequence_len=sequence_len, n_layer=8, window_pattern="SSSL")
    assert config.windows == (short, short, short, None) * 2


@pytest.mark.parametrize("sequence_len", [1, 2, 64, 128, 129])
def test_a_window_that_reaches_everything_is_none(sequence_len):
    config = GPTConfig(sequence_len=sequence_len, n_layer=4, window_pattern="S")
    assert config.windows == (None,) * 4
    assert GPTConfig(sequence_len=130, n_layer=4, window_pattern="S").windows == (128,) * 3 + (
        None,
    )


@pytest.mark.parametrize(
    ("pattern", "layers", "windows"),
    [
        ("L", 3, "LLL"),
        ("S", 3, "SSL"),
        ("sl", 5, "SLSLL"),
        ("SSSL", 6, "SSSLSL"),
        ("LS", 2, "LL"),
        ("SSSL", 1, "L"),
    ],
)
def test_the_pattern_is_tiled_and_the_last_layer_sees_all(pattern, layers, windows):
    config = GPTConfig(n_layer=layers, window_pattern=pattern)
    assert "".join("L" if w is None else "S" for w in config.windows) == windows


@pytest.mark.parametrize(
    ("depth", "options", "width", "heads"),
    [
        (12, {}, 768, 6),
        (20, {}, 1280, 10),
        (13, {}, 896, 7),  # 832 is not whole heads
        (1, {}, 128, 1),
        (4, {"aspect_ratio": 32, "head_dim": 16}, 128, 8),
    ],
)
def test_depth_sets_the_width_in_whole_heads(depth, options, width, heads):
    config = GPTConfig.from_depth(depth, vocab_size=50257, **options)
    assert (config.n_layer, config.n_embd, config.n_head) == (depth, width, heads)
    assert config.n_kv_head == heads
    assert config.head_dim == options.get("head_dim", 128)
    assert config.padded_vocab_size == 50304
    assert GPTConfig(vocab_size=64).padded_vocab_size == 64


def test_key_value_heads_can_be_fewer():
    assert GPTConfig.from_depth(12, vocab_size=512, kv_heads=2).n_kv_head == 2
    with pytest.raises(UsageError, match="cannot share 4"):
        GPTConfig.from_depth(12, vocab_size=512, kv_heads=4)
    with pytest.raises(UsageError, match="at least 1"):
        GPTConfig.from_depth(0, vocab_size=512)


@pytest.mark.parametrize("layers", [1, 2, 5, 6])
def test_value_embeddings_are_on_every_other_layer_and_the_last(layers):
    config = GPTConfig(n_layer=layers)
    with_value = [layer for layer in range(layers) if config.has_value_embedding(layer)]
    assert with_value == list(range(layers - 1, -1, -2))[::-1]
