"""The builds of FlashAttention, where each can run, and which one a machine gets.

Nothing here imports torch or a provider. Facts are from the sources of flash-attn 2.8.4, of
FlashAttention-3 (`hopper/`), of flash-attn-4 4.0.0b36 and of kernels 0.17.2.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nanochat.backend import AttentionProblem, KernelPatterns, Support, Target
from nanochat_fa3 import locate

PROVIDER_VARIABLE = "NANOCHAT_FA3_PROVIDER"
"""Names the provider to take (fa2, fa3, fa4 or hub) instead of the first of the order."""

RELEASES = "the release page of Dao-AILab/flash-attention on GitHub"
WHEEL = f"install a wheel that matches your torch, CUDA and Python: see {RELEASES}"
FA4_INSTALL = "pip install 'nanochat-fa3[fa4]'"
HUB_INSTALL = "pip install 'nanochat-fa3[hub]'"
OLDEST_FA2 = "2.7"
FA4_HEAD_MULTIPLE = 32
"""Heads of 16 and 80 gave a gradient of q that was 0.3 off (4.0.0b36, H100); 32, 64, 96, 128 and
256 are right: of what was not tried, only the like of these is trusted."""
OLDEST_KERNELS = "0.12"

Family = int
"""The major number of a compute capability. Minor numbers are never compared: 12.0 and 12.1 run
the same code, and a test for one of them exactly is what other projects got wrong."""

Window = tuple[int, int] | tuple[int | None, int | None]


@dataclass(frozen=True)
class HubKernel:
    """A kernel of the Hugging Face hub: its repository and the version asked for."""

    repository: str
    version: int
    patterns: KernelPatterns


@dataclass(frozen=True)
class Standing:
    """What is thought of a provider on a family of GPUs.

    `priority` is the backend's there (sdpa has 20 and flex 15). `checked` says that its results
    are compared with float64 when it is loaded, because faults are known or nobody has reported
    that it works; `doubt` says which.
    """

    priority: int
    checked: bool = False
    doubt: str = ""


@dataclass(frozen=True)
class Provider:
    """One build of FlashAttention."""

    name: str
    title: str
    find: Callable[[], Support]
    """Is it installed? A yes has the version as its reason. Imports nothing, asks no network."""
    window: Callable[[int | None], Window]
    standings: dict[Family, Standing]
    patterns: KernelPatterns
    offers: tuple[str, ...]
    returns: Literal["output", "output and lse"]
    """What its public functions return when nothing else is asked of them."""


def minus_one_window(window: int | None) -> Window:
    """(left, right) where -1 means all: FlashAttention-2 and -3, and the hub's builds of them.

    Unlimited is (-1, -1) and not (-1, 0): `causal=True` sets the right side anyway, and both
    libraries take a faster path for single queries only if neither side is limited.
    """
    return (-1, -1) if window is None else (window, 0)


def none_window(window: int | None) -> Window:
    """(left, right) where None means all: FlashAttention-4, for which (-1, 0) is a wrong window."""
    return (None, None) if window is None else (window, 0)


def find_fa2() -> Support:
    # FlashAttention-4 alone leaves `flash_attn` a namespace package: look for the file.
    if locate.file_of("flash_attn", "flash_attn_interface.py") is None:
        if locate.file_of("flash_attn", "cute/interface.py") is not None:
            return Support.no("`flash_attn` holds FlashAttention-4 only", f"For FA2, {WHEEL}")
        return Support.no("flash-attn is not installed", f"For FA2, {WHEEL}")
    if locate.top_level("flash_attn_2_cuda") is None:
        return Support.no(
            "flash_attn is there without its compiled half flash_attn_2_cuda",
            f"Uninstall flash-attn and {WHEEL}",
        )
    return _new_enough("flash-attn", OLDEST_FA2, f"For FA2, {WHEEL}")


def find_fa3() -> Support:
    if not locate.is_installed("flash_attn_interface"):
        return Support.no("flash_attn_interface is not installed", f"For FA3, {WHEEL}")
    if not locate.has_extension("flash_attn_3", "_C") and not locate.top_level("flash_attn_3_cuda"):
        return Support.no(
            "flash_attn_interface is there without its compiled half flash_attn_3",
            f"Uninstall flash_attn_3 and {WHEEL}",
        )
    return Support.yes(_titled("flash-attn-3"))


def find_fa4() -> Support:
    if locate.file_of("flash_attn", "cute/interface.py") is None:
        return Support.no("flash-attn-4 is not installed", f"For FA4: {FA4_INSTALL}")
    # An older library is called cutlass too, and a removed one leaves its folder behind.
    has = {
        "cutlass.cute": locate.file_of("cutlass", "cute/__init__.py") is not None,
        "quack": locate.is_installed("quack"),
    }
    missing = [name for name, there in has.items() if not there]
    if missing:
        return Support.no(f"flash-attn-4 lacks {' and '.join(missing)}", f"For FA4: {FA4_INSTALL}")
    return Support.yes(_titled("flash-attn-4"))


def find_hub() -> Support:
    if not locate.is_installed("kernels"):
        return Support.no("kernels is not installed", f"For the hub: {HUB_INSTALL}")
    return _new_enough("kernels", OLDEST_KERNELS, f"For the hub: {HUB_INSTALL} --upgrade")


def _new_enough(distribution: str, oldest: str, remedy: str) -> Support:
    from packaging.version import InvalidVersion, Version

    found = locate.version_of(distribution)
    try:
        if found is not None and Version(found) < Version(oldest):
            return Support.no(f"{distribution} {found} is too old, {oldest} is needed", remedy)
    except InvalidVersion:
        pass  # a build of one's own may call itself anything; its signatures are read on loading
    return Support.yes(_titled(distribution))


def _titled(distribution: str) -> str:
    return f"{distribution} {locate.version_of(distribution) or 'of unknown version'}"


FA2_PATTERNS = KernelPatterns(
    forward=(r"flash_fwd_(splitkv_)?kernel",),
    backward=(r"flash_bwd_dq_dk_dv_loop_seqk_parallel",),
)
FA3_PATTERNS = KernelPatterns(
    forward=(r"FlashAttnFwdSm\d+",),
    backward=(r"FlashAttnBwdSm\d+",),
)
# The names of CuTe kernels contain their class. Not `FlashAttentionBackward` alone, which the
# kernels before and after the backward pass have too.
FA4_PATTERNS = KernelPatterns(
    forward=(r"FlashAttentionForwardSm\d+|fmha_forward",),
    backward=(r"FlashAttentionBackwardSm\d+|fmha_backward",),
)

HUB_KERNELS: dict[Family, HubKernel] = {
    8: HubKernel("kernels-community/flash-attn2", 1, FA2_PATTERNS),
    9: HubKernel("kernels-community/flash-attn3", 1, FA3_PATTERNS),
}

# On Hopper and data centre Blackwell, SDPA's own kernels beat FlashAttention-2 where a layer sees
# everything (H200: 388 to 427 against 246 TFLOP/s), and flex_attention is no better at windows:
# so there FA2 stands between the two.
_BEHIND_SDPA = 18
_FIRST = 40
# Behind every kernel of the core: taken only if asked for by name.
_ONLY_IF_ASKED = 5

PROVIDERS: dict[str, Provider] = {
    p.name: p
    for p in (
        Provider(
            name="fa3",
            title="FlashAttention-3",
            find=find_fa3,
            window=minus_one_window,
            standings={9: Standing(_FIRST)},
            patterns=FA3_PATTERNS,
            offers=("window", "gqa", "kvcache", "documents"),
            returns="output",
        ),
        Provider(
            name="fa2",
            title="FlashAttention-2",
            find=find_fa2,
            window=minus_one_window,
            standings={
                8: Standing(_FIRST),
                9: Standing(_BEHIND_SDPA),
                10: Standing(_BEHIND_SDPA, True, "a build may lack code for this GPU"),
                12: Standing(_FIRST, True, "a build may lack code for this GPU"),
            },
            patterns=FA2_PATTERNS,
            offers=("window", "gqa", "kvcache", "documents"),
            returns="output",
        ),
        Provider(
            name="fa4",
            title="FlashAttention-4",
            find=find_fa4,
            window=none_window,
            standings={
                9: Standing(_FIRST),
                10: Standing(_FIRST),
                12: Standing(_ONLY_IF_ASKED, True, "its kernels for such GPUs are new"),
            },
            patterns=FA4_PATTERNS,
            offers=("window", "gqa", "documents"),
            returns="output and lse",
        ),
        Provider(
            name="hub",
            title="FlashAttention of the Hugging Face hub",
            find=find_hub,
            window=minus_one_window,
            standings={
                family: Standing(_ONLY_IF_ASKED, True, "it is downloaded when it is loaded")
                for family in HUB_KERNELS
            },
            patterns=KernelPatterns(),
            offers=("window", "gqa", "kvcache", "documents"),
            returns="output",
        ),
    )
}

ORDER: dict[Family, tuple[str, ...]] = {
    8: ("fa2", "hub"),
    9: ("fa3", "fa2", "fa4", "hub"),
    10: ("fa4", "fa2"),
    12: ("fa2", "fa4"),
}


@dataclass(frozen=True)
class Selection:
    """The provider that a machine gets, or why it gets none, and what became of the others."""

    family: Family | None
    provider: Provider | None
    reason: str
    remedy: str = ""

    @property
    def standing(self) -> Standing:
        if self.provider is None or self.family is None:
            return Standing(0)
        return self.provider.standings[self.family]

    @property
    def patterns(self) -> KernelPatterns:
        """The kernels that a profiler must see."""
        if self.provider is None or self.family is None:
            return KernelPatterns()
        if self.provider.name == "hub":
            return HUB_KERNELS[self.family].patterns
        return self.provider.patterns


def select(target: Target, asked: str | None = None) -> Selection:
    """The first installed provider in the order of the target's family.

    `asked` is a provider's name, by default the variable NANOCHAT_FA3_PROVIDER: then that one or
    none. Reads files only: no import, no network.
    """
    if target.kind != "cuda" or target.capability is None:
        return Selection(
            None,
            None,
            f"FlashAttention runs on NVIDIA GPUs, and this is {target.kind} ({target.name})",
            "Use --attention sdpa",
        )
    family = target.capability[0]
    order = ORDER.get(family)
    if order is None:
        sm = f"sm_{target.capability[0]}{target.capability[1]}"
        why = "is too old for it" if family < min(ORDER) else "is in no provider's list"
        return Selection(family, None, f"{sm} {why}", "Use --attention sdpa or flex")
    if asked is None:
        asked = os.environ.get(PROVIDER_VARIABLE, "").strip().lower() or None
    if asked is not None and asked not in order:
        known = asked in PROVIDERS
        why = f"has no kernels for sm_{family}x" if known else "is not a provider"
        return Selection(
            family,
            None,
            f"{PROVIDER_VARIABLE} asks for {asked}, which {why}",
            f"Set it to {' or '.join(order)}, or unset it",
        )
    return _first_found(family, order, asked)


def _first_found(family: Family, order: tuple[str, ...], asked: str | None) -> Selection:
    taken: Provider | None = None
    version = ""
    others: list[str] = []
    remedies: list[str] = []
    for name in order:
        found = PROVIDERS[name].find()
        if asked is not None and name != asked:
            others.append(f"{name}: not asked for")
        elif not found.ok:
            others.append(f"{name}: {found.reason}")
            remedies.append(found.remedy)
        elif taken is not None:
            others.append(f"{name}: behind {taken.name} in the order of sm_{family}x")
        else:
            taken, version = PROVIDERS[name], found.reason
    others += [f"{n}: no kernels for sm_{family}x" for n in PROVIDERS if n not in order]
    rest = "; ".join(others)
    if taken is None:
        first = "asked for, but " if asked is not None else ""
        return Selection(
            family, None, f"{first}no build of FlashAttention: {rest}", ". ".join(remedies)
        )
    how = f", as {PROVIDER_VARIABLE} asks" if asked is not None else ""
    standing = taken.standings[family]
    doubt = f"; compared with float64 when loaded: {standing.doubt}" if standing.checked else ""
    return Selection(family, taken, f"{taken.title} ({version}){how}{doubt}. Not {rest}")


def can_compute(selection: Selection, problem: AttentionProblem) -> Support:
    """Whether the kernels of a selection's provider cover a problem, as their sources say."""
    provider, family = selection.provider, selection.family
    if provider is None:
        return Support.no(selection.reason, selection.remedy)
    if problem.dtype not in ("bfloat16", "float16"):
        return Support.no(
            f"its kernels compute in bfloat16 and float16, not in {problem.dtype}",
            "Use --dtype bfloat16 or --attention sdpa",
        )
    dim = problem.head_dim
    if dim % 8 != 0 or not 8 <= dim <= 256:
        return Support.no(
            f"heads of {dim} are not a multiple of 8 up to 256",
            "Use --head-dim 64 or 128, or --attention sdpa",
        )
    if provider.name == "fa4" and dim % FA4_HEAD_MULTIPLE != 0:
        return Support.no(
            f"FlashAttention-4 computes wrong gradients for heads of {dim}",
            "Use --head-dim 64 or 128, or --attention sdpa",
        )
    # sm_10x: `_validate_head_dims`; sm_12x: tiles of the backward pass must fit in 99 KB.
    if provider.name == "fa4" and (
        (family == 12 and dim > 128) or (family == 10 and 128 < dim < 256)
    ):
        return Support.no(
            f"FlashAttention-4 has no kernels for heads of {dim} on sm_{family}x",
            f"Use --head-dim 128 or less, or set {PROVIDER_VARIABLE}=fa2",
        )
    return Support.yes(selection.reason)
