"""The log of a run, its rewinding, and the numbers kept along it."""

import json
import sys

import pytest

from nanochat.train.meter import Meter
from nanochat.train.plot import plot_loss
from nanochat.train.progress import Pace, duration
from nanochat.train.record import JsonLines, open_sinks, read_log, rewind_log


def test_rewinding_drops_what_a_resumed_run_records_again(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path)
    for step in range(5):
        log.write({"event": "step", "step": step, "loss": 1.0 / (step + 1)})
    log.write({"event": "eval", "step": 3, "val_bpb": 1.0})
    log.close()
    with open(path, "a") as file:
        file.write('{"event": "step", "st')  # a killed writer
    before = read_log(path)
    rewind_log(path, 3)
    assert read_log(path) == [r for r in before if r["step"] < 3]
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_each_record_is_on_disk_at_once(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.write({"step": 0})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 0}
    log.close()


def test_missing_wandb_is_said_and_the_log_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    said = []
    sink = open_sinks(tmp_path, "mine", {}, said.append)
    sink.write({"step": 0})
    sink.close()
    assert len(said) == 1
    assert "wandb is not installed" in said[0]
    assert read_log(tmp_path / "log.jsonl") == [{"step": 0}]


@pytest.mark.parametrize(("key", "mode"), [("", "offline"), ("secret", None)])
def test_wandb_is_offline_without_a_key(tmp_path, monkeypatch, key, mode):
    calls = []

    class Run:
        def log(self, values):
            calls.append(values)

        def finish(self):
            calls.append("finished")

    class Wandb:
        @staticmethod
        def init(**options):
            calls.append(options)
            return Run()

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc
    monkeypatch.delenv("WANDB_MODE", raising=False)
    sink = open_sinks(tmp_path, "mine", {"depth": 2}, print)
    sink.write({"event": "step", "step": 4, "loss": 2.0, "data": {}})
    sink.close()
    assert calls[0]["name"] == "mine"
    assert calls[0]["mode"] == mode
    assert calls[1:] == [{"step": 4, "step/loss": 2.0}, "finished"]


def test_the_smoothed_loss_is_not_biased_towards_zero():
    meter = Meter()
    for _ in range(3):
        meter.count(2.0, 10, 0.5)
    assert meter.smooth_loss == pytest.approx(2.0)
    assert meter.tokens == 30
    restored = Meter.from_dict(json.loads(json.dumps(meter.as_dict())))
    meter.count(1.0, 10, 0.5)
    restored.count(1.0, 10, 0.5)
    assert restored.smooth_loss == meter.smooth_loss


def test_the_time_left_forgets_the_step_that_compiled():
    meter = Meter()
    meter.count(1.0, 1, 100.0)
    assert meter.seconds_for(10) is None
    for _ in range(4):
        meter.count(1.0, 1, 2.0)
    assert meter.seconds_for(10) == pytest.approx(20.0)


def test_a_line_of_progress():
    pace = Pace(9, 100, 2.5, 123456.7, 0.421, 3 * 2**30, 3725.0)
    assert pace.line() == (
        "step  10/100 · loss 2.5000 · 123,457 tokens/s · MFU 42.1% · peak 3.00 GiB · 1h02m left"
    )


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "1m00s"), (42, "42s"), (3600, "1h00m")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_loss_curve_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra")
    records = [{"event": "step", "step": s, "loss": 3.0, "smooth_loss": 3.0} for s in range(3)]
    records.append({"event": "eval", "step": 2, "val_bpb": 1.5})
    plot_loss(records, tmp_path / "loss.png", "run")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
