"""What counts as proof, on described kernels: stand-ins for what a profiler would list."""

import pytest

from nanochat.backend import KernelPatterns, LossBackend
from nanochat.proof import Kernel, prove, shares


class Toy(LossBackend):
    name = "toy"
    summary = "a toy"
    kernels = KernelPatterns(forward=(r"toy_forward", r"toy_lse"), backward=(r"toy_backward",))


SEEN = (["gemm", "toy_forward_k", "toy_lse_k"], ["toy_backward_k"])


def test_every_pattern_of_both_phases_must_be_seen():
    assert prove(Toy(), *SEEN, "kernels").state == "proven"
    assert prove(Toy(), *SEEN, "operators").state == "proven"
    lacking = prove(Toy(), ["toy_forward_k", "toy_lse_k"], ["other"], "kernels")
    assert (lacking.state, lacking.reason) == (
        "unproven",
        "backward: nothing matches toy_backward",
    )
    assert prove(Toy(), ["toy_forward_k"], ["toy_backward_k"], "kernels").state == "unproven"


def test_a_phase_does_not_vouch_for_the_other():
    forward, backward = SEEN
    assert prove(Toy(), [*forward, *backward], [], "kernels").state == "unproven"


def test_operators_cannot_disprove():
    assert prove(Toy(), ["aten::mm"], [], "operators").state == "not provable"


def test_a_backend_that_declares_nothing_is_not_taken_at_its_word():
    class Silent(Toy):
        kernels = KernelPatterns()

    assert prove(Silent(), *SEEN, "kernels").state == "unproven"
    assert prove(Silent(), *SEEN, "operators").state == "not provable"
    assert prove(Silent(), [], [], "kernels", in_use=False).state == "nothing to prove"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_tn", "matmul"),
        ("cutlass3x_sm120_bstensorop_e4m3", "matmul"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "attention"),
        ("fmha_cutlassF_bf16_aligned", "attention"),
        ("flash_bwd_dq_dk_dv_loop_seqk_parallel", "attention"),
        ("_cce_backward_kernel", "loss"),
        ("triton_red_fused__log_softmax_3", "loss"),
        ("liger_cross_entropy_kernel", "loss"),
        ("cast_both_ways_kernel", "quantise and transpose"),
        ("nvte_quantize_kernel", "quantise and transpose"),
        ("triton_poi_fused_add_mul_7", "rest"),
        ("aten::transpose", "rest"),
    ],
)
def test_kernels_are_grouped_by_what_they_do(name, group):
    assert Kernel(name, "forward", 1.0, 1).group == group
    assert Kernel(name, "update", 1.0, 1).group == "optimiser"


def test_shares_add_up():
    found = shares([Kernel("gemm", "forward", 3.0, 1), Kernel("x", "backward", 1.0, 2)])
    assert found["matmul"] == pytest.approx(0.75)
    assert sum(found.values()) == pytest.approx(1)
    assert shares([]) == {}
