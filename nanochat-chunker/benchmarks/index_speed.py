"""How fast slicing is, beside a raw tree-sitter parse of the same bytes in the same run.

    pip install tree-sitter tree-sitter-cpp
    python index_speed.py projects [--only rocksdb poco protobuf] [--budget 16384]

CPU seconds of one process: the raw parse, the index pass, and the whole job, which is the index and
the slicing; then the peak memory of that process, all of a project's texts included.
"""

import argparse
import gc
import resource
import time
from pathlib import Path

from projects_on_disk import load, names, short

from nanochat_chunker.execution.processes import collect_rarely
from nanochat_chunker.slicing import SliceOptions, index_file, slice_project
from nanochat_chunker.tokens import ByteMeter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--budget", type=int, default=16384)
    options = parser.parse_args()
    collect_rarely()  # as a worker does
    measure = ByteMeter().units
    total = {"bytes": 0, "files": 0, "documents": 0, "parse": 0.0, "index": 0.0, "slice": 0.0}
    for name in names(options.folder, options.only):
        texts = load(options.folder / name)
        total["files"] += len(texts)
        total["bytes"] += sum(len(text.encode()) for text in texts.values())
        parse = raw_parse(texts)
        start = time.process_time()
        indexes = [index_file(path, text) for path, text in texts.items()]
        index = time.process_time() - start
        start = time.process_time()
        settings = SliceOptions(options.budget * 4, project=short(name))
        count = sum(1 for _ in slice_project(indexes, texts.__getitem__, settings, measure))
        del indexes
        gc.collect()  # as a worker does from project to project
        sliced = time.process_time() - start
        total["documents"] += count
        for key, value in (("parse", parse), ("index", index), ("slice", sliced)):
            total[key] += value
        print(
            f"{short(name):16} parse {parse:6.2f} s  index {index:6.2f} s ({index / parse:.2f}x)"
            f"  whole {index + sliced:6.2f} s ({(index + sliced) / parse:.2f}x)"
            f"  {count} documents",
            flush=True,
        )
        del texts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    parse, whole = total["parse"], total["index"] + total["slice"]
    size = total["bytes"] / 1e6
    print(f"all: {total['files']} files, {size:.0f} MB, {total['documents']} documents")
    print(f"raw parse {parse:.1f} s CPU, {size / parse:.1f} MB/s")
    print(f"index {total['index'] / parse:.2f}x, whole job {whole / parse:.2f}x")
    print(f"peak memory {peak:.2f} GiB")


def raw_parse(texts: dict[str, str]) -> float:
    """CPU seconds that tree-sitter takes for these texts."""
    from tree_sitter import Language, Parser
    from tree_sitter_cpp import language

    parser = Parser(Language(language()))
    contents = [text.encode() for text in texts.values()]
    start = time.process_time()
    for content in contents:
        parser.parse(content)
    return time.process_time() - start


if __name__ == "__main__":
    main()
