"""The device tpu through torch_xla, on XLA's own CPU devices: one of them, and four as one mesh."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch_xla", reason="torch_xla is not installed: hatch run torch-xla:test")

PROGRAM = Path(__file__).with_name("torch_xla_program.py")
WORDS = "int float return template typename class struct void const std vector size begin".split()


def run(*command: str, devices: int, **variables: str) -> subprocess.CompletedProcess[str]:
    """A Python program on so many of XLA's CPU devices, none compiled beforehand."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "PJRT_"))}
    environment |= {"PJRT_DEVICE": "CPU", "CPU_NUM_DEVICES": str(devices), **variables}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=1200
    )


@pytest.fixture(scope="module", params=[1, 4], ids=["one device", "four devices"])
def report(request) -> dict[str, Any]:
    done = run(str(PROGRAM), devices=request.param, XLA_NO_SPECIAL_SCALARS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["devices"] = request.param
    assert "no TPU (PJRT_DEVICE=CPU)" in found["target"]
    return found


def test_gradients_are_those_of_the_cpu(report):
    assert len(report["gradients"]) == 23
    assert max(report["gradients"].values()) < 1e-5, report["gradients"]


def test_training_is_that_of_the_cpu(report):
    assert report["xla"]["losses"] == pytest.approx(report["cpu"]["losses"], rel=1e-6)
    muon = {name: error for name, error in report["weights"].items() if name.startswith("blocks.")}
    adamw = {name: error for name, error in report["weights"].items() if name not in muon}
    assert max(adamw.values()) < 1e-5, adamw
    # Muon's five iterations amplify the rounding of float32.
    assert max(muon.values()) < 1e-4, muon
    assert max(report["moments"].values()) < 1e-4, report["moments"]


def test_nothing_is_compiled_after_the_first_step(report):
    """The learning rate, Muon's momentum and weight decay and the number of the step all move."""
    rates, programs = report["xla"]["rates"], report["xla"]["programs"]
    assert len(set(rates)) == len(rates)
    # The optimiser's state and the update: that of a micro-batch was there already.
    assert programs[0] == programs[-1] == 2


def test_more_micro_batches_run_the_same_program(report):
    assert report["xla"]["more"] == 1  # the update, which takes in as many losses


def test_a_checkpoint_is_whole_and_goes_back(report):
    assert set(report["restored"].values()) == {0.0}


def test_evaluation_is_that_of_the_cpu_and_compiled_once(report):
    ours, theirs = report["xla"]["evaluate"], report["cpu"]["evaluate"]
    assert ours["bpb"] == pytest.approx(theirs["bpb"], rel=1e-6)
    assert ours["programs"] == 0


def test_the_core_metric_reads_what_the_cpu_reads(report):
    ours, theirs = report["xla"]["score"], report["cpu"]["score"]
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    assert ours["matches"] == theirs["matches"]
    assert ours["matches"][0]
    assert not all(ours["matches"])


def test_decoding_takes_two_programs_for_all_prompts(report):
    assert report["xla"]["sample"]["tokens"] == report["cpu"]["sample"]["tokens"]
    assert report["xla"]["sample"]["programs"] == [2, 0]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from nanochat.data.tokenizer import Tokenizer

    chance = random.Random(0)

    def line() -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(3, 9))) + ";"

    texts = ["\n".join(line() for _ in range(chance.randint(3, 30))) for _ in range(200)]
    folder = tmp_path_factory.mktemp("parquet")
    for number in range(2):
        shard = folder / f"shard_{number:05d}.parquet"
        pq.write_table(pa.table({"text": texts[number::2]}), shard)
    Tokenizer.train(texts, 320).save(folder)
    (folder / "_COMPLETE").touch()
    return folder


# As the users of TPUs type it, but for its size: --depth=16 --num_iterations=50000
# --max_seq_len=16384 there, and neither --total_batch_size nor --eval_tokens.
COMMAND = (
    "--depth=2 --num_iterations=6 --device_batch_size=1 --max_seq_len=128 --kernel=current "
    "--no_compile --streaming_data --run=d16_400M_v6e4_longctx_16k_flash_cppeval "
    "--core_metric_every=5000 --save_every=5000 --sample_every=5000 "
    "--total_batch_size=512 --eval_tokens=512 --sample_tokens=4"
).split()


def losses(folder: Path) -> list[float]:
    events = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "step"]


