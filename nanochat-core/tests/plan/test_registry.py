"""Plugins as strangers ship them: each broken one is kept with its reason, the rest works."""

import sys

import pytest

from nanochat import __version__
from nanochat.errors import UsageError
from nanochat.plan import examine
from nanochat.registry import Broken, discover

BUILTINS = {
    "attention": ["sdpa", "flex"],
    "loss": ["torch", "chunked"],
    "quantization": ["none", "fp8", "fp8-rowwise"],
    "device": ["cpu", "cuda", "mps"],
}


def broken_ones(registry, plugin: str) -> list[Broken]:
    return [b for b in registry.broken if b.plugin == plugin]


def the_broken_one(registry, plugin: str) -> Broken:
    (broken,) = broken_ones(registry, plugin)
    return broken


def builtins_of(registry) -> dict[str, list[str]]:
    return {
        hook: [r.backend.name for r in registry.backends(hook) if r.distribution == "nanochat-core"]
        for hook in BUILTINS
    }


def test_without_plugins_there_are_the_builtins():
    registry = discover("")
    assert builtins_of(registry) == BUILTINS
    assert not registry.broken
    assert {r.origin for r in registry} == {f"nanochat-core {__version__}"}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no driver\\nmore')", "its import failed: RuntimeError: no driver"),
        ("import sys; sys.exit('gone')", "its import failed: SystemExit: gone"),
        ("import no_such_module_here", "No module named 'no_such_module_here'"),
        ("def broken(:", "SyntaxError"),
        ("x = 1", "no hook of nanochat (is `nanochat.hookimpl` missing?)"),
    ],
)
def test_an_import_that_fails_is_kept_with_its_reason(site, source, reason):
    site.install("toy", source)
    registry = discover("toy")
    broken = the_broken_one(registry, "toy")
    assert reason in broken.reason
    assert "\n" not in broken.reason
    assert (broken.distribution, broken.version, broken.hook) == ("toy-toy", "1.2", None)
    assert "toy-toy" in broken.remedy
    assert builtins_of(registry) == BUILTINS


