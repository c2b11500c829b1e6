"""Whole runs of `nanochat-train` with a tiny model."""

import json
import math
import os
import shutil
import threading
import time

import pytest
import torch

from nanochat import backend
from nanochat.builtin.loss import Torch
from nanochat.train import checkpoint
from nanochat.train.fetch import LateFetch
from nanochat.train.run import may_quantize


def events(folder, kind):
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [r for r in records if r["event"] == kind]


def test_a_run_learns_and_leaves_its_records(train, tmp_path):
    status, out, err = train(
        "--num_iterations=30",
        "--matrix-lr=0.4",
        "--embedding_lr=3",
        "--unembedding-lr=0.4",
        "--eval-every=15",
        "--sample-every=15",
        "--sample-prompts",
        "int",
        "--save-every=15",
    )
    assert (status, err) == (0, "")
    folder = tmp_path / "runs" / "d2"
    steps = events(folder, "step")
    assert [s["step"] for s in steps] == list(range(30))
    assert steps[0]["loss"] == pytest.approx(math.log(320), rel=0.05)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.5
    assert steps[-1]["tokens"] == 30 * 256
    validations = events(folder, "eval")
    assert [v["step"] for v in validations] == [0, 15, 30]
    assert validations[-1]["val_bpb"] < validations[0]["val_bpb"]
    assert [s["step"] for s in events(folder, "sample")] == [15, 30]
    plan = json.loads((folder / "plan.json").read_text())
    assert plan["attention"]["backend"] == "sdpa"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["val_bpb"] == validations[-1]["val_bpb"]
    assert (folder / "loss.png").exists()
    assert (folder / "tokenizer.json").exists()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
        "step_000015",
        "step_000030",
    ]
    meta = json.loads((folder / "checkpoints" / "step_000030" / "meta.json").read_text())
    assert meta["plan"] == plan
    assert meta["settings"]["depth"] == 2
    assert meta["versions"]["torch"] == str(torch.__version__)
    for shown in ("sdpa", "step 30/30", "bits per byte", "'int' -> "):
        assert shown in out


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))),
    reason="torch.compile needs a C++ compiler on a CPU",
)
def test_a_compiled_run_gives_the_same_losses(tmp_path, corpus, tiny, train, losses):
    from nanochat.cli.train import main

    short = ["--depth=1", "--aspect-ratio=32", "--num-iterations=3", "--loss=torch"]
    arguments = [a for a in tiny if a != "--no-compile"]
    assert main([*arguments, *short, f"--data-dir={corpus}", "--output=compiled"]) == 0
    assert train(*short, "--output=eager")[0] == 0
    compiled, eager = losses(tmp_path / "compiled"), losses(tmp_path / "eager")
    assert compiled == pytest.approx(eager, rel=1e-4)


def test_accumulation_does_not_change_the_losses(train, tmp_path, losses, whole):
    """The same rows in two micro-batches or in one."""
    assert train("--output=one", "--total-batch-size=256", "--device-batch-size=4")[0] == 0
    assert losses(tmp_path / "one") == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("loss", ["torch", "chunked"])
def test_every_builtin_loss_trains_alike(train, tmp_path, losses, whole, loss):
    assert train(f"--kernel={loss}", "--output=named")[0] == 0
    assert losses(tmp_path / "named") == pytest.approx(whole, rel=1e-4)


def test_a_run_that_keeps_documents_apart(train, tmp_path, losses, whole):
    """It learns otherwise than without, is continued, and its checkpoint says what it is."""
    flags = ("--document-mask", "--output=apart")
    status, _out, err = train(*flags, "--num-iterations=12", "--save-every=6", "--eval-every=12")
    assert (status, err) == (0, "")
    apart = losses(tmp_path / "apart")
    assert apart[0] == pytest.approx(whole[0], rel=0.01)
    assert abs(apart[11] - whole[11]) > 1e-4
    checkpoints = tmp_path / "apart" / "checkpoints"
    meta = json.loads((checkpoints / "step_000006" / "meta.json").read_text())
    assert meta["model"]["document_token"] is not None
    assert meta["settings"]["document_mask"] is True
    shutil.rmtree(checkpoints / "step_000012")
    assert train("--resume", str(checkpoints / "step_000006"), "--output=on")[0] == 0
    assert losses(tmp_path / "on")[11] == pytest.approx(apart[11], rel=1e-5)


