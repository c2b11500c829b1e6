"""The laws of horizon, batch and rates, against figures worked out by hand."""

import math

import pytest

from nanochat.errors import UsageError
from nanochat.train.horizon import best_batch_size, nearest_multiples, plan_horizon


def derive(**changes):
    settings = {
        "scaling_params": 100_000_000,
        "reference_params": 100_000_000,
        "flops_per_token": 6e8,
        "num_iterations": -1,
        "target_flops": -1.0,
        "target_param_data_ratio": 12.0,
        "total_batch_size": -1,
        "micro_batch": 32 * 2048,
        "weight_decay": 0.28,
    }
    return plan_horizon(**{**settings, **changes})


def test_the_reference_model_keeps_the_reference_settings():
    horizon = derive()
    assert horizon.total_batch_size == 2**19
    assert horizon.accumulation_steps == 8
    assert horizon.num_iterations == 1_200_000_000 // 2**19
    assert horizon.lr_scale == 1.0
    assert horizon.weight_decay == pytest.approx(0.28)


def test_batch_grows_with_tokens_to_the_0_383():
    assert best_batch_size(1.0) == 2**19
    # The next power of two is nearer once growth ** 0.383 exceeds the square root of two.
    edge = math.sqrt(2) ** (1 / 0.383)
    assert best_batch_size(edge * 0.99) == 2**19
    assert best_batch_size(edge * 1.01) == 2**20


def test_rates_and_decay_follow_the_batch():
    horizon = derive(total_batch_size=2**17, scaling_params=50_000_000)
    assert horizon.lr_scale == pytest.approx(0.5)
    assert horizon.weight_decay == pytest.approx(0.28 * 0.5 * 2)


def test_explicit_steps_win_over_operations_and_these_over_the_ratio():
    assert derive(num_iterations=7, target_flops=1e18).num_iterations == 7
    expected = round(1e18 / (6e8 * 2**19))
    assert derive(target_flops=1e18).num_iterations == expected


def test_an_automatic_batch_is_rounded_to_what_the_devices_take():
    assert derive(micro_batch=3 * 2048).total_batch_size % (3 * 2048) == 0
    assert derive(micro_batch=2**22).accumulation_steps == 1


def test_an_explicit_batch_that_does_not_divide_names_its_neighbours():
    with pytest.raises(UsageError) as caught:
        derive(total_batch_size=100_000)
    assert "65536" in caught.value.remedy
    assert "131072" in caught.value.remedy


@pytest.mark.parametrize(("value", "expected"), [(64, (64,)), (10, (64,)), (100, (128, 64))])
def test_nearest_multiples(value, expected):
    assert nearest_multiples(value, 64) == expected
