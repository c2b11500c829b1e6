"""Every Triton kernel of the core is compiled to machine code, for GPUs that need not be here.

The interpreter takes things that the compiler refuses. In a process of its own, because Triton
decides on importing whether it interprets.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

SCRIPT = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from nanochat.fused.cast_kernel import cast_both_ways_kernel
from nanochat.fused.heads_kernels import split_heads_backward, split_heads_forward
from nanochat.fused.softmax_gradient_kernel import softmax_gradient_kernel
from nanochat.fused.symmetric_kernel import symmetric_product_kernel

POINTERS = {"scale": "*fp32", "rotary": "*fp32", "losses": "*fp32", "targets": "*i64"}
FLOATS = ("eps", "alpha", "beta", "diagonal", "softcap", "largest")
HEADS = {"HEADS": 10, "KV_HEADS": 5, "SIZE": 128, "BLOCK": 16, "KV_BLOCK": 8}
CASES = [
    (cast_both_ways_kernel, {"TILE": 128}, 8, {"narrow": "*fp8e4nv", "transposed": "*fp8e4nv"}),
    (split_heads_forward, HEADS, 4, {}),
    (split_heads_backward, HEADS, 4, {}),
    *((symmetric_product_kernel, {"ADD": add, "TILE": 128, "DEPTH": 64}, 8, {}) for add in (0, 1)),
    *(
        (softmax_gradient_kernel, {"CAPPED": capped, "EVEN": even, "BLOCK": 8192}, 32, {})
        for capped in (False, True)
        for even in (False, True)
    ),
]


def kind(name, pointers):
    if name.endswith("_ptr"):
        return pointers.get(name.removesuffix("_ptr"), "*bf16")
    return "fp32" if name in FLOATS else "i32"


for kernel, constants, warps, pointers in CASES:
    signature = {
        name: "constexpr" if name in constants else kind(name, POINTERS | pointers)
        for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    code = triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]
    assert len(code) > 1000
    print("compiled", kernel.__name__)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed (Linux only)")
@pytest.mark.parametrize("capability", ["90", "120"])
def test_kernels_compile(capability, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, capability], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("compiled") == 9
