"""The stand-ins against the sources of installed providers, read without importing them."""

from __future__ import annotations

import ast

import pytest

from nanochat_fa3 import locate

FILES = {
    "fa2": ("flash_attn", "flash_attn_interface.py"),
    "fa3": (None, "flash_attn_interface"),
    "fa4": ("flash_attn", "cute/interface.py"),
}


@pytest.mark.parametrize("name", FILES)
def test_standins_have_the_real_signatures(name, signatures):
    package, path = FILES[name]
    if package is None:
        spec = locate.top_level(path)
        file = spec.origin if spec is not None else None
    else:
        file = locate.file_of(package, path)
    if file is None:
        pytest.skip(f"{name} is not installed; a wheel installed with --no-deps is enough")
    with open(file, encoding="utf-8") as source:
        tree = ast.parse(source.read())
    real = {f.name: f.args for f in tree.body if isinstance(f, ast.FunctionDef)}
    for function, text in signatures[name].items():
        arguments = real[function]
        required = len(arguments.args) - len(arguments.defaults)
        words = [a.arg + ("=" if i >= required else "") for i, a in enumerate(arguments.args)]
        assert not arguments.kwonlyargs
        assert words == text.split(), function
