"""Decoding with a key-value cache: the prompt once, then a token a step for all samples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from nanochat.errors import UsageError
from nanochat.generate.sampling import Sampling, seeded_generator
from nanochat.generate.text import TextStream
from nanochat.model.cache import KVCache
from nanochat.model.gpt import GPT
from nanochat.runtime import Runtime

Column = list[int | None]
"""The next token of each sample, None for samples that have ended."""


class Codec(Protocol):
    """What is needed of a tokenizer."""

    @property
    def bos_id(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def special(self, name: str) -> int: ...


class Engine:
    """Samples continuations of a prompt.

    A sample ends at BOS, which begins the next document, or at a token of `stop`; neither is part
    of it. All end after `max_tokens`, or when the model has no position left: positions do not
    slide, see `room`.
    """

    def __init__(self, model: GPT, tokenizer: Codec, runtime: Runtime) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.runtime = runtime

    def room(self, prompt_tokens: int) -> int:
        """How many tokens can follow a prompt of that length; 0 or less if it is too long.

        The last token sampled needs no position, as nothing follows it.
        """
        return positions(self.model) - prompt_tokens + 1

    def stream(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        num_samples: int = 1,
        stop: Collection[int] = (),
    ) -> Iterator[Column]:
        """Columns of one token a sample, as they are sampled.

        Raises UsageError at once for settings out of range and for prompts that are empty, have
        unknown tokens or are longer than the model's positions.
        """
        sampling = Sampling(temperature, top_k, top_p)
        for name, value in (("max-tokens", max_tokens), ("num-samples", num_samples)):
            if value < 1:
                raise UsageError(f"{name} is {value}, it must be at least 1")
        if not 0 <= seed < 2**63:
            raise UsageError(f"seed is {seed}, it must be from 0 to {2**63 - 1}")
        vocabulary = self.model.config.vocab_size
        if not prompt_ids:
            raise UsageError("the prompt has no tokens", "Begin it with BOS")
        if not all(0 <= token < vocabulary for token in prompt_ids):
            raise UsageError(f"the prompt has tokens outside of the vocabulary of {vocabulary}")
        if self.room(len(prompt_ids)) < 1:
            raise UsageError(
                f"the prompt has {len(prompt_ids)} tokens, the model has room for "
                f"{positions(self.model)}",
                "Shorten the prompt",
            )
        tokens = min(max_tokens, self.room(len(prompt_ids)))
        ends = frozenset(stop) | {self.tokenizer.bos_id}
        return self._columns(list(prompt_ids), tokens, sampling, seed, num_samples, ends)

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        num_samples: int = 1,
        stop: Collection[int] = (),
    ) -> list[list[int]]:
        """The tokens of each sample without the prompt. Arguments and errors as of `stream`."""
        samples: list[list[int]] = [[] for _ in range(num_samples)]
        for column in self.stream(
            prompt_ids,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            num_samples=num_samples,
            stop=stop,
        ):
            for sample, token in zip(samples, column, strict=True):
                if token is not None:
                    sample.append(token)
        return samples

    def text(self, columns: Iterator[Column], sample: int = 0) -> Iterator[str]:
        """The text of one sample as it appears, never ending within a character."""
        stream = TextStream(self.tokenizer.decode)
        for column in columns:
            token = column[sample]
            if token is None:
                break
            yield stream.push(token)
        yield stream.finish()

    def _columns(
        self,
        prompt: list[int],
        tokens: int,
        sampling: Sampling,
        seed: int,
        num_samples: int,
        ends: frozenset[int],
    ) -> Iterator[Column]:
        generator = seeded_generator(self.model.device, seed)
        decode = self.runtime.compile_step(self._decode)
        # Entered and left between two columns: whoever consumes them keeps their gradients.
        with self.runtime.no_grad():
            cache = self._prefill(prompt[:-1], num_samples, len(prompt) + tokens - 1)
        last = torch.full((num_samples,), prompt[-1], dtype=torch.int64)
        alive = [True] * num_samples
        for _ in range(tokens):
            with self.runtime.no_grad():
                logits = decode(self.runtime.place_whole(last), cache)
                last = sampling.draw(logits, generator)
            found = last.tolist()
            alive = [a and token not in ends for a, token in zip(alive, found, strict=True)]
            if not any(alive):
                return
            yield [token if a else None for a, token in zip(alive, found, strict=True)]

    def _decode(self, last: Tensor, cache: KVCache) -> Tensor:
        """The logits (B, V) that follow the last tokens (B,)."""
        return self.model(last.unsqueeze(1), cache=cache)[:, -1]

    def _prefill(self, tokens: list[int], rows: int, length: int) -> KVCache:
        """A cache of `rows` equal rows which hold `tokens`, with room for `length` positions."""
        fill = self.runtime.compile_step(self._fill)
        expected = None
        if self.runtime.static_shapes:
            # A few lengths, so that prompts share a compiled program.
            most, count = positions(self.model), len(tokens)
            length = _bucket(length, most)
            if count:
                expected = count, self.runtime.place_whole(torch.tensor([count]))
                tokens = tokens + [self.tokenizer.bos_id] * (_bucket(count, most) - count)
        prompt = self.runtime.place_whole(torch.tensor([tokens], dtype=torch.int64))
        return fill(prompt, rows, length, expected)

    def _fill(
        self, prompt: Tensor, rows: int, length: int, expected: tuple[int, Tensor] | None
    ) -> KVCache:
        """`expected` as in `KVCache.expect`, or None if all of the prompt (1, T) counts."""
        model = self.model

        def allocate(batch_size: int, length: int) -> KVCache:
            return KVCache(model.config, batch_size, length, model.device, model.dtype)

        cache = allocate(rows, length)
        if not prompt.numel():
            return cache
        # The prompt is computed once, whatever the number of samples, and needs no logits.
        first = cache if rows == 1 else allocate(1, prompt.size(1))
        if expected is not None:
            first.expect(*expected)
        model.hidden(prompt, first)
        if first is not cache:
            cache.take(first)
        return cache


def _bucket(length: int, most: int) -> int:
    """The power of two from 64 that holds `length`, but not beyond `most`."""
    return min(max(64, 1 << (length - 1).bit_length()), max(most, length))


def positions(model: GPT) -> int:
    """The longest sequence that a model can compute: several times what it was trained on."""
    return model.get_buffer("rotary").size(1)


def fill_in_the_middle(tokenizer: Codec, prefix: str, suffix: str) -> list[int]:
    """A prompt whose continuation is the text between `prefix` and `suffix`.

    In the order prefix, suffix, middle of arXiv:2207.14255, as a document of its own.
    """
    return [
        tokenizer.bos_id,
        tokenizer.special("<|fim_prefix|>"),
        *tokenizer.encode(prefix),
        tokenizer.special("<|fim_suffix|>"),
        *tokenizer.encode(suffix),
        tokenizer.special("<|fim_middle|>"),
    ]
