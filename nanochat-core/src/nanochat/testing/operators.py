"""What checks of every hook share: claims, compiling in one graph, repeating, operators."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from nanochat.backend import Problem
from nanochat.testing.contract import Case, ConformanceError, NotApplicable, Subject
from nanochat.testing.samples import sample


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The function under torch.compile in one graph, which a graph break makes an error.

    On a CPU without a C++ compiler, and on devices that inductor does not know, the graph is
    traced and differentiated by torch's own tracer but runs uncompiled.
    """
    torch.compiler.reset()
    inductor = device.type in ("cuda", "xpu") or (device.type == "cpu" and _has_compiler())
    backend = "inductor" if inductor else "aot_eager"
    whole = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)

    def call(*args: Any, **options: Any) -> Any:
        try:
            return whole(*args, **options)
        except torch._dynamo.exc.TorchDynamoException as error:
            text = " ".join(str(error).split())
            raise ConformanceError(f"it does not compile in one graph: {text[:200]}") from error

    return call


def _has_compiler() -> bool:
    return any(shutil.which(c) for c in (os.environ.get("CXX"), "g++", "clang++", "cl") if c)


def claims(subject: Subject, words: Mapping[str, Mapping[str, Any]]) -> Iterator[Case]:
    """A case for each capability word: `supports` accepts what changes with it just if claimed."""
    hook, backend = subject.backend.hook, subject.backend
    for word, changes in words.items():

        def verify(word: str = word, changes: Mapping[str, Any] = changes) -> None:
            support = backend.supports(sample(hook, subject.kind, subject.dtype, **changes))
            if word in backend.capabilities and not support.ok:
                raise ConformanceError(
                    f"its capabilities name {word!r}, but supports() refuses it: {support.reason}"
                )
            if word not in backend.capabilities and support.ok:
                raise ConformanceError(
                    f"supports() accepts a problem that needs {word!r}, which its capabilities do "
                    "not name: refuse it, or add the word"
                )

        yield Case(word, sample(hook, subject.kind, subject.dtype), verify)


def deterministic(subject: Subject) -> None:
    """Raise NotApplicable unless the backend claims to repeat itself to the last bit."""
    if "deterministic" not in subject.backend.capabilities:
        raise NotApplicable("it does not claim to be deterministic")


def opcheck(subject: Subject, problem: Problem) -> Iterator[Case]:
    """A case for each sample of `Backend.operator_samples`."""
    samples: Iterable[tuple[Any, ...]] = subject.backend.operator_samples(str(subject.device))
    if not samples:
        raise NotApplicable("it lists no custom operators (operator_samples)")
    for index, (operator, args, *options) in enumerate(samples):

        def verify(
            operator: Any = operator, args: Any = args, options: list[Any] = options
        ) -> None:
            try:
                torch.library.opcheck(operator, args, *options)
            except Exception as error:  # opcheck raises what its tests raise
                text = " ".join(str(error).split())
                raise ConformanceError(f"opcheck: {text[:300]}") from error

        name = getattr(operator, "_name", None) or getattr(operator, "name", lambda: "operator")()
        yield Case(f"{name}, sample {index + 1}", problem, verify)
