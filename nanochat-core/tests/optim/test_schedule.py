"""The schedule at its corners."""

import pytest
import torch

from nanochat.optim import OptimizerSettings, Schedule, build_optimizer


def test_a_whole_run_rises_stays_and_falls():
    schedule = Schedule(100, warmup_steps=10, warmdown_ratio=0.4, final_lr_frac=0.1)
    values = [schedule.lr_multiplier(step) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[:10] == pytest.approx([0.1 * (n + 1) for n in range(10)])
    assert values[10:61] == [1.0] * 51
    assert values[61:] == pytest.approx([1 - 0.9 * n / 40 for n in range(1, 41)])
    assert values[-1] == pytest.approx(0.1)


def test_without_warm_up_or_warm_down_the_rate_is_constant():
    schedule = Schedule(20, warmup_steps=0, warmdown_ratio=0.0)
    assert [schedule.lr_multiplier(step) for step in range(21)] == [1.0] * 21
    assert [schedule.momentum(step) for step in (500, 10**6)] == [0.97, 0.97]


def test_a_run_that_only_falls():
    schedule = Schedule(4, warmup_steps=0, warmdown_ratio=1.0, final_lr_frac=0.0)
    assert [schedule.lr_multiplier(step) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_a_run_shorter_than_its_warm_up_only_rises():
    schedule = Schedule(5, warmup_steps=40)
    assert [schedule.lr_multiplier(s) for s in range(5)] == pytest.approx(
        [(s + 1) / 40 for s in range(5)]
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_runs(steps):
    schedule = Schedule(steps, warmup_steps=0, weight_decay=0.1)
    for step in range(steps):
        assert 0 < schedule.lr_multiplier(step) <= 1
        assert 0.85 <= schedule.momentum(step) <= 0.97
        assert 0 <= schedule.muon_weight_decay(step) <= 0.1


def test_momentum_rises_for_400_steps_and_falls_with_the_rate():
    schedule = Schedule(2000, warmdown_ratio=0.5)
    assert schedule.momentum(0) == 0.85
    assert schedule.momentum(200) == pytest.approx(0.91)
    assert schedule.momentum(400) == schedule.momentum(1000) == 0.97
    assert schedule.momentum(1500) == pytest.approx(0.935)
    assert schedule.momentum(2000) == pytest.approx(0.90)


def test_weight_decay_follows_half_a_cosine():
    schedule = Schedule(100, weight_decay=0.2)
    values = [schedule.muon_weight_decay(step) for step in (0, 50, 100)]
    assert values == pytest.approx([0.2, 0.1, 0.0])
    assert schedule.muon_weight_decay(25) == pytest.approx(0.1 * (1 + 0.5**0.5))


def test_it_is_applied_to_every_group(build, runtime):
    optimizer = build_optimizer(
        build(), OptimizerSettings(weight_decay=0.5), runtime, compile=False
    )
    before = [dict(g) for g in optimizer.param_groups]
    schedule = Schedule(100, warmup_steps=10, weight_decay=0.2)
    assert schedule.apply(optimizer, 4) == 0.5
    # Twice is once: the rate comes from the initial one, not from the present.
    schedule.apply(optimizer, 4)
    for group, was in zip(optimizer.param_groups, before, strict=True):
        assert group["lr"] == 0.5 * was["lr"] == 0.5 * group["initial_lr"]
        if group["kind"] == "muon":
            assert group["momentum"] == schedule.momentum(4)
            assert group["weight_decay"] == schedule.muon_weight_decay(4)
        else:
            assert group["weight_decay"] == was["weight_decay"]
            assert group["betas"] == was["betas"]
    assert not torch.is_tensor(optimizer.param_groups[0]["lr"])
