from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nanochat.backend import installed_version


class Site:
    """A folder on sys.path where tests install small distributions, as a packager would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(
        self,
        plugin: str,
        source: str | None = None,
        *,
        distribution: str | None = None,
        version: str = "1.2",
        requires: Sequence[str] = (),
    ) -> None:
        """Install a distribution; with a source also its module and entry point."""
        distribution = distribution or f"toy-{plugin}"
        module = f"toyplugin_{distribution}_{plugin}".replace("-", "_").replace(".", "_")
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
        metadata += [f"Requires-Dist: {line}" for line in requires]
        (info / "METADATA").write_text("\n".join(metadata) + "\n")
        if source is not None:
            (self.folder / f"{module}.py").write_text(source)
            (info / "entry_points.txt").write_text(f"[nanochat]\n{plugin} = {module}\n")
            self.modules.append(module)
        importlib.invalidate_caches()
        installed_version.cache_clear()

    def imported(self, plugin: str) -> bool:
        return any(m.endswith(f"_{plugin}") and m in sys.modules for m in self.modules)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delenv("NANOCHAT_PLUGINS", raising=False)
    found = Site(folder)
    yield found
    for module in found.modules:
        sys.modules.pop(module, None)
    installed_version.cache_clear()


LOSS = """
from nanochat import hookimpl
from nanochat.backend import LossBackend

class Toy(LossBackend):
    name = {name!r}
    summary = "a toy"
    {body}

@hookimpl
def nanochat_loss():
    return [Toy()]
"""


@pytest.fixture
def loss_source() -> Callable[..., str]:
    """The source of a plugin with one loss backend; `body` goes into its class."""

    def source(name: str, body: str = "") -> str:
        return LOSS.format(name=name, body=body)

    return source
