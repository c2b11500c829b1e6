"""Functions of a provider, called by keyword and known by their signatures.

An argument that was renamed or is missing ends in a message when the function is bound, not in the
tenth step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any

from nanochat.errors import NanochatError

# Arguments of older versions that have no default and mean nothing here.
_MEANINGLESS = frozenset(
    "k_new v_new qv out out_ cu_seqlens_q cu_seqlens_k cu_seqlens_k_new seqused_q seqused_k "
    "sequed_q sequed_k max_seqlen_q max_seqlen_k page_table kv_batch_idx leftpad_k rotary_cos "
    "rotary_sin seqlens_rotary q_descale k_descale v_descale rng_state".split()
)


class Function:
    """A function of a provider that is called by keyword, with those it takes of what is given."""

    def __init__(self, module: ModuleType, name: str, provider: str) -> None:
        self.label = f"{provider}'s {name}"
        function = getattr(module, name, None)
        if not callable(function):
            raise NanochatError(
                f"{module.__name__} has no {name}: it is an unknown version of {provider}",
                "Set NANOCHAT_FA3_PROVIDER to another provider, or install another version",
            )
        self.call: Callable[..., Any] = function
        # A custom operator of torch hides its signature behind (*args, **kwargs).
        self.parameters = inspect.signature(getattr(function, "_init_fn", function)).parameters

    def must_take(self, names: Collection[str]) -> None:
        missing = [name for name in names if name not in self.parameters]
        if missing:
            raise self._stranger(f"does not take {', '.join(missing)}")

    def must_take_one_of(self, names: Collection[str]) -> None:
        if not any(name in self.parameters for name in names):
            raise self._stranger(f"takes neither {' nor '.join(names)}")

    def __call__(self, **given: Any) -> Any:
        arguments = {n: given[n] for n in self.parameters if n in given}
        for name, parameter in self.parameters.items():
            if name not in arguments and parameter.default is inspect.Parameter.empty:
                if name not in _MEANINGLESS:
                    raise self._stranger(f"wants {name}")
                arguments[name] = None
        return self.call(**arguments)

    def _stranger(self, what: str) -> NanochatError:
        return NanochatError(
            f"{self.label} {what}: it is an unknown version",
            "Set NANOCHAT_FA3_PROVIDER to another provider, or install another version",
        )
