"""Stand-ins for the providers, which need a GPU: the real signatures over plain torch.

They follow the conventions of the libraries they stand for (what -1 and None mean, what is
returned), so a call that mistakes one for another comes out wrong here too. They say nothing of
the libraries' own kernels.
"""

from __future__ import annotations

import inspect
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

# Name, then "=" if it has a default. flash-attn 2.8.4, FlashAttention-3 of 2026 and of 2025, and
# flash-attn-4 4.0.0b36; test_fa3_signatures.py compares them with installed sources.
SIGNATURES = {
    "fa2": {
        "_flash_attn_forward": "q k v dropout_p softmax_scale causal window_size_left "
        "window_size_right softcap alibi_slopes return_softmax",
        "_flash_attn_backward": "dout q k v out softmax_lse dq dk dv dropout_p softmax_scale "
        "causal window_size_left window_size_right softcap alibi_slopes deterministic rng_state=",
        "_flash_attn_varlen_forward": "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k "
        "dropout_p softmax_scale causal window_size_left= window_size_right= softcap= "
        "alibi_slopes= return_softmax= block_table= leftpad_k= seqused_k= zero_tensors=",
        "_flash_attn_varlen_backward": "dout q k v out softmax_lse dq dk dv cu_seqlens_q "
        "cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p softmax_scale causal window_size_left "
        "window_size_right softcap alibi_slopes deterministic rng_state= zero_tensors=",
        "flash_attn_with_kvcache": "q k_cache v_cache k= v= rotary_cos= rotary_sin= cache_seqlens= "
        "cache_batch_idx= cache_leftpad= block_table= softmax_scale= causal= window_size= softcap= "
        "rotary_interleaved= alibi_slopes= num_splits= return_softmax_lse=",
    },
    "fa3": {
        "_flash_attn_forward": "q k v k_new= v_new= qv= out_= cu_seqlens_q= cu_seqlens_k= "
        "cu_seqlens_k_new= seqused_q= seqused_k= max_seqlen_q= max_seqlen_k= page_table= "
        "kv_batch_idx= leftpad_k= rotary_cos= rotary_sin= seqlens_rotary= q_descale= k_descale= "
        "v_descale= softmax_scale= causal= window_size_left= window_size_right= attention_chunk= "
        "softcap= rotary_interleaved= scheduler_metadata= num_splits= pack_gqa= sm_margin=",
        "_flash_attn_backward": "dout q k v out softmax_lse cu_seqlens_q= cu_seqlens_k= sequed_q= "
        "sequed_k= max_seqlen_q= max_seqlen_k= dq= dk= dv= softmax_scale= is_causal= "
        "window_size_left= window_size_right= softcap= deterministic= sm_margin=",
        "flash_attn_with_kvcache": "q k_cache v_cache k= v= qv= rotary_cos= rotary_sin= "
        "cache_seqlens= cache_batch_idx= cache_leftpad= page_table= cu_seqlens_q= "
        "cu_seqlens_k_new= max_seqlen_q= rotary_seqlens= q_descale= k_descale= v_descale= "
        "softmax_scale= causal= window_size= attention_chunk= softcap= rotary_interleaved= "
        "scheduler_metadata= num_splits= pack_gqa= sm_margin= return_softmax_lse=",
    },
    "fa3-2025": {
        "_flash_attn_forward": "q k v k_new v_new qv out cu_seqlens_q cu_seqlens_k "
        "cu_seqlens_k_new seqused_q seqused_k max_seqlen_q max_seqlen_k page_table kv_batch_idx "
        "leftpad_k rotary_cos rotary_sin seqlens_rotary q_descale k_descale v_descale "
        "softmax_scale causal window_size= attention_chunk= softcap= rotary_interleaved= "
        "scheduler_metadata= num_splits= pack_gqa= sm_margin=",
        "_flash_attn_backward": "dout q k v out softmax_lse cu_seqlens_q cu_seqlens_k sequed_q "
        "sequed_k max_seqlen_q max_seqlen_k dq dk dv softmax_scale causal window_size= softcap= "
        "deterministic= sm_margin=",
    },
    "fa4": {
        "_flash_attn_fwd": "q k v qv= cu_seqlens_q= cu_seqlens_k= seqused_q= seqused_k= "
        "max_seqlen_q= max_seqlen_k= min_seqlen_k= page_table= softmax_scale= causal= softcap= "
        "window_size_left= window_size_right= learnable_sink= tile_mn= mma_pv_is_rs= "
        "intra_wg_overlap= num_threads= num_splits= pack_gqa= _arch= score_mod= mask_mod= "
        "block_sparse_tensors= return_lse= out= lse= aux_tensors= aux_scalars= q_descale= "
        "k_descale= v_descale= gather_kv_indices= scheduler_metadata= seqlen_k_per_split= "
        "disable_scheduler_metadata= gather_bwd_recompute_p=",
        "_flash_attn_bwd": "q k v out dout lse softmax_scale= causal= softcap= window_size_left= "
        "window_size_right= m_block_size= n_block_size= num_threads= pack_gqa= num_stages_Q= "
        "num_stages_dO= SdP_swapAB= dKV_swapAB= dQ_swapAB= AtomLayoutMSdP= AtomLayoutNdKV= "
        "AtomLayoutMdQ= V_in_regs= cu_seqlens_q= cu_seqlens_k= seqused_q= seqused_k= "
        "max_seqlen_q= max_seqlen_k= deterministic= dq= dk= dv= score_mod= score_mod_bwd= "
        "mask_mod= aux_tensors= aux_scalars= block_sparse_tensors= dlse= learnable_sink=",
        "flash_attn_varlen_func": "q k v qv= cu_seqlens_q= cu_seqlens_k= max_seqlen_q= "
        "max_seqlen_k= min_seqlen_k= seqused_q= seqused_k= gather_kv_indices= page_table= "
        "softmax_scale= causal= window_size= learnable_sink= softcap= num_splits= pack_gqa= "
        "deterministic= score_mod= score_mod_bwd= mask_mod= block_sparse_tensors= aux_tensors= "
        "aux_scalars= return_lse= scheduler_metadata= seqlen_k_per_split= "
        "disable_scheduler_metadata= gather_bwd_recompute_p= gather_bwd_token_chunk=",
    },
}
SIGNATURES["fa3-2025"]["flash_attn_with_kvcache"] = SIGNATURES["fa3"]["flash_attn_with_kvcache"]