def test_ctrl_c_during_an_import_is_not_the_plugins_failure(site):
    site.install("toy", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        discover("toy")


HOOK = """
from nanochat import hookimpl
from nanochat.backend import LossBackend

class Toy(LossBackend):
    name = "toy"
    summary = "a toy"

class Raising:
    def __getattribute__(self, name): raise OSError("nothing of me can be read")

class NameRaises(LossBackend):
    summary = "a toy"
    @property
    def name(self): raise OSError("no name today")

@hookimpl
def nanochat_loss():
    {body}
"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise OSError('no such card')", "nanochat_loss failed: OSError: no such card"),
        ("import sys; sys.exit(3)", "nanochat_loss failed: SystemExit: 3"),
        ("return None", "nanochat_loss failed: TypeError"),
        ("return 42", "nanochat_loss failed: TypeError"),
        ("return Toy", "nanochat_loss failed: TypeError"),
        ("return [Toy]", "the class itself where an instance of Backend is expected"),
        ("return [None]", "a NoneType where an instance of Backend is expected"),
        ("return 'a'", "a str where an instance of Backend is expected"),
        ("return [Raising()]", "OSError: nothing of me can be read"),
        ("return [NameRaises()]", "OSError: no name today"),
        ("yield Toy(); raise OSError('half way')", "nanochat_loss failed: OSError: half way"),
    ],
)
def test_a_hook_that_returns_nonsense_is_kept_with_its_reason(site, body, reason):
    site.install("toy", HOOK.format(body=body))
    registry = discover("toy")
    broken = the_broken_one(registry, "toy")
    assert reason in broken.reason
    assert broken.hook == "loss"
    assert registry.find("loss", "toy") is None
    assert builtins_of(registry) == BUILTINS


@pytest.mark.parametrize("body", ["yield Toy()", "return (Toy(),)", "return {Toy(): 1}"])
def test_any_iterable_of_backends_will_do(site, body):
    site.install("toy", HOOK.format(body=body))
    registry = discover("toy")
    assert not registry.broken
    assert registry.find("loss", "toy").origin == "toy-toy 1.2"


def test_a_hook_with_arguments_does_not_fit(site):
    source = HOOK.replace("nanochat_loss():", "nanochat_loss(config):").format(body="return []")
    site.install("toy", source)
    assert "do not fit the hook specs" in the_broken_one(discover("toy"), "toy").reason


def test_a_hook_that_is_not_specified_is_told(site, loss_source):
    source = loss_source("toy") + "\n@hookimpl\ndef nanochat_optimizer(): return []\n"
    site.install("toy", source)
    registry = discover("toy")
    assert "nanochat_optimizer, which nanochat does not define" in (
        the_broken_one(registry, "toy").reason
    )
    assert registry.find("loss", "toy") is not None, "what it does right is used"


def test_a_backend_of_another_kind_is_refused(site, loss_source):
    site.install("toy", loss_source("toy").replace("nanochat_loss()", "nanochat_attention()"))
    registry = discover("toy")
    broken = the_broken_one(registry, "toy")
    assert (broken.hook, broken.name) == ("attention", "toy")
    assert "a backend of 'loss'" in broken.reason
    assert registry.find("attention", "toy") is None


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("toy", "api = 2", "it speaks api 2, this core speaks 1"),
        ("toy", "api = None", "it speaks api None"),
        ("auto", "", "'auto' is reserved"),
        ("measure", "", "'measure' is reserved"),
        ("Toy", "", "its name 'Toy' is not lower-case"),
        ("to y", "", "its name 'to y' is not"),
        ("", "", "its name '' is not"),
        ("toy\\n", "", "is not lower-case"),
        ("-toy", "", "is not lower-case"),
        ("toy", "name = 7", "its name 7 is not"),
        ("toy", "summary = None", "it has no summary"),
        ("toy", "aliases = ('torch',)", "'torch' is already taken by nanochat-core"),
        ("toy", "aliases = ('current',)", "'current' is already taken by nanochat-core"),
        ("toy", "aliases = ('auto',)", "its alias 'auto' is reserved"),
        ("toy", "aliases = ('toy2')", "its aliases 'toy2' are not a tuple"),
        ("toy", "aliases = None", "its aliases None are not a tuple"),
        ("toy", "aliases = (['x'],)", "its alias ['x'] is not"),
        ("chunked", "", "'chunked' is already taken by nanochat-core"),
        ("current", "", "'current' is already taken by nanochat-core"),
    ],
)
def test_a_backend_that_cannot_be_told_apart_is_refused(site, loss_source, name, body, reason):
    site.install("toy", loss_source(name, body))
    registry = discover("toy")
    broken = the_broken_one(registry, "toy")
    assert reason in broken.reason
    assert broken.remedy
    assert [r for r in registry if r.distribution == "toy-toy"] == []
    assert registry.find("loss", "current").backend.name == "torch"


def test_a_name_may_be_used_by_another_hook(site, loss_source):
    site.install("toy", loss_source("sdpa"))
    registry = discover("toy")
    assert registry.find("loss", "sdpa").distribution == "toy-toy"
    assert registry.find("attention", "sdpa").distribution == "nanochat-core"


def test_one_broken_backend_leaves_the_plugins_others_usable(site, loss_source):
    more = """
class Other(Toy):
    name = "other"

class Old(Toy):
    name = "old"
    api = 0

@hookimpl
def nanochat_quantization():
    raise OSError("no such format")
"""
    source = loss_source("toy").replace("[Toy()]", "[Old(), Toy(), None, Other()]") + more
    site.install("toy", source)
    registry = discover("toy")
    mine = [r.backend.name for r in registry.backends("loss") if r.plugin == "toy"]
    assert mine == ["toy", "other"]
    assert [(b.hook, b.name) for b in broken_ones(registry, "toy")] == [
        ("loss", "old"),
        ("loss", None),
        ("quantization", None),
    ]


@pytest.mark.parametrize(
    "requirement",
    [
        "nanochat-core>=99",
        "nanochat-core<0.0.1",
        "nanochat_core >= 99",
        "Nanochat.Core (>=99)",
        "nanochat-core[plot]>=99; python_version > '3'",
    ],
)
def test_a_plugin_for_another_core_is_refused_before_its_import(site, loss_source, requirement):
    site.install("toy", loss_source("toy"), requires=["torch", requirement])
    registry = discover("toy")
    broken = the_broken_one(registry, "toy")
    assert f"{__version__} is installed" in broken.reason
    assert "pip install --upgrade toy-toy nanochat-core" in broken.remedy
    assert not site.imported("toy")
    assert registry.find("loss", "toy") is None


@pytest.mark.parametrize(
    "requirement",
    [
        "nanochat-core>=0.0.1",
        "nanochat-core",
        "nanochat-core>=99; python_version < '3'",
        "nanochat-core>=99; extra == 'future'",
        "nanochat-core-tools>=99",
        "nanochat-core>=?",
    ],
)
def test_a_requirement_that_is_met_or_says_nothing_here_refuses_nothing(
    site, loss_source, requirement
):
    site.install("toy", loss_source("toy"), requires=[requirement])
    registry = discover("toy")
    assert not registry.broken
    assert registry.find("loss", "toy") is not None


def test_which_plugins_are_loaded(site, loss_source, monkeypatch):
    for name in ("one", "two"):
        site.install(name, loss_source(name))
    everything = {r.distribution for r in discover()}
    assert {"toy-one", "toy-two"} <= everything

    monkeypatch.setenv("NANOCHAT_PLUGINS", "")
    assert {r.distribution for r in discover()} == {"nanochat-core"}
    for only in ("two", "toy-two", " two ,", "two,toy-two"):
        monkeypatch.setenv("NANOCHAT_PLUGINS", only)
        assert {r.distribution for r in discover()} == {"nanochat-core", "toy-two"}, only

    monkeypatch.setenv("NANOCHAT_PLUGINS", "two,three")
    with pytest.raises(UsageError, match=r"names three, which is not an installed plugin") as error:
        discover()
    assert "one" in error.value.message
    assert "NANOCHAT_PLUGINS" in error.value.remedy


def test_a_plugin_that_is_not_wanted_is_not_imported(site, loss_source):
    for name in ("one", "two"):
        site.install(name, loss_source(name))
    discover("two")
    assert site.imported("two")
    assert not site.imported("one")


@pytest.mark.parametrize("installed", [("alpha", "beta"), ("beta", "alpha")])
def test_a_clash_ends_alike_in_whatever_order_plugins_were_installed(
    tmp_path, site, loss_source, monkeypatch, installed
):
    # Two folders, so that the order on sys.path is that of installation.
    for number, plugin in enumerate(installed):
        folder = tmp_path / f"part{number}"
        folder.mkdir()
        monkeypatch.syspath_prepend(str(folder))
        site.folder = folder
        site.install(plugin, loss_source("same"))
    registry = discover("alpha,beta")
    assert registry.find("loss", "same").distribution == "toy-alpha"
    assert "'same' is already taken by toy-alpha 1.2" in the_broken_one(registry, "beta").reason


def test_two_entry_points_of_one_module(site, loss_source):
    site.install("toy", loss_source("toy"))
    (file,) = site.folder.glob("*/entry_points.txt")
    file.write_text(file.read_text() + "toy2 = toyplugin_toy_toy_toy\n")
    registry = discover("toy-toy")
    assert registry.find("loss", "toy").plugin == "toy"
    assert len(broken_ones(registry, "toy2")) == 1


def test_a_half_removed_distribution_takes_nothing_down(site, loss_source):
    """An interrupted uninstall leaves an entry point without metadata."""
    site.install("toy", loss_source("toy"))
    site.install("other", loss_source("other"))
    next(site.folder.glob("toy_toy*/METADATA")).unlink()
    registry = discover("other")
    assert registry.find("loss", "other") is not None
    registry = discover()
    assert registry.find("loss", "other") is not None
    assert registry.find("loss", "toy").origin == "toy ?"


def test_what_a_hook_returns_is_used_as_it_is(site, loss_source):
    """The registry keeps the object: what the plugin configured is what the plan asks."""
    body = "supports = lambda self, problem: None"
    site.install("toy", loss_source("toy", body))
    registered = discover("toy").find("loss", "toy")
    assert type(registered.backend).__module__ in sys.modules
    support = examine(registered, None, None)
    assert not support.ok
    assert "None where a Support is expected" in support.reason
