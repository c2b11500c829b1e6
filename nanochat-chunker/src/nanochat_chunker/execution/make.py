"""The pool for `--executor`."""

from nanochat_chunker.execution.jobs import Limits, Pool


def make_pool(
    executor: str, *, workers: int, limits: Limits, ray_address: str | None = None
) -> Pool:
    """One of `settings.EXECUTORS`. Raises `UsageError` where Ray is asked for and not installed."""
    if executor == "serial":
        from nanochat_chunker.execution.serial import SerialPool

        return SerialPool(limits)
    if executor == "ray":
        from nanochat_chunker.execution.on_ray import RayPool

        return RayPool(workers, limits, ray_address)
    from nanochat_chunker.execution.processes import ProcessPool

    return ProcessPool(workers, limits)