@pytest.mark.parametrize("devices", [1, 2])
def test_the_users_command_trains_as_on_the_cpu(corpus, tmp_path, devices):
    def train(name: str, *more: str) -> str:
        command = ["-m", "nanochat.cli.train", *COMMAND, f"--data_dir={corpus}"]
        output = [f"--output={tmp_path / name}"]
        done = run(
            *command, *output, *more, devices=devices, XLA_PERSISTENT_CACHE_PATH=str(tmp_path / "x")
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    told = train("xla", "--xla_flash_attn")
    assert "PJRT_DEVICE=CPU: kept yours" in told
    assert "pallas" in told
    train("cpu", "--device_type=cpu")
    ours, theirs = losses(tmp_path / "xla"), losses(tmp_path / "cpu")
    assert len(ours) == 6
    assert ours[-1] < ours[0]
    assert ours == pytest.approx(theirs, abs=1e-4)
    # A checkpoint of either goes on with the other, once told: it keeps what was asked for by name.
    there = ["--device_type=tpu", "--xla_flash_attn"]
    back = ["--device_type=cpu", "--attention=auto"]
    for source, other in (("xla", back), ("cpu", there)):
        longer = ["--num_iterations=8", f"--resume={tmp_path / source}", *other]
        train(f"{source}-resumed", *longer)
    ours, theirs = losses(tmp_path / "xla-resumed"), losses(tmp_path / "cpu-resumed")
    assert len(ours) == 8
    assert ours == pytest.approx(theirs, abs=1e-4)
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "eval_data").mkdir()
    (folder / "core.yaml").write_text(
        "icl_tasks:\n"
        "- {label: signs, dataset_uri: signs.jsonl, num_fewshot: [1],"
        " icl_task_type: multiple_choice}\n"
        "- {label: words, dataset_uri: words.jsonl, num_fewshot: [0],"
        " icl_task_type: language_modeling}\n"
    )
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nsigns,50\nwords,0\n")
    signs = [{"query": f"x {n}", "choices": ["+", "-"], "gold": n % 2} for n in range(8)]
    words = [{"context": f"int {n}", "continuation": " vector"} for n in range(6)]
    for name, examples in (("signs", signs), ("words", words)):
        lines = "".join(json.dumps(example) + "\n" for example in examples)
        (folder / "eval_data" / f"{name}.jsonl").write_text(lines)
    return folder


def test_measured_backends_and_the_core_metric_as_typed(corpus, bundle, tmp_path):
    """The same command on the CPU gives the same losses and the same scores."""

    def train(name: str, *more: str) -> str:
        settings = [flag for flag in COMMAND if not flag.startswith(("--kernel", "--core"))]
        command = ["-m", "nanochat.cli.train", *settings, f"--data_dir={corpus}"]
        command += [
            "--core_metric_every=6",
            f"--core_bundle={bundle}",
            f"--output={tmp_path / name}",
        ]
        done = run(*command, *more, devices=2, XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout

    told = train("xla", "--attention=measure", "--loss=measure")
    assert told.count("the fastest measured") + told.count("of the fastest") == 2
    train("cpu", "--device_type=cpu")
    assert losses(tmp_path / "xla") == pytest.approx(losses(tmp_path / "cpu"), abs=1e-4)

    def scores(name: str) -> list[dict[str, Any]]:
        events = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        return [event for event in events if event["event"] == "core"]

    ours, theirs = scores("xla"), scores("cpu")
    assert len(ours) == 1
    assert ours[0]["accuracy"] == theirs[0]["accuracy"]


def test_verifying_kernels_is_refused(corpus, tmp_path):
    done = run(
        *["-m", "nanochat.cli.train", *COMMAND, f"--data_dir={corpus}", "--verify-kernels"],
        f"--output={tmp_path / 'run'}",
        devices=1,
    )
    assert done.returncode == 2
    assert "whole programs" in done.stderr
    assert "Train without it" in done.stderr
    assert "Traceback" not in done.stderr


def test_several_processes_are_refused(corpus, tmp_path):
    done = run(
        *["-m", "nanochat.cli.train", *COMMAND, f"--data_dir={corpus}", f"--output={tmp_path}"],
        devices=1,
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="2",
    )
    assert done.returncode == 2
    assert "Start without torchrun" in done.stderr
    assert "Traceback" not in done.stderr
