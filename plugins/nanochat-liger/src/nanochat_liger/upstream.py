"""What the installed liger-kernel can do, read from its source without importing it.

Importing it would import Triton and torch, and all of its other kernels.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

MODULE = "liger_kernel"
SOURCE = "ops/fused_linear_cross_entropy.py"
FUNCTION = "fused_linear_cross_entropy_forward"

# The arguments that this plugin passes. The last three came with 0.8.5: before them gradients
# depended on the input's own flag, and those of reduction "none" were wrong.
NEEDED = frozenset(
    "_input weight target ignore_index reduction softcap accum_dtype "
    "compute_gradients weight_requires_grad token_grad_output".split()
)


def missing_arguments() -> frozenset[str]:
    """Which of the arguments the installed library does not take; all of them if it is absent."""
    spec = find_spec(MODULE)  # of a top-level name: it is found, not imported
    if spec is None or not spec.submodule_search_locations:
        return NEEDED
    return NEEDED - arguments_of(Path(next(iter(spec.submodule_search_locations))))


@lru_cache
def arguments_of(folder: Path) -> frozenset[str]:
    """The arguments of the function in the library in `folder`; none if it cannot be read."""
    try:
        body = ast.parse((folder / SOURCE).read_text()).body
    except (OSError, SyntaxError):
        return frozenset()
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == FUNCTION:
            return frozenset(a.arg for a in (*node.args.args, *node.args.kwonlyargs))
    return frozenset()
