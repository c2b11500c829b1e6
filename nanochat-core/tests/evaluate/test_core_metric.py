"""CORE against a computation of its own, one option at a time from plain logits in float64."""

from __future__ import annotations

import csv
import json
import math
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.errors import UsageError
from nanochat.evaluate import core_metric
from nanochat.evaluate.core_metric import TaskResult, evaluate_core, evaluate_task, load_bundle
from nanochat.model.gpt import GPT
from nanochat.runtime import Runtime

VOCABULARY = 12  # small, so that greedy decoding finds a continuation now and then


class Words:
    """Words with the space before them, hashed."""

    bos_id = 0

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        pieces = (re.findall(r" ?\w+|\s|[^\w\s]", text) for text in texts)
        return [[1 + zlib.crc32(p.encode()) % (VOCABULARY - 1) for p in row] for row in pieces]


def write_bundle(folder: Path, examples: int = 30) -> Path:
    draw = random.Random(3)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{draw.randrange(40)}" for _ in range(draw.randint(least, most)))

    def choice(number: int) -> dict[str, Any]:
        options = [words(1, 3) for _ in range(4)]
        if number % 7 == 0:
            options[0] = options[1].split()[0]  # may be the beginning of all others
        if number % 11 == 0:
            options = options[:1] * 4
        return {"query": words(2, 12), "choices": options, "gold": draw.randrange(4)}

    def schema(number: int) -> dict[str, Any]:
        contexts = [words(1, 8), words(1, 8)]
        if number % 9 == 0:
            contexts = contexts[:1] * 2
        return {"context_options": contexts, "continuation": words(1, 4), "gold": number % 2}

    def continuation(number: int) -> dict[str, Any]:
        return {"context": f" {words(3, 15)} ", "continuation": words(1, 1)}

    tasks: list[tuple[str, str, int, str | None, float, Callable[[int], dict[str, Any]]]] = [
        ("choice", "multiple_choice", 3, "\nAnswer: ", 25.0, choice),
        ("choice bare", "multiple_choice", 0, None, 25.0, choice),
        ("schema", "schema", 2, None, 50.0, schema),
        ("continuation", "language_modeling", 4, None, 0.0, continuation),
    ]
    (folder / "eval_data" / "some").mkdir(parents=True)
    lines = ["icl_tasks:"]
    with (folder / "eval_meta_data.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Eval Task", "Task Category", "Random baseline"])
        for number, (label, kind, shots, delimiter, baseline, make) in enumerate(tasks):
            lines += [
                f"- label: {label}",
                f"  dataset_uri: some/{number}.jsonl",
                f"  num_fewshot: [{shots}]",
                f"  icl_task_type: {kind}",
            ]
            if delimiter is not None:
                lines.append(f"  continuation_delimiter: {json.dumps(delimiter)}")
            table.writerow([label, "any", baseline])
            made = "".join(json.dumps(make(n)) + "\n" for n in range(examples))
            (folder / "eval_data" / "some" / f"{number}.jsonl").write_text(made)
    (folder / "core.yaml").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    pytest.importorskip("yaml", reason="core.yaml is read by PyYAML, of the extra `eval`")
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def model(make_model: Callable[..., GPT]) -> GPT:
    return make_model(vocab_size=VOCABULARY)


def by_hand(model: GPT, path: Path, kind: str, shots: int, delimiter: str, most: int) -> list[bool]:
    """Example by example and option by option, with nothing shared with the code under test."""
    context = model.rotary.size(1)
    examples = [json.loads(line) for line in path.read_text().splitlines()]
    random.Random(1337).shuffle(examples)
    examples = examples[:most] if most > 0 else examples

    def ids(text: str) -> list[int]:
        return [0, *Words().encode_batch([text])[0]]

    def losses(tokens: list[int]) -> list[float]:
        """Of each position, NaN for those that nothing predicts; and cropped to the context."""
        seen = tokens[-context:]
        chances = model(torch.tensor([seen]))[0].double().log_softmax(-1)
        found = [-chances[i, token].item() for i, token in enumerate(seen[1:])]
        return [math.nan] * (len(tokens) - len(found)) + found

    def mean(values: list[float]) -> float:
        known = [v for v in values if not math.isnan(v)]
        return sum(known) / len(known) if known else math.nan

    outcomes = []
    for index, example in enumerate(examples):
        others = [i for i in range(len(examples)) if i != index]
        solved = [examples[i] for i in random.Random(1234 + index).sample(others, shots)]
        if kind == "language_modeling":
            intro = "".join(
                s["context"].strip() + delimiter + s["continuation"] + "\n\n" for s in solved
            )
            question = intro + example["context"].strip() + delimiter
            tokens = ids(question + example["continuation"])
            first = len(ids(question.strip()))
            seen = tokens[-context:]
            best = model(torch.tensor([seen]))[0].argmax(-1).tolist()
            answer = len(tokens) - first
            outcomes.append(best[-answer - 1 : -1] == tokens[-answer:])
            continue
        if kind == "multiple_choice":
            intro = "".join(
                s["query"] + delimiter + s["choices"][s["gold"]] + "\n\n" for s in solved
            )
            rows = [ids(intro + example["query"] + delimiter + c) for c in example["choices"]]
            shared = 0
            while all(len(r) > shared and r[shared] == rows[0][shared] for r in rows):
                shared += 1
            scores = [mean(losses(r)[shared:]) for r in rows]
        else:
            intro = "".join(
                s["context_options"][s["gold"]] + delimiter + s["continuation"] + "\n\n"
                for s in solved
            )
            ending = delimiter + example["continuation"]
            rows = [ids(intro + c + ending) for c in example["context_options"]]
            shared = 0
            while all(len(r) > shared and r[-1 - shared] == rows[0][-1 - shared] for r in rows):
                shared += 1
            # BOS itself is predicted by nothing, so a sequence shared whole has no loss at all.
            scores = [mean(losses(r)[-shared:]) if shared < len(r) else math.nan for r in rows]
        best_option = 0
        for option, score in enumerate(scores):
            if score < scores[best_option]:
                best_option = option
        outcomes.append(best_option == example["gold"])
    return outcomes


