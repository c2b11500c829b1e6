from __future__ import annotations

import sys

import pytest
import torch

from nanochat.backend import installed_version
from nanochat_liger import upstream

ARGUMENTS = "_input, weight, target, ignore_index=-100, reduction='mean', softcap=None, "
ARGUMENTS += "accum_dtype=None, token_grad_output=None, compute_gradients=None, "
ARGUMENTS += "weight_requires_grad=None"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a stand-in of liger-kernel: its signature only, and importing it is an error."""
    monkeypatch.delenv("NANOCHAT_LIGER_ACCUMULATE", raising=False)

    def do(version="0.8.5", arguments=ARGUMENTS):
        for name in ("liger_kernel", "triton"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
            monkeypatch.delitem(sys.modules, name, raising=False)
        source = tmp_path / "liger_kernel" / "ops" / "fused_linear_cross_entropy.py"
        source.parent.mkdir()
        source.write_text(f"def fused_linear_cross_entropy_forward({arguments}): ...\n")
        info = tmp_path / f"liger_kernel-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: liger_kernel\nVersion: {version}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        installed_version.cache_clear()
        return source

    yield do
    installed_version.cache_clear()
    upstream.arguments_of.cache_clear()


class StandIn:
    """Plain PyTorch in place of upstream's function: no Triton, the same arguments and traps."""

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def __call__(
        self,
        *,
        _input,
        weight,
        target,
        ignore_index,
        softcap,
        reduction,
        accum_dtype,
        compute_gradients,
        weight_requires_grad,
        token_grad_output,
    ):
        assert not torch.is_grad_enabled()
        self.seen.append({"needs": (compute_gradients, weight_requires_grad), "sum": accum_dtype})
        logits = _input.float() @ weight.float().T
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        valid = target != ignore_index
        column = target.where(valid, 0)[:, None]
        losses = (logits.logsumexp(-1) - logits.gather(1, column)[:, 0]).where(valid, 0)
        grad = logits.softmax(-1)
        grad[torch.arange(len(target)), column[:, 0]] -= 1
        if softcap is not None:
            grad *= 1 - (logits / softcap) ** 2
        grad *= valid[:, None]
        if token_grad_output is not None:
            grad *= token_grad_output[:, None]
        grad_input, grad_weight = torch.zeros_like(_input), None
        if compute_gradients:
            grad_input = (grad @ weight.float()).to(_input.dtype)
            if weight_requires_grad:
                grad_weight = (grad.T @ _input.float()).to(weight.dtype)
        # Whoever asks for a mean gets upstream's 0.0 over no rows, and fails.
        assert reduction in ("none", "sum")
        loss = losses if reduction == "none" else losses.sum()
        return loss, None, None, None, grad_input, grad_weight, None


@pytest.fixture
def kernel(monkeypatch):
    from nanochat_liger import operators

    stand_in = StandIn()
    monkeypatch.setattr(operators, "upstream", lambda: stand_in)
    return stand_in
