"""The flags of nanochat-train, the endings of commands, and several ranks under torchrun."""

import argparse
import errno
import json
import os
import subprocess
import sys

import pytest

from nanochat.cli import flags
from nanochat.cli import main as command_line
from nanochat.cli.train import main, parser
from nanochat.errors import NanochatError, UsageError


def test_every_flag_has_both_spellings():
    for action in parser()._actions:
        for option in action.option_strings:
            if option.startswith("--"):
                assert (
                    parser()
                    ._option_string_actions[option.replace("-", "_").replace("__", "--", 1)]
                    .dest
                    == action.dest
                )


@pytest.mark.parametrize("spelling", ["--num-iterations", "--num_iterations"])
@pytest.mark.parametrize("form", ["{} 3", "{}=3"])
def test_both_spellings_take_values(spelling, form):
    arguments = form.format(spelling).split()
    assert vars(parser().parse_args(arguments)) == {"num_iterations": 3}


def test_only_what_was_typed_is_given():
    typed = "--depth 4 --streaming_data --no_compile --kernel cce --resume --target-flops -1"
    assert vars(parser().parse_args(typed.split())) == {
        "depth": 4,
        "streaming_data": True,
        "no_compile": True,
        "kernel": "cce",
        "resume": "auto",
        "target_flops": -1.0,
    }


@pytest.mark.parametrize("typed", ["--dept 4", "--depth", "--depth x", "--eval 3", "stray"])
def test_what_is_not_a_flag_is_refused(typed):
    with pytest.raises(UsageError):
        parser().parse_args(typed.split())


def test_flags_of_groups_work_too():
    root = flags.Parser(prog="x")
    flags.add(root.add_argument_group("g"), "-n", "--the-number", type=int)
    assert root.parse_args(["--the_number", "3"]) == argparse.Namespace(the_number=3)
    assert root.format_help().count("--the-number") == 1
    assert "the_number" not in root.format_help()


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UsageError("a is wrong", "Do b"), 2, "error: a is wrong. Do b\n"),
        (NanochatError("it failed\nbadly"), 1, "error: it failed badly\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), 1, "the disk is full (/x/y)"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "Permission denied (/x)"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero. This is a bug"),
    ],
)
def test_commands_end_in_one_line(error, status, told, capsys, monkeypatch):
    monkeypatch.delenv("NANOCHAT_DEBUG", raising=False)

    def fail(_):
        raise error

    assert command_line.run(fail, []) == status
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    monkeypatch.setenv("NANOCHAT_DEBUG", "1")
    assert command_line.run(fail, []) == status
    assert "Traceback" in capsys.readouterr().err


def test_the_environment_is_set_before_torch_is_imported(tiny_run, tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys\n"
        "from nanochat.cli.train import main\n"
        "from nanochat.train import environment\n"
        "def apply(variables, environ):\n"
        "    sys.exit('too late' if 'torch' in sys.modules else 'in time')\n"
        "environment.apply = apply\n"
        "main(sys.argv[1:])\n"
    )
    where = [f"--data-dir={tiny_run.data}", f"--tokenizer={tiny_run.folder}"]
    command = [sys.executable, str(driver), *TINY, *where]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "in time\n"


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TINY = (
    "--depth=2 --aspect-ratio=16 --head-dim=16 --max-seq-len=32 --device-batch-size=2 "
    "--total-batch-size=256 --num-iterations=4 --no-compile --device=cpu --eval-every=4 "
    "--core-metric-every=-1 --sample-every=-1 --eval-tokens=200"
).split()


@pytest.fixture
def two_ranks(tmp_path, tiny_run):
    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        driver = tmp_path / "driver.py"
        driver.write_text(script)
        where = [f"--data-dir={tiny_run.data}", f"--tokenizer={tiny_run.folder}"]
        return subprocess.run(
            [*TORCHRUN, str(driver), *TINY, *where, *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
            capture_output=True,
            text=True,
        )

    return run


def test_two_ranks_train_one_model_and_one_goes_on(two_ranks, tmp_path, tiny_run, capsys):
    script = "import sys\nfrom nanochat.cli.train import main\nsys.exit(main())\n"
    done = two_ranks(script, "--output=run", "--save-every=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 4/4") == 1
    assert steps_of(tmp_path / "run") == [0, 1, 2, 3]
    # A checkpoint moves to another number of ranks.
    source, branch = tmp_path / "run" / "checkpoints" / "step_000002", tmp_path / "alone"
    assert main(["--resume", str(source), "--output", str(branch)]) == 0, capsys.readouterr().err
    assert steps_of(branch) == [0, 1, 2, 3]


def steps_of(folder):
    records = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [r["step"] for r in records if r["event"] == "step"]