@pytest.mark.parametrize("most", [-1, 11])
@pytest.mark.parametrize("number", range(4))
@torch.no_grad()
def test_every_example_as_by_hand(
    model: GPT,
    runtime: Runtime,
    bundle_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    most: int,
) -> None:
    monkeypatch.setattr(core_metric, "EXAMPLES_AT_ONCE", 7)
    monkeypatch.setattr(core_metric, "LOSS_TOKENS", 400)
    monkeypatch.setattr(core_metric, "LOGIT_TOKENS", 200)
    task = load_bundle(bundle_folder).tasks[number]
    found = evaluate_task(model, Words(), task, runtime, most)
    hand = by_hand(model, task.path, task.kind, task.num_fewshot, task.delimiter, most)
    assert found == hand
    assert most > 0 or 0 < sum(hand) < len(hand)


@pytest.mark.parametrize("number", range(4))
@torch.no_grad()
def test_prompts_longer_than_the_context_are_cropped_on_the_left(
    make_model: Callable[..., GPT], runtime: Runtime, bundle_folder: Path, number: int
) -> None:
    model = make_model(vocab_size=VOCABULARY, sequence_len=2)  # 20 positions
    task = load_bundle(bundle_folder).tasks[number]
    found = evaluate_task(model, Words(), task, runtime)
    assert found == by_hand(model, task.path, task.kind, task.num_fewshot, task.delimiter, -1)


def test_the_metric_is_the_mean_of_centred_accuracies(
    model: GPT, runtime: Runtime, bundle_folder: Path
) -> None:
    bundle = load_bundle(bundle_folder)
    reported: list[TaskResult] = []
    result = evaluate_core(model, Words(), bundle, runtime, report=reported.append)
    baselines = {"choice": 0.25, "choice bare": 0.25, "schema": 0.5, "continuation": 0.0}
    assert list(result.results) == list(baselines)
    for label, baseline in baselines.items():
        centred = (result.results[label] - baseline) / (1 - baseline)
        assert result.centered[label] == pytest.approx(centred)
    assert result.core_metric == pytest.approx(sum(result.centered.values()) / 4)
    assert [(r.label, r.accuracy, r.examples) for r in reported] == [
        (label, accuracy, 30) for label, accuracy in result.results.items()
    ]


@pytest.mark.parametrize("number", [0, 3])
def test_ranks_share_the_examples_and_agree(
    model: GPT, runtime: Runtime, bundle_folder: Path, number: int
) -> None:
    task = load_bundle(bundle_folder).tasks[number]

    class OneOfThree(Runtime):
        def __init__(self, rank: int, theirs: Tensor | None = None) -> None:
            super().__init__(torch.device("cpu"), torch.float32, rank=rank, world_size=3)
            self.theirs = theirs
            self.mine = torch.zeros(0)

        def all_reduce_sum(self, tensor: Tensor) -> Tensor:
            self.mine = tensor.clone()
            return tensor if self.theirs is None else tensor.add_(self.theirs)

    shares = []
    for rank in (1, 2):
        other = OneOfThree(rank)
        evaluate_task(model, Words(), task, other)
        shares.append(other.mine)
    together = evaluate_task(model, Words(), task, OneOfThree(0, shares[0] + shares[1]))
    assert together == evaluate_task(model, Words(), task, runtime)


def test_too_few_examples_for_the_shots(model: GPT, runtime: Runtime, bundle_folder: Path) -> None:
    task = load_bundle(bundle_folder).tasks[0]
    with pytest.raises(UsageError, match=r"'choice' shows 3 solved examples.*only 3"):
        evaluate_task(model, Words(), task, runtime, 3)
    assert len(evaluate_task(model, Words(), task, runtime, 4)) == 4


@pytest.mark.parametrize(
    ("losses", "option"),
    [
        ([2.0, 1.0, 1.0], 1),
        ([math.nan, 1.0, 0.5], 0),
        ([1.0, math.nan, 0.5], 2),
        ([math.nan, math.nan], 0),
    ],
)
def test_options_without_a_loss_win_only_in_first_place(losses: list[float], option: int) -> None:
    assert core_metric.lowest(losses) == option
