"""What ranks settle before a run, with the other rank's answers made up."""

from dataclasses import replace

import pytest
import torch

from nanochat.errors import UsageError
from nanochat.plan import make_plan
from nanochat.registry import discover
from nanochat.runtime import Runtime
from nanochat.train.config import TrainConfig
from nanochat.train.problems import problems_of
from nanochat.train.ranks import agree, on_first_rank


class TwoRanks(Runtime):
    """One of two ranks; `mend` turns its values into the other rank's."""

    def __init__(self, rank, mend):
        super().__init__(torch.device("cpu"), torch.float32, rank=rank, world_size=2)
        self.mend = mend

    def all_gather_object(self, value):
        other = self.mend(value)
        return [value, other] if self.rank == 0 else [other, value]


@pytest.fixture(scope="module")
def plan():
    model = TrainConfig().model_config(512)
    return make_plan(
        discover(""),
        {"device": "cpu"},
        lambda target, dtype: problems_of(model, 1, target, dtype),
    )


def test_equal_ranks_agree(plan):
    agree(TwoRanks(0, lambda mine: dict(mine)), TrainConfig(), plan, None)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"loss": "torch (nanochat-core 9)"}, "loss: "),
        ({"--depth": 3}, "--depth: 20 and 3"),
        ({"the checkpoint": "step_000100"}, "the checkpoint: None and step_000100"),
    ],
)
def test_ranks_that_differ_stop_and_the_first_says_why(plan, changed, told):
    with pytest.raises(UsageError, match=r"rank 0 and rank 1 do not agree") as caught:
        agree(TwoRanks(0, lambda mine: {**mine, **changed}), TrainConfig(), plan, None)
    assert told in caught.value.message
    with pytest.raises(SystemExit) as quiet:
        agree(TwoRanks(1, lambda mine: {**mine, **changed}), TrainConfig(), plan, None)
    assert quiet.value.code == 2


def test_a_failure_of_the_first_rank_ends_the_others(plan):
    def fail():
        raise UsageError("no")

    with pytest.raises(UsageError):
        on_first_rank(TwoRanks(0, lambda mine: mine), fail)
    with pytest.raises(SystemExit):
        on_first_rank(TwoRanks(1, lambda mine: UsageError("no")), fail)


def test_settings_reach_the_model():
    config = replace(TrainConfig(), depth=4, head_dim=32, kv_heads=2, max_seq_len=128)
    shape = config.model_config(300)
    assert (shape.n_layer, shape.head_dim, shape.n_kv_head, shape.n_embd) == (4, 32, 2, 256)
    assert (shape.sequence_len, shape.vocab_size, shape.window_pattern) == (128, 300, "SSSL")
