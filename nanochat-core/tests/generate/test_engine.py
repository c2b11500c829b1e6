"""Decoding with the cache against the whole sequence at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.errors import UsageError
from nanochat.generate.engine import Engine, fill_in_the_middle
from nanochat.model.cache import KVCache
from nanochat.model.gpt import GPT
from nanochat.runtime import Runtime

WINDOWED = {"sequence_len": 512, "window_pattern": "SL", "n_layer": 3}
SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "windows": WINDOWED,
    "grouped queries": {**WINDOWED, "n_head": 4, "n_kv_head": 2},
    "no soft cap": {"softcap": None, "n_kv_head": 2},
}


class Letters:
    """A tokenizer of single characters; 0 is BOS, specials follow the letters."""

    vocab_size = 300
    bos_id = 0

    def encode(self, text: str) -> list[int]:
        return [ord(c) - 96 for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(96 + i) for i in ids)

    def special(self, name: str) -> int:
        return 200 + ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"].index(name)


def tokens(count: int, rows: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(1, 300, (rows, count), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def make_engine(make_model: Callable[..., GPT], runtime: Runtime) -> Callable[..., Engine]:
    def make(**settings: Any) -> Engine:
        return Engine(make_model(**settings), Letters(), runtime)

    return make


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prompt", [1, 2, 37, 200])
@torch.no_grad()
def test_cached_logits_are_those_of_the_whole_sequence(
    make_model: Callable[..., GPT], shape: str, prompt: int
) -> None:
    model = make_model(**SHAPES[shape])
    ids = tokens(prompt + 6, rows=2)
    whole = model(ids)
    cache = KVCache(model.config, 2, prompt + 6, model.device, model.dtype)
    pieces = [model(ids[:, :prompt], cache=cache)]
    pieces += [model(ids[:, t : t + 1], cache=cache) for t in range(prompt, prompt + 6)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prompt", [1, 5, 150])
def test_greedy_decoding_is_argmax_over_the_whole_sequence(
    make_engine: Callable[..., Engine], shape: str, prompt: int
) -> None:
    engine = make_engine(**SHAPES[shape])
    ids = tokens(prompt, seed=prompt)[0].tolist()
    expected = list(ids)
    with torch.no_grad():
        for _ in range(8):
            expected.append(int(engine.model(torch.tensor([expected]))[0, -1].argmax()))
    samples = engine.generate(ids, max_tokens=8, temperature=0.0, num_samples=3)
    assert 0 not in expected[prompt:]
    assert samples == [expected[prompt:]] * 3


def test_samples_differ_and_repeat_by_seed(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()

    def sample(seed: int) -> list[list[int]]:
        return engine.generate([0, 4, 5], max_tokens=12, top_p=0.95, seed=seed, num_samples=4)

    samples = sample(1)
    assert samples == sample(1) != sample(2)
    assert len({tuple(s) for s in samples}) == 4


def test_samples_share_the_prompt_but_not_their_past(make_engine: Callable[..., Engine]) -> None:
    """With top-k 2, each token is among the best two after its own row's tokens alone."""
    engine = make_engine()
    samples = engine.generate([0, 9, 2], max_tokens=10, top_k=2, seed=3, num_samples=4)
    for sample in samples:
        ids = [0, 9, 2, *sample]
        with torch.no_grad():
            best = engine.model(torch.tensor([ids]))[0].topk(2).indices.tolist()
        for position in range(3, len(ids)):
            assert ids[position] in best[position - 1]


class Script(Engine):
    """An engine whose draws are written down, a column a step."""

    def follow(self, monkeypatch: pytest.MonkeyPatch, columns: list[list[int]]) -> None:
        script = iter(columns)
        monkeypatch.setattr(
            "nanochat.generate.sampling.Sampling.draw",
            lambda *_: torch.tensor(next(script)),
        )


def test_a_row_ends_at_bos_or_a_stop_token_and_the_others_go_on(
    make_model: Callable[..., GPT], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Script(make_model(), Letters(), runtime)
    engine.follow(monkeypatch, [[5, 6, 7], [0, 6, 7], [8, 250, 7], [8, 8, 0], [9, 9, 9]])
    columns = list(engine.stream([0], max_tokens=9, num_samples=3, stop=[250]))
    assert columns == [[5, 6, 7], [None, 6, 7], [None, None, 7]]


def test_decoding_stops_when_no_position_is_left(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(sequence_len=4)
    room = engine.model.rotary.size(1)
    assert engine.room(room) == 1
    long = engine.generate([1] * (room - 3), max_tokens=50, temperature=0.0)
    assert len(long[0]) == 4
    assert len(engine.generate([1] * room, max_tokens=50, temperature=0.0)[0]) == 1
    with pytest.raises(UsageError, match=f"{room + 1} tokens.*room for {room}"):
        engine.stream([1] * (room + 1), max_tokens=1)


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "no tokens"),
        ([300], {}, "vocabulary"),
        ([-1], {}, "vocabulary"),
        ([1], {"max_tokens": 0}, "max-tokens"),
        ([1], {"num_samples": 0}, "num-samples"),
        ([1], {"top_k": -5}, "top-k"),
    ],
)
def test_wrong_use_is_refused_before_the_first_token(
    make_engine: Callable[..., Engine], prompt: list[int], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_engine().stream(prompt, **{"max_tokens": 4, **settings})  # type: ignore[arg-type]


def test_gradients_stay_on_for_whoever_consumes_the_stream(
    make_engine: Callable[..., Engine],
) -> None:
    for _ in make_engine().stream([0, 1], max_tokens=3, temperature=0.0):
        assert torch.is_grad_enabled()


def test_text_is_that_of_one_sample(
    make_model: Callable[..., GPT], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Script(make_model(), Letters(), runtime)
    engine.follow(monkeypatch, [[3, 2], [1, 25], [20, 5], [0, 1]])
    columns = engine.stream([0], max_tokens=4, num_samples=2)
    assert "".join(engine.text(columns)) == "cat"


def test_fill_in_the_middle_asks_for_what_is_between() -> None:
    assert fill_in_the_middle(Letters(), "ab", "c") == [0, 200, 1, 2, 202, 3, 201]
