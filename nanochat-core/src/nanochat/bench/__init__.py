"""Timing, profiling and proof: what `nanochat-bench`, `measure` and `--verify-kernels` share."""
