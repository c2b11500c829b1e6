"""The core's own backends keep the contracts that plugins are held to."""

import torch

from nanochat.builtin.loss import Chunked
from nanochat.testing import (
    AttentionConformance,
    DeviceConformance,
    LossConformance,
    QuantizationConformance,
)


class ListedChunked(Chunked):
    """With samples of its operator: every combination of gradients that are needed."""

    def operator_samples(self, device):
        from nanochat.builtin import chunked_cross_entropy

        hidden = torch.randn(12, 16, device=device)
        weight = torch.randn(20, 16, device=device)
        targets = torch.tensor([0, 19, -1, 3] * 3, device=device)
        for needs in ((True, True), (False, True)):
            factors = [
                x.clone().requires_grad_(n) for x, n in zip((hidden, weight), needs, strict=True)
            ]
            yield chunked_cross_entropy._loss_and_gradients, (*factors, targets, -1, 15.0, *needs)


class TestSdpa(AttentionConformance):
    backend = "sdpa"
    device = "cpu"


class TestTorch(LossConformance):
    backend = "torch"
    device = "cpu"


class TestChunked(LossConformance):
    backend = ListedChunked()
    device = "cpu"


class TestChunkedInBfloat16(LossConformance):
    """The dtype of training on a GPU, whose tolerances are other ones."""

    backend = "chunked"
    device = "cpu"
    dtype = "bfloat16"


class TestSdpaInBfloat16(AttentionConformance):
    backend = "sdpa"
    device = "cpu"
    dtype = "bfloat16"


class TestNone(QuantizationConformance):
    backend = "none"
    device = "cpu"


class TestFp8(QuantizationConformance):
    backend = "fp8"
    device = "cpu"


class TestFp8Rowwise(QuantizationConformance):
    backend = "fp8-rowwise"
    device = "cpu"


class TestCpu(DeviceConformance):
    backend = "cpu"
