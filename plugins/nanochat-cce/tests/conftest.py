from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from nanochat.backend import installed_version
from nanochat_cce import upstream

RELEASE_ARGUMENTS = "do, e, c, lse, valids, softcap, filter_eps, targets=None, shift=False, "
RELEASE_ARGUMENTS += "vocab_ordering=None, grad_scale=1.0"
MAIN_ARGUMENTS = "do, dlse, e, e_info, c, c_info, bias, bias_info, lse, valids, softcap, "
MAIN_ARGUMENTS += "filter_eps, targets=None, shift=0, vocab_ordering=None, grad_scale=1.0, "
MAIN_ARGUMENTS += "accum_e_fp32=False, accum_c_fp32=False, filter_e_grad=True, filter_c_grad=True"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a stand-in of cut-cross-entropy: signatures only, and importing it is an error."""
    monkeypatch.delenv("NANOCHAT_CCE_FILTER_EPS", raising=False)
    monkeypatch.delenv("NANOCHAT_CCE_ACCUMULATE", raising=False)

    def do(version="25.1.1", arguments=RELEASE_ARGUMENTS, *, barrier=False, int64=False):
        package = tmp_path / "cut_cross_entropy"
        package.mkdir()
        (package / "__init__.py").write_text("raise RuntimeError('this was imported')\n")
        (package / "cce_backward.py").write_text(f"def cce_backward_kernel({arguments}): ...\n")
        (package / "cce_lse_forward.py").write_text("# tl.int64\n" if int64 else "\n")
        body = "tl.debug_barrier()" if barrier else "..."
        (package / "tl_utils.py").write_text(f"def tl_lock_add(ptrs): {body}\n")
        info = tmp_path / f"cut_cross_entropy-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: cut-cross-entropy\nVersion: {version}\n"
        )
        triton = tmp_path / "triton"
        triton.mkdir()
        (triton / "__init__.py").write_text("raise RuntimeError('this was imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        for module in ("triton", "cut_cross_entropy"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        installed_version.cache_clear()
        return package

    yield do
    installed_version.cache_clear()
    upstream.features_of.cache_clear()


@pytest.fixture
def install_main(install):
    return lambda: install("25.6.4", MAIN_ARGUMENTS, barrier=True, int64=True)


class StandIn:
    """Plain PyTorch in place of `nanochat_cce.kernels`: no Triton, the same two calls."""

    def __init__(self) -> None:
        self.seen: list[dict] = []

    def logits(self, hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
        logits = hidden.float() @ weight.float().T
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def forward(self, hidden, weight, targets, softcap, averages):
        assert hidden.is_contiguous()
        assert weight.is_contiguous()
        assert int(targets.min()) >= 0
        logits = self.logits(hidden, weight, softcap)
        lse = logits.logsumexp(-1)
        losses = lse - logits.gather(1, targets[:, None])[:, 0]
        return losses, lse, logits.mean(0) if averages else None

    def backward(self, grad, hidden, weight, targets, lse, means, *, softcap, needs, **options):
        self.seen.append({"needs": needs, "means": means is not None, **options})
        logits = self.logits(hidden, weight, softcap)
        probabilities = (logits - lse[:, None]).exp()
        # As in the real kernel, a target that is no word's index equals none of them.
        probabilities -= (targets[:, None] == torch.arange(len(weight))).float()
        if softcap is not None:
            probabilities *= 1 - (logits / softcap) ** 2
        probabilities *= grad[:, None]
        return (
            (probabilities @ weight.float()).to(hidden.dtype) if needs[0] else None,
            (probabilities.T @ hidden.float()).to(weight.dtype) if needs[1] else None,
        )


@pytest.fixture
def kernels(monkeypatch):
    from nanochat_cce import operators

    stand_in = StandIn()
    monkeypatch.setattr(operators, "kernels", stand_in)
    return stand_in
