"""`nanochat-train --list-backends`, as typed, with plugins installed as a packager would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import UsageError
from nanochat.listing import Entry, table
from nanochat.registry import discover

GOOD = """
from nanochat import hookimpl
from nanochat.backend import LossBackend, Requirement

class Fast(LossBackend):
    name = {name!r}
    summary = "a loss"
    capabilities = ("softcap",)
    {body}

@hookimpl
def nanochat_loss():
    return [Fast()]
"""

PLUGINS = {
    "ok": GOOD.format(name="fast", body="priority = lambda self, target: 99"),
    "missing": GOOD.format(name="slow", body='requires = (Requirement("no-such-thing", ">=2"),)'),
    "raising": "raise RuntimeError('no driver\\nsecond line')",
    "exiting": "import sys; sys.exit('gone')",
    "nonsense": "from nanochat import hookimpl\n@hookimpl\ndef nanochat_loss(): return 42\n",
    "clash": GOOD.format(name="chunked", body=""),
    "oldapi": GOOD.format(name="old", body="api = 0"),
    "checkless": GOOD.format(name="checkless", body="def check(self, target): raise OSError('x')"),
    "hookless": "x = 1",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of installed distributions, one for each plugin."""
    folder = tmp_path_factory.mktemp("site")
    for name, source in PLUGINS.items():
        (folder / f"nanochat_{name}.py").write_text(source)
        info = folder / f"nanochat_{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: nanochat-{name}\nVersion: 1.2\n"
        )
        (info / "entry_points.txt").write_text(f"[nanochat]\n{name} = nanochat_{name}\n")
    return folder


@pytest.fixture
def command(site, tmp_path):
    """Run nanochat-train in a process of its own that sees the plugins; torch must stay out."""
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys\n"
        "from nanochat.cli.train import main\n"
        "status = main(sys.argv[1:])\n"
        "assert not {'torch', 'rich', 'numpy'} & set(sys.modules)\n"
        "sys.exit(status)\n"
    )

    def run(*arguments: str, only: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("NANOCHAT_")}
        path = [str(site), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
        environment["COLUMNS"] = "100"
        if only is not None:
            environment["NANOCHAT_PLUGINS"] = only
        return subprocess.run(
            [sys.executable, str(driver), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    return run


def by_name(done: subprocess.CompletedProcess[str]) -> dict[tuple[str, str], dict]:
    return {(e["hook"], e["name"]): e for e in json.loads(done.stdout)}


def test_every_backend_and_every_broken_plugin_is_listed(command):
    done = command("--list-backends", "--json", "--device=cpu")
    assert (done.returncode, done.stderr) == (0, "")
    found = by_name(done)
    keys = {"hook", "name", "distribution", "version", "state", "reason", "remedy", "capabilities"}
    assert all(set(entry) == keys for entry in found.values())
    states = {key: entry["state"] for key, entry in found.items()}
    assert states["loss", "fast"] == "selected"
    assert states["loss", "chunked"] == "available" or states["loss", "torch"] == "available"
    assert states["loss", "slow"] == "unavailable"
    assert states["loss", "checkless"] == "unavailable"
    assert states["device", "cpu"] == "selected"
    assert states["attention", "sdpa"] == "selected"
    assert found["loss", "fast"]["distribution"] == "nanochat-ok"
    assert found["loss", "fast"]["version"] == "1.2"
    assert found["loss", "fast"]["capabilities"] == ["softcap"]
    assert found["loss", "slow"]["remedy"] == "pip install 'no-such-thing>=2'"
    assert "OSError: x" in found["loss", "checkless"]["reason"]
    broken = {e["distribution"]: e for e in json.loads(done.stdout) if e["state"] == "broken"}
    assert set(broken) == {
        f"nanochat-{name}"
        for name in ("raising", "exiting", "nonsense", "clash", "oldapi", "hookless")
    }
    assert broken["nanochat-raising"]["reason"] == "its import failed: RuntimeError: no driver"
    assert "gone" in broken["nanochat-exiting"]["reason"]
    assert "'chunked' is already taken" in broken["nanochat-clash"]["reason"]
    assert "api 0" in broken["nanochat-oldapi"]["reason"]
    assert all(e["remedy"] for e in broken.values())


def test_the_selected_one_is_what_the_flags_choose(command):
    found = by_name(command("--list-backends", "--json", "--kernel", "current", "--device=cpu"))
    assert found["loss", "torch"]["state"] == "selected"
    assert found["loss", "fast"]["state"] == "available"


@pytest.mark.parametrize("asked", ["--attention=nosuch", "--loss=slow", "--device=nosuch"])
def test_what_cannot_be_had_still_lists(command, asked):
    done = command("--list-backends", "--json", asked)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    found = by_name(done)
    hook = asked[2:].split("=")[0]
    assert not [e for e in found.values() if e["hook"] == hook and e["state"] == "selected"]
    assert found["attention", "sdpa"]["state"] in ("selected", "available")


def test_the_table_is_for_people(command):
    done = command("--list_backends", "--device=cpu")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == [
        "attention",
        "loss",
        "quantization",
        "device",
        "plugins that did not load",
    ]
    assert max(map(len, lines)) <= 100
    assert any("nanochat-raising 1.2" in line for line in lines)


def test_only_the_named_plugins_are_loaded(command):
    names = {e["distribution"] for e in by_name(command("--list-backends", "--json")).values()}
    assert "nanochat-raising" in names
    done = command("--list-backends", "--json", only="ok,nanochat-clash")
    names = {e["distribution"] for e in json.loads(done.stdout)}
    assert names == {"nanochat-core", "nanochat-ok", "nanochat-clash"}
    assert {
        e["distribution"] for e in json.loads(command("--list-backends", "--json", only="").stdout)
    } == {"nanochat-core"}
    done = command("--list-backends", only="nosuch")
    assert done.returncode == 2
    assert "nosuch" in done.stderr


def test_help_names_each_flag_once(command):
    done = command("--help")
    assert done.returncode == 0
    assert "--num-iterations" in done.stdout
    assert "--num_iterations" not in done.stdout


def test_a_broken_plugin_asked_for_by_name_says_why(site, monkeypatch, capsys, tmp_path):
    from nanochat.cli.train import main

    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("NANOCHAT_PLUGINS", "oldapi")
    monkeypatch.chdir(tmp_path)
    assert main(["--list-backends", "--loss=old"]) == 2
    assert "api 0" in capsys.readouterr().err
    with pytest.raises(UsageError):
        discover("nosuch")


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_tables_fit_their_width(width):
    entry = Entry("loss", "cce", "nanochat-cce", "0.1.0", "unavailable", "because " * 20, "do it")
    lines = table([entry], width).splitlines()
    assert max(map(len, lines)) <= max(width, 60)
    assert sum(line.count("because") for line in lines) == 20
