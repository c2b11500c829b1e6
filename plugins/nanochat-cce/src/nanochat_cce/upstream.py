"""What the installed cut-cross-entropy can do, read from its source without importing it.

Its version does not say: 25.1.1 is the newest release, while the fixes that matter are only on the
main branch (25.6). So the signatures decide. Importing it would import Triton and torch.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

MODULE = "cut_cross_entropy"

# The arguments that this plugin passes to `cce_backward_kernel`, in its two forms.
RELEASE = frozenset(
    "do e c lse valids softcap filter_eps targets vocab_ordering grad_scale".split()
)
MAIN = RELEASE | frozenset(
    "dlse e_info c_info bias bias_info "
    "accum_e_fp32 accum_c_fp32 filter_e_grad filter_c_grad".split()
)


@dataclass(frozen=True)
class Features:
    """What a version of cut-cross-entropy has beyond the forward and backward kernels."""

    known: bool
    """`cce_backward_kernel` takes the arguments that this plugin passes."""
    float32: bool = False
    """Backward in float32 and accumulators in float32."""
    indices_64: bool = False
    """Offsets into hidden and weight in 64 bits."""
    ordered_locks: bool = False
    """A barrier between the last store to a gradient and the release of its lock."""

    @property
    def missing(self) -> tuple[str, ...]:
        """What a user of this version goes without, in words."""
        return tuple(
            words
            for words, there in (
                ("the barrier that orders locked sums of gradients", self.ordered_locks),
                ("gradients in float32", self.float32),
                ("64-bit offsets", self.indices_64),
            )
            if not there
        )


def installed_features() -> Features | None:
    """The features of the installed library, or None if there is no such module."""
    spec = find_spec(MODULE)  # of a top-level name: it is found, not imported
    if spec is None or not spec.submodule_search_locations:
        return None
    return features_of(Path(next(iter(spec.submodule_search_locations))))


@lru_cache
def features_of(folder: Path) -> Features:
    """The features of the library in `folder`; `known` is False where it cannot be read."""
    try:
        backward = _functions(folder / "cce_backward.py")
        forward = (folder / "cce_lse_forward.py").read_text()
        locks = _functions(folder / "tl_utils.py")
    except (OSError, SyntaxError):
        return Features(known=False)
    arguments = _arguments(backward.get("cce_backward_kernel"))
    lock = locks.get("tl_lock_add")
    return Features(
        # Exactly one of the two forms: half of the newer arguments would be a third one.
        known=(arguments & MAIN) in (RELEASE, MAIN),
        float32=arguments >= MAIN,
        indices_64="int64" in forward,
        ordered_locks=lock is not None and "debug_barrier" in ast.dump(lock),
    )


def _functions(path: Path) -> dict[str, ast.FunctionDef]:
    """The functions at the top of a source file by name; of overloads the last, which runs."""
    body = ast.parse(path.read_text()).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def _arguments(function: ast.FunctionDef | None) -> frozenset[str]:
    if function is None:
        return frozenset()
    return frozenset(a.arg for a in (*function.args.args, *function.args.kwonlyargs))
