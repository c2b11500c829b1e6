"""The model against a slow one in float64, written from the papers and nothing of the model's.

Attention is a loop over queries; gradients are autograd's through it.
"""

import math

import pytest
import torch

from nanochat.model.config import GPTConfig

CONFIG = GPTConfig(
    sequence_len=140,
    vocab_size=70,
    n_layer=4,
    n_head=4,
    n_kv_head=2,
    n_embd=48,
    window_pattern="SL",
)


def rms(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps)


def rotate(x, base):
    """x is (T, d): channel c and c + d/2 are a pair that turns by position / base^(2c/d)."""
    length, size = x.shape
    half = size // 2
    turned = torch.empty_like(x)
    for channel in range(half):
        angle = torch.arange(length, dtype=x.dtype) * base ** (-2 * channel / size)
        a, b = x[:, channel], x[:, channel + half]
        turned[:, channel] = a * angle.cos() + b * angle.sin()
        turned[:, channel + half] = b * angle.cos() - a * angle.sin()
    return turned


def attend(q, k, v, window, scale):
    """One head: q, k and v are (T, d)."""
    rows = []
    for i in range(len(q)):
        first = 0 if window is None else max(0, i - window)
        weights = torch.softmax(scale * (k[first : i + 1] @ q[i]), dim=0)
        rows.append(weights @ v[first : i + 1])
    return torch.stack(rows)


def reference_logits(config, w, tokens):
    """Logits (T, vocab) of one row; `w` maps the model's names to float64 tensors."""
    size, heads, kv_heads = config.head_dim, config.n_head, config.n_kv_head
    x = rms(w["embedding.weight"][tokens])
    smeared = [x[0]]
    for i in range(1, len(tokens)):
        gate = torch.sigmoid((w["smear_gate.weight"][0] * x[i, :24]).sum())
        smeared.append(x[i] + w["smear_scale"][0] * gate * x[i - 1])
    x = first = torch.stack(smeared)
    for layer in range(config.n_layer):
        name = f"blocks.{layer}."
        x = w["residual_scale"][layer] * x + w["embedding_scale"][layer] * first
        y = rms(x)
        qkv = y @ w[name + "attention.qkv.weight"].T
        q, k, v = qkv.split([heads * size, kv_heads * size, kv_heads * size], dim=-1)
        if (config.n_layer - 1 - layer) % 2 == 0:
            gate = 3 * torch.sigmoid(y[:, :12] @ w[name + "attention.value_gate.weight"].T)
            extra = w[f"value_embeddings.{layer}.weight"][tokens]
            v = v + gate.repeat_interleave(size, dim=1) * extra
        out = []
        for head in range(heads):
            shared = head // (heads // kv_heads)
            mine, theirs = (
                slice(head * size, (head + 1) * size),
                slice(shared * size, (shared + 1) * size),
            )
            out.append(
                attend(
                    rotate(rms(q[:, mine]), config.rope_base),
                    rotate(rms(k[:, theirs]), config.rope_base),
                    v[:, theirs],
                    config.windows[layer],
                    1.44 / math.sqrt(size),
                )
            )
        x = x + torch.cat(out, dim=1) @ w[name + "attention.out.weight"].T
        inner = torch.clamp(rms(x) @ w[name + "feed_forward.up.weight"].T, min=0)
        x = x + (inner * inner) @ w[name + "feed_forward.down.weight"].T
        if layer == config.n_layer // 2:
            middle = x
    x = rms(x - w["backout_scale"][0] * middle)
    logits = x @ w["output.weight"][: config.vocab_size].T
    return config.softcap * torch.tanh(logits / config.softcap)


@pytest.fixture(scope="module")
def case(build):
    """A model, a batch, and the reference's logits, loss and gradients for them."""
    model = build(CONFIG)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, CONFIG.vocab_size, (2, CONFIG.sequence_len), generator=generator)
    targets = torch.randint(0, CONFIG.vocab_size, tokens.shape, generator=generator)
    targets[0, 3:9] = -1
    targets[1, -1] = -1
    weights = {
        name: parameter.detach().double().requires_grad_()
        for name, parameter in model.named_parameters()
    }
    logits = torch.stack([reference_logits(CONFIG, weights, row) for row in tokens])
    total, count = 0.0, 0
    for row, wanted in zip(logits.flatten(0, 1), targets.flatten(), strict=True):
        if wanted >= 0:
            total = total + torch.log(torch.exp(row).sum()) - row[wanted]
            count += 1
    loss = total / count
    loss.backward()
    gradients = {n: w.grad for n, w in weights.items()}
    return model, tokens, targets, logits.detach(), loss.item(), gradients


def test_windows_and_groups_are_really_in_the_case():
    assert CONFIG.windows == (128, None, 128, None)
    assert CONFIG.n_head != CONFIG.n_kv_head


def test_logits_match_float64(case):
    model, tokens, _, logits, _, _ = case
    with torch.no_grad():
        ours = model(tokens)
    assert ours.dtype == torch.float32
    assert ours.shape == (2, CONFIG.sequence_len, CONFIG.vocab_size)
    assert logits.abs().max() > 3, "logits too small to tell anything"
    torch.testing.assert_close(ours.double(), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["torch", "chunked"])
def test_loss_and_every_gradient_match_float64(case, build, name):
    reference, tokens, targets, _, loss, gradients = case
    model = build(CONFIG, loss=name)
    model.load_state_dict(reference.state_dict())
    ours = model(tokens, targets)
    assert ours.item() == pytest.approx(loss, rel=1e-5)
    ours.backward()
    for parameter_name, parameter in model.named_parameters():
        expected = gradients[parameter_name]
        error = (parameter.grad.double() - expected).norm() / expected.norm()
        assert expected.norm() > 0, f"{parameter_name} has no part in the loss"
        assert error < 1e-4, f"{parameter_name}: relative error {error:.1e}"