def test_streaming_trains_while_shards_appear(train, tmp_path, texts, stream, shard_writer):
    """The second shard, without which there are not enough rows, comes after the first step."""
    log = tmp_path / "runs" / "d2" / "log.jsonl"

    def produce():
        deadline = time.monotonic() + 120
        while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        shard_writer(stream / ".b.tmp", texts)
        (stream / ".b.tmp").rename(stream / "b.parquet")
        (stream / "_COMPLETE").touch()

    producer = threading.Thread(target=produce)
    producer.start()
    status, _, err = train("--streaming_data", "--num-iterations=10", data=stream)
    producer.join()
    assert (status, err) == (0, "")
    shards = {r["data"][1] for r in events(tmp_path / "runs" / "d2", "step")}
    assert "b.parquet" in shards


@pytest.fixture
def spoil(monkeypatch):
    """Let the loss of a step, counted from 0, be NaN."""

    def at(step):
        calls = 0
        original = Torch.linear_cross_entropy

        def spoiled(self, *args, **kwargs):
            nonlocal calls
            calls += 1  # two micro-batches a step
            loss = original(self, *args, **kwargs)
            return loss * float("nan") if calls > 2 * step else loss

        monkeypatch.setattr(Torch, "linear_cross_entropy", spoiled)

    return at


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_not_a_number_stops_the_run(train, tmp_path, monkeypatch, spoil, late):
    """Even if it is known a step late, as on a GPU, the spoiled weights are not saved."""
    if late:
        monkeypatch.setattr(LateFetch, "ready", property(lambda self: len(self) > 1))
    spoil(5)
    status, _, err = train("--loss=torch", "--save-every=3")
    assert status == 1
    assert err.count("\n") == 1
    assert "the loss is nan at step 5" in err
    assert "step_000003" in err
    folder = tmp_path / "runs" / "d2"
    assert [s["step"] for s in events(folder, "step")] == list(range(5))
    assert checkpoint.steps(folder / "checkpoints") == [3]


def test_losses_that_are_known_late_are_the_same(train, tmp_path, monkeypatch, losses, whole):
    monkeypatch.setattr(LateFetch, "ready", property(lambda self: len(self) > 1))
    assert train("--output=late", "--save-every=5", "--eval-every=3")[0] == 0
    assert losses(tmp_path / "late") == whole


def test_a_batch_that_does_not_divide_names_the_nearest(train):
    status, _, err = train("--total-batch-size=200")
    assert status == 2
    assert "128" in err
    assert "256" in err


