"""Compiles the documents of an output and says how many do, and why the others do not.

The command line calls `verify_output` once and prints what `Report.lines()` gives, or
`Report.to_json()` for `--json`:

    report = verify_output(
        Path("out"),               # a folder of parquet shards, or NAME.jsonl
        sample=500,                # None: all of them; drawn by `seed`
        include_dirs=[...],        # --include DIR; a second rate is reported with them
        compiler=None,             # None: clang++, else g++
        annotate=False,            # True: writes the column `compiles` (`"compiles"` in JSONL)
        workers=2,
        seed=42,
        timeout_s=60.0, memory_mb=4096,
        on_done=lambda n, total: None,
    )

It raises `UsageError` where there is no compiler, no output at that path, or an `include_dirs`
entry is no folder.
"""

from nanochat_chunker.verify.run import Report, verify_output

__all__ = ["Report", "verify_output"]
