"""Operations of the core's own step that a compiler does not fuse well by itself.

Each is one module with the operation in plain torch, the reference that every device can run, and
one with a Triton kernel for NVIDIA GPUs, wrapped as a custom operator so that `torch.compile`
keeps its graph whole.
"""