def test_a_run_is_never_written_over(train, tmp_path):
    short = "--num-iterations=1"
    for _ in range(2):
        assert train(short)[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["d2", "d2-2"]
    status, _, err = train(short, "--output=runs/d2")
    assert status == 2
    assert "already holds a run" in err


def test_no_checkpoints_where_none_are_wanted(train, tmp_path):
    assert train("--save-every=0", "--num-iterations=2")[0] == 0
    assert not (tmp_path / "runs" / "d2" / "checkpoints").exists()


def test_the_missing_core_bundle_is_said_once(train, monkeypatch):
    monkeypatch.delenv("NANOCHAT_CORE_BUNDLE", raising=False)
    status, out, _ = train("--core-metric-every=2", "--num-iterations=4")
    assert status == 0
    assert out.count("the CORE metric is left out") == 1
    assert "--core-bundle" in out


def test_the_core_metric_is_recorded(train, tmp_path):
    pytest.importorskip("yaml", reason="the bundle is described in YAML, read by the extra `eval`")
    bundle = tmp_path / "bundle"
    (bundle / "eval_data").mkdir(parents=True)
    (bundle / "core.yaml").write_text(
        "icl_tasks:\n- label: words\n  dataset_uri: words.jsonl\n  num_fewshot: [1]\n"
        "  icl_task_type: multiple_choice\n"
    )
    (bundle / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nwords,50\n")
    example = json.dumps({"query": "int", "choices": ["void", "float"], "gold": 0})
    (bundle / "eval_data" / "words.jsonl").write_text(f"{example}\n" * 4)
    status, out, err = train(
        "--core-metric-every=2", "--core-bundle=bundle", "--num-iterations=4", "--output=run"
    )
    assert (status, err) == (0, "")
    core = events(tmp_path / "run", "core")
    assert [c["step"] for c in core] == [2, 4]
    assert core[-1]["core_metric"] in (-1.0, 1.0)  # four equal examples
    assert (
        json.loads((tmp_path / "run" / "summary.json").read_text())["core_metric"]
        == core[-1]["core_metric"]
    )
    assert "step 4: CORE" in out


def test_a_core_bundle_that_is_not_there_ends_the_run_at_once(train, tmp_path):
    status, out, err = train("--core-metric-every=2", "--core-bundle=nowhere")
    assert status == 2
    assert "nowhere" in err
    assert "step" not in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--attention=sdpaa"], "no attention backend is called 'sdpaa'"),
        (["--kernel=cce"], "cce"),
        (["--device=cuda"], "cuda"),
        (["--quantization=fp8", "--head-dim=8", "--aspect-ratio=8"], "fp8"),
        (["--window-pattern=X"], "window pattern"),
        (["--kernel=cce", "--loss=liger"], "contradict"),
        (["--num-iteration=3"], "Did you mean --num-iterations?"),
        (["--depth=two"], "--depth"),
        (["--json"], "--list-backends"),
        (["--tokenizer=nowhere.json"], "nowhere.json"),
        (["--kv-heads=3"], "key-value heads"),
    ],
)
def test_wrong_use_ends_in_one_message(train, arguments, told):
    status, _, err = train(*arguments)
    assert status == 2
    assert told in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_corrupt_shard_is_named(train, data_dir):
    (data_dir / "shard_00000.parquet").write_bytes(b"PAR1 this is no parquet")
    status, _, err = train(data=data_dir)
    assert status == 2
    assert "shard_00000.parquet" in err
    assert err.count("\n") == 1


def test_an_empty_data_folder_says_what_it_needs(train, tmp_path, corpus):
    (tmp_path / "empty").mkdir()
    status, _, err = train(f"--tokenizer={corpus}", data=tmp_path / "empty")
    assert status == 2
    assert "empty" in err


def test_what_is_quantized_is_what_the_plan_was_asked_about():
    """The shapes that the plan is made for, without torch, are those of the real model."""
    from nanochat.builtin.attention import Sdpa
    from nanochat.model.config import GPTConfig
    from nanochat.model.gpt import GPT
    from nanochat.train.problems import problems_of

    config = GPTConfig.from_depth(4, vocab_size=512, head_dim=64, kv_heads=2)
    target = backend.Target(kind="cpu", name="test")
    asked = problems_of(config, 8, target, "bfloat16")["quantization"]
    with torch.device("meta"):
        model = GPT(config, attention=Sdpa(), loss=Torch())
    layers = {
        (m.out_features, m.in_features) for n, m in model.named_modules() if may_quantize(n, m)
    }
    assert isinstance(asked, backend.QuantizationProblem)
    assert set(asked.layers) == layers


def test_the_devices_variables_are_set_and_shown(train, monkeypatch):
    """As a device of a plugin would want them; the user's own value wins."""
    from nanochat.builtin.devices import Cpu

    monkeypatch.setattr(
        Cpu,
        "environment",
        lambda self, target: (
            backend.Variable("NANOCHAT_TEST_A", "1", "because"),
            backend.Variable("NANOCHAT_TEST_B", "2", "because"),
        ),
    )
    monkeypatch.setenv("NANOCHAT_TEST_B", "mine")
    monkeypatch.setenv("NANOCHAT_TEST_A", "x")
    monkeypatch.delenv("NANOCHAT_TEST_A")
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = train("--num-iterations=1")
    assert status == 0
    assert os.environ["NANOCHAT_TEST_A"] == "1"
    assert os.environ["NANOCHAT_TEST_B"] == "mine"
    assert "NANOCHAT_TEST_A=1: because" in out
    assert "NANOCHAT_TEST_B=mine: kept yours" in out
