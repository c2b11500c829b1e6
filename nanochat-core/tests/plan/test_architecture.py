"""The promises of the layout, read from the sources: who may import whom, and who names vendors."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path

import nanochat

SOURCE = Path(nanochat.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

# Each room and the rooms it may import. Arrows run one way: no room is below itself.
BELOW = {
    "errors": set(),
    "hookspecs": {"backend"},
    "runtime": set(),
    "backend": {"runtime"},
    "fused": set(),
    "builtin": {"hookspecs", "backend", "errors", "fused", "runtime"},
    "registry": {"builtin", "hookspecs", "backend", "errors", "nanochat"},
    "plan": {"registry", "backend", "errors"},
    "selection": {"plan", "registry", "backend", "errors"},
    "kernels": {"selection", "backend", "errors"},
    "model": {"backend", "errors", "fused"},
    "optim": {"model", "errors", "fused", "runtime"},
    "data": {"errors"},
    "generate": {"train", "plan", "registry", "backend", "data", "model", "runtime", "errors"},
    "evaluate": {"generate", "data", "model", "runtime", "errors"},
    "caches": set(),
    "proof": {"backend"},
    "profiling": {"proof", "runtime"},
    "bench": {
        "profiling",
        "proof",
        "train",
        "plan",
        "registry",
        "backend",
        "model",
        "optim",
        "runtime",
        "errors",
    },
    "measure": {"bench", "caches", "registry", "backend", "errors"},
    "train": {
        "profiling",
        "proof",
        "generate",
        "evaluate",
        "plan",
        "backend",
        "data",
        "model",
        "optim",
        "runtime",
        "errors",
        "nanochat",
    },
    "testing": {"plan", "registry", "backend", "runtime", "errors"},
    "listing": {"train", "plan", "registry", "backend", "data", "errors"},
    "cli": {
        "testing",
        "bench",
        "measure",
        "backend",
        "model",
        "listing",
        "train",
        "evaluate",
        "generate",
        "plan",
        "registry",
        "data",
        "errors",
        "nanochat",
    },
    "nanochat": {"hookspecs"},
}
# `generate.load` opens the checkpoints that `train` writes and `train.reports` samples with
# `generate.engine`: two rooms that use each other, but no two modules do (a test below).
PLAIN_LIBRARIES = {"torch", "numpy", "pyarrow", "safetensors", "packaging", "pluggy", "rich"}
PLAIN_LIBRARIES |= {"tiktoken", "rustbpe", "tokenizers", "fsspec", "yaml", "tomli", "tomllib"}
PLAIN_LIBRARIES |= {"matplotlib", "wandb"}
VENDORS = re.compile(
    r"(?<![a-z])(nvidia|cuda|nvml|nccl|apple|mps|metal|tpu|amd|rocm|hip|intel|gb10|[hab]\d00)(?![a-z])",
    re.IGNORECASE,
)


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(("nanochat", *(p for p in parts if p != "__init__")))


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "nanochat"


NAMES = {module_name(path) for path in MODULES}


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """The modules that a file imports, late ones included; True for those at import time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late: set[int] = set()
    for node in ast.walk(tree):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if is_function or is_typing:
            late |= {id(inner) for inner in ast.walk(node)}
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        early = id(node) not in late
        if isinstance(node, ast.Import):
            found += [(alias.name, early) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((whole if whole in NAMES else str(node.module), early))
    return found


def ours(path: Path, *, early: bool) -> set[str]:
    return {
        name
        for name, at_import in imports_of(path)
        if name.split(".")[0] == "nanochat" and (at_import or not early)
    }


def test_the_sources_are_found():
    assert {"nanochat.model.gpt", "nanochat.train.loop", "nanochat.plan"} <= NAMES
    assert {room(name) for name in NAMES} == set(BELOW)


def test_imports_run_one_way():
    wrong = {
        (module_name(path), name)
        for path in MODULES
        for name in ours(path, early=False)
        if room(name) not in BELOW[room(module_name(path))] | {room(module_name(path))}
    }
    assert not wrong


def test_no_modules_import_each_other():
    """Not even in a circle: any module can be imported first."""
    below = {module_name(path): ours(path, early=True) & NAMES for path in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join((*trail, name))}"
        if name not in done:
            for other in below[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in below:
        visit(name, ())


def test_only_builtin_and_fused_import_what_knows_hardware():
    """Everything else imports plain libraries: no kernel library, no driver."""
    wrong = {
        (module_name(path), name)
        for path in MODULES
        if room(module_name(path)) not in ("builtin", "fused")
        for name, _ in imports_of(path)
        if (
            name.split(".")[0] not in PLAIN_LIBRARIES | {"nanochat", *sys.stdlib_module_names}
            and not (name.split(".")[0] == "pytest" and room(module_name(path)) == "testing")
        )
        or name.startswith(("torch.cuda", "torch.mps", "torch.xpu"))
    }
    assert not wrong


def docstrings(source: str) -> set[tuple[int, int]]:
    """Where the docstrings of a source begin."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        (node.body[0].value.lineno, node.body[0].value.col_offset)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr)
    }


def vendors_in(source: str) -> list[str]:
    """The vendors that code and strings name; comments and docstrings may explain themselves."""
    skipped = docstrings(source)
    return [
        vendor
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type != tokenize.COMMENT and token.start not in skipped
        for vendor in VENDORS.findall(token.string)
    ]


def test_the_search_for_vendors_finds_them():
    assert vendors_in('"""On an H100."""\nx = y.is_cuda  # an H100\n') == ["cuda"]
    assert vendors_in("def f():\n    'cuda'\n    return 'H100:0'\n") == ["H100"]


def test_no_vendor_is_named_where_models_are_trained():
    rooms = ("model", "optim", "data", "train", "evaluate", "generate")
    named = {
        module_name(path): vendors
        for path in MODULES
        if room(module_name(path)) in rooms
        and (vendors := vendors_in(path.read_text(encoding="utf-8")))
    }
    assert not named


def test_hook_specs_are_the_four_and_nothing_else():
    from nanochat import hookspecs
    from nanochat.backend import HOOKS

    specs = {name for name in vars(hookspecs) if name.startswith("nanochat_")}
    assert specs == {f"nanochat_{hook}" for hook in HOOKS}