def with_signature(text, body, calls):
    """A function that takes exactly what `text` says, positional or by name, and records it."""
    parameters = [
        inspect.Parameter(
            word.rstrip("="),
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None if word.endswith("=") else inspect.Parameter.empty,
        )
        for word in text.split()
    ]
    signature = inspect.Signature(parameters)

    def function(*positional, **named):
        bound = signature.bind(*positional, **named)
        calls.append((body.__name__, len(positional), dict(named)))
        return body(**bound.arguments)

    function.__signature__ = signature
    return function


def visible(q_len, k_len, left, right, filled=None):
    """(B or 1, 1, q_len, k_len): bottom-right aligned; None is no limit, numbers are literal."""
    filled = torch.tensor([k_len]) if filled is None else filled
    offset = filled.long()[:, None, None] - q_len
    distance = torch.arange(q_len)[:, None] + offset - torch.arange(k_len)
    seen = (torch.arange(k_len) < filled[:, None, None]).expand(-1, q_len, -1).clone()
    if left is not None:
        seen &= distance <= left
    if right is not None:
        seen &= distance >= -right
    return seen[:, None]


def scores(q, k, scale, seen):
    k = k.repeat_interleave(q.size(2) // k.size(2), dim=2)
    s = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * scale
    return s.masked_fill(~seen, float("-inf"))


def apart(seen, starts, longest):
    """What is seen of (1, 1, total, total) where documents begin at `starts`."""
    starts = starts.long()
    assert starts[0] == 0
    assert starts[-1] == seen.size(-1)
    assert starts.diff().max() <= longest
    numbers = torch.repeat_interleave(starts.diff())
    return seen & (numbers[:, None] == numbers)


def in_one_row(function):
    """A function of rows as the varlen one of the same name: without the batch, lse (H, total)."""

    def varlen(*tensors, seen):
        answers = function(*(x[None] for x in tensors), seen=seen)
        return tuple(x[0] for x in answers)

    return varlen


def attend(q, k, v, scale, seen):
    s = scores(q, k, scale, seen)
    v = v.repeat_interleave(q.size(2) // v.size(2), dim=2).double()
    out = torch.einsum("bhqk,bkhd->bqhd", s.softmax(-1), v)
    return out.to(q.dtype), s.logsumexp(-1).float()


def gradients(dout, q, k, v, out, lse, scale, seen):
    """The backward pass from the log-sum-exp, as FlashAttention does it."""
    assert dout.is_contiguous()  # kernels cannot load strides of 0, which a sum's gradient has
    group = q.size(2) // k.size(2)
    p = (scores(q, k, scale, seen) - lse.double()[..., None]).exp()
    wide_k, wide_v = (x.repeat_interleave(group, dim=2).double() for x in (k, v))
    dp = torch.einsum("bqhd,bkhd->bhqk", dout.double(), wide_v)
    delta = (dout.double() * out.double()).sum(-1).transpose(1, 2)
    ds = p * (dp - delta[..., None]) * scale
    dq = torch.einsum("bhqk,bkhd->bqhd", ds, wide_k)
    dk = torch.einsum("bhqk,bqhd->bkhd", ds, q.double())
    dv = torch.einsum("bhqk,bqhd->bkhd", p, dout.double())
    dk, dv = (x.unflatten(2, (-1, group)).sum(3) for x in (dk, dv))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def rows(function, tensors, window, given):
    """Rows one by one, or with cu_seqlens all positions as one row of documents."""
    starts = given.get("cu_seqlens_q")
    q, k = tensors[:2]
    if starts is None:
        return function(*tensors, seen=visible(q.size(1), k.size(1), *window))
    assert torch.equal(starts, given["cu_seqlens_k"])
    assert starts.dtype == torch.int32
    assert given["max_seqlen_q"] == given["max_seqlen_k"]
    seen = apart(visible(q.size(0), k.size(0), *window), starts, given["max_seqlen_q"])
    return in_one_row(function)(*tensors, seen=seen)


def write(cache, new, filled):
    for row, start in enumerate(filled.tolist()):
        cache[row, start : start + new.size(1)] = new[row]


def cuda_window(causal, left, right):
    """What -1 means to FlashAttention-2 and -3."""
    right = 0 if causal else right
    return (None if left < 0 else left), (None if right < 0 else right)


def cute_window(causal, left, right):
    """What None means to FlashAttention-4; a lone -1 is a literal number."""
    if left is not None and right is not None and left < 0 and right < 0:
        left = right = None
    return left, (0 if causal else right)


def cuda_module(name, wrong=None):
    module, calls = ModuleType(f"standin_{name}"), []

    def sides(given):
        pair = given.get("window_size")
        if pair is None:
            pair = given["window_size_left"], given["window_size_right"]
        return cuda_window(given.get("causal") or given.get("is_causal"), *pair)

    def forward(q, k, v, softmax_scale, **given):
        left, right = sides(given)
        if wrong == "window" and left is not None:
            left += 1
        out, lse = rows(partial(attend, scale=softmax_scale), (q, k, v), (left, right), given)
        return (out, lse, torch.empty(0), torch.empty(0))

    def backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, softmax_scale, **given):
        results = rows(
            partial(gradients, scale=softmax_scale),
            (dout, q, k, v, out, softmax_lse),
            sides(given),
            given,
        )
        for into, result in zip((dq, dk, dv), results, strict=True):
            into.copy_(result)
        if wrong == "gradient":
            dk.mul_(0.5)
        return torch.empty(0)

    def decode(q, k_cache, v_cache, k, v, cache_seqlens, softmax_scale, causal, window_size):
        write(k_cache, k, cache_seqlens)
        if wrong != "cache":
            write(v_cache, v, cache_seqlens)
        filled = cache_seqlens + q.size(1)
        seen = visible(q.size(1), k_cache.size(1), *cuda_window(causal, *window_size), filled)
        return attend(q, k_cache, v_cache, softmax_scale, seen)[0]

    texts = SIGNATURES[name]
    for function, body in (
        ("_flash_attn_forward", forward),
        ("_flash_attn_backward", backward),
        ("_flash_attn_varlen_forward", forward),
        ("_flash_attn_varlen_backward", backward),
        ("flash_attn_with_kvcache", decode),
    ):
        if function in texts:
            setattr(module, function, with_signature(texts[function], body, calls))
    module.calls = calls
    return module


def cute_module():
    module, calls = ModuleType("standin_fa4"), []

    def forward(
        q, k, v, softmax_scale, causal, return_lse, window_size_left, window_size_right, **given
    ):
        window = cute_window(causal, window_size_left, window_size_right)
        out, lse = rows(partial(attend, scale=softmax_scale), (q, k, v), window, given)
        return out, lse if return_lse else None, None, None, None

    def backward(
        q, k, v, out, dout, lse, softmax_scale, causal, window_size_left, window_size_right, **given
    ):
        window = cute_window(causal, window_size_left, window_size_right)
        tensors = (dout, q, k, v, out, lse)
        return rows(partial(gradients, scale=softmax_scale), tensors, window, given)

    def varlen(q, k, v, seqused_k, softmax_scale, causal, window_size):
        assert seqused_k.dtype == torch.int32
        seen = visible(q.size(1), k.size(1), *cute_window(causal, *window_size), seqused_k)
        return attend(q, k, v, softmax_scale, seen)

    texts = SIGNATURES["fa4"]
    for function, body in (
        ("_flash_attn_fwd", forward),
        ("_flash_attn_bwd", backward),
        ("flash_attn_varlen_func", varlen),
    ):
        setattr(module, function, with_signature(texts[function], body, calls))
    module.calls = calls
    return module


@pytest.fixture
def standin():
    """standin(name, wrong=None): a module that stands for a provider, with the calls it got."""
    return lambda name, wrong=None: cute_module() if name == "fa4" else cuda_module(name, wrong)


@pytest.fixture
def signatures():
    return SIGNATURES


class SitePackages:
    """A folder on sys.path with packages that fail the test if anything imports them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def module(self, path: str, text: str | None = None) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"raise SystemError('{path} was imported')\n" if text is None else text)

    def distribution(self, name: str, version: str) -> None:
        folder = self.root / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )

    def fa2(self, version="2.8.4") -> None:
        self.module("flash_attn/__init__.py")
        self.module("flash_attn/flash_attn_interface.py")
        self.module("flash_attn_2_cuda.py")
        self.distribution("flash-attn", version)

    def fa3(self) -> None:
        self.module("flash_attn_interface.py")
        self.module("flash_attn_3/__init__.py")
        (self.root / "flash_attn_3" / "_C.abi3.so").touch()
        self.distribution("flash-attn-3", "3.0.0")

    def fa4(self) -> None:
        self.module("flash_attn/cute/__init__.py")
        self.module("flash_attn/cute/interface.py")
        self.module("cutlass/__init__.py")
        self.module("cutlass/cute/__init__.py")
        self.module("quack/__init__.py")
        self.distribution("flash-attn-4", "4.0.0b36")

    def hub(self, version="0.17.2", text=None) -> None:
        self.module("kernels/__init__.py", text)
        self.distribution("kernels", version)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder at the front of sys.path; what is installed for real is hidden."""
    names = ("flash_attn", "flash_attn_interface", "flash_attn_3", "flash_attn_2_cuda")
    names += ("flash_attn_3_cuda", "kernels", "cutlass", "quack")
    for name in [m for m in sys.modules if m.partition(".")[0] in names]:
        monkeypatch.delitem(sys.modules, name)
    from nanochat_fa3 import locate

    real_spec, real_version = locate.find_spec, locate.metadata.version

    def only_here(name):
        spec = real_spec(name)
        if name not in names or spec is None:
            return spec
        places = [spec.origin, *(spec.submodule_search_locations or [])]
        return spec if any(str(p).startswith(str(tmp_path)) for p in places if p) else None

    def version(name):
        if name not in ("flash-attn", "flash-attn-3", "flash-attn-4", "kernels"):
            return real_version(name)
        folders = list(tmp_path.glob(f"{name.replace('-', '_')}-*.dist-info"))
        if not folders:
            raise locate.metadata.PackageNotFoundError(name)
        return real_version(name)

    monkeypatch.setattr(locate, "find_spec", only_here)
    monkeypatch.setattr(locate.metadata, "version", version)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("NANOCHAT_FA3_PROVIDER", raising=False)
    return SitePackages(tmp_path)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    import socket

    def refuse(*_arguments, **_named):
        raise AssertionError("a test went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
