"""nanochat-chunker beside the splitters that people would use instead.

    pip install nanochat-chunker langchain-text-splitters llama-index-core chonkie astchunk \
        tree-sitter-language-pack
    python benchmarks/compare_splitters.py PROJECT... [--files N] [--documents N] [--max-tokens N]

Each splitter gets the same random files of the projects and the same length (tokens as bytes / 4),
and no overlap. Reported are MB of source a CPU second, and what share of a random sample of its
chunks compiles by itself, with a 95% interval (Wilson). nanochat-chunker works on whole projects,
and that is what its speed is measured on. What is not installed, or cannot start, is left out, and
said: Chonkie from 1.3 downloads grammars when it starts, chonkie==1.2.1 with
tree-sitter-language-pack<1 does not.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat_chunker import __version__, pipeline
from nanochat_chunker.files import Dropped, find_projects, read_source, walk
from nanochat_chunker.settings import DEFAULT_EXTENSIONS, Settings
from nanochat_chunker.verify.compiler import find_compiler

BYTES_PER_TOKEN = 4
Splitter = Callable[[str], list[str]]


@dataclass
class Measured:
    """One line of the table."""

    name: str
    version: str
    mb_per_second: float | None
    chunks: int
    median_tokens: int
    compiled: int
    passed: int

    def line(self) -> str:
        speed = f"{self.mb_per_second:.2f}" if self.mb_per_second else "-"
        share = "-"
        if self.compiled:
            low, high = wilson(self.passed, self.compiled)
            share = f"{self.passed / self.compiled:.1%} ({low:.0%} to {high:.0%})"
        return (
            f"| {self.name} | {self.version} | {speed} | {self.chunks:,} | "
            f"{self.median_tokens:,} | {share} |"
        )


def wilson(passed: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share."""
    share = passed / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    half /= 1 + z * z / total
    return max(0.0, middle - half), min(1.0, middle + half)


def tree_sitter_nodes(characters: int) -> Splitter:
    """Top-level nodes, as many as fit: what most tools of this kind do by hand."""
    import tree_sitter_cpp
    from tree_sitter import Language, Parser

    parser = Parser(Language(tree_sitter_cpp.language()))

    def split(text: str) -> list[str]:
        data = text.encode()
        chunks: list[bytes] = [b""]
        for node in parser.parse(data).root_node.children:
            piece = data[node.start_byte : node.end_byte] + b"\n"
            if chunks[-1] and len(chunks[-1]) + len(piece) > characters:
                chunks.append(b"")
            chunks[-1] += piece
        return [chunk.decode() for chunk in chunks if chunk.strip()]

    return split


def langchain(characters: int) -> Splitter:
    from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter.from_language(
        Language.CPP, chunk_size=characters, chunk_overlap=0
    )
    return splitter.split_text


def llama_index(characters: int) -> Splitter:
    import tree_sitter_cpp
    from llama_index.core.node_parser import CodeSplitter
    from tree_sitter import Language, Parser

    splitter = CodeSplitter(
        language="cpp",
        chunk_lines=1_000_000,
        chunk_lines_overlap=1,  # at least; its splitting of nodes makes no use of it
        max_chars=characters,
        parser=Parser(Language(tree_sitter_cpp.language())),
    )
    return splitter.split_text


def chonkie(characters: int) -> Splitter:
    from chonkie import CodeChunker

    chunker = CodeChunker("character", chunk_size=characters, language="cpp")
    return lambda text: [chunk.text for chunk in chunker.chunk(text)]


def astchunk(characters: int) -> Splitter:
    """astchunk has no C++ (0.1.0): its builder is given the parser of tree-sitter-cpp."""
    import tree_sitter_cpp
    from astchunk import ASTChunkBuilder
    from tree_sitter import Language, Parser

    builder = ASTChunkBuilder(max_chunk_size=characters, language="java", metadata_template="none")
    builder.parser = Parser(Language(tree_sitter_cpp.language()))
    return lambda text: [chunk["content"] for chunk in builder.chunkify(text)]


OTHERS: dict[str, tuple[str, Callable[[int], Splitter]]] = {
    "tree-sitter, top-level nodes": ("tree-sitter", tree_sitter_nodes),
    "LangChain RecursiveCharacterTextSplitter": ("langchain-text-splitters", langchain),
    "LlamaIndex CodeSplitter": ("llama-index-core", llama_index),
    "Chonkie CodeChunker": ("chonkie", chonkie),
    "astchunk, with the C++ grammar": ("astchunk", astchunk),
}


def main() -> int:
    arguments = parse()
    rng = random.Random(arguments.seed)
    files = list(sources(arguments.projects))
    chosen = rng.sample(files, min(arguments.files, len(files)))
    texts = [text for path in chosen if (text := read(path)) is not None]
    size = sum(len(text.encode()) for text in texts) / 1e6
    compiler = find_compiler(arguments.compiler)
    print(f"{len(texts)} of {len(files)} files, {size:.1f} MB; {compiler.version}", flush=True)
    print("| splitter | version | MB/CPU s | chunks | median tokens | compile alone |")
    print("|---|---|---|---|---|---|", flush=True)
    table = []

    def report(name: str, package: str, speed: float | None, chunks: Sequence[str]) -> None:
        sample = rng.sample(list(chunks), min(arguments.documents, len(chunks)))
        with ThreadPoolExecutor(arguments.workers) as pool:
            passed = sum(pool.map(lambda text: compiler.compile(text).compiles, sample))
        tokens = [-(-len(chunk.encode()) // BYTES_PER_TOKEN) for chunk in chunks]
        ours_too = package == "nanochat-chunker"
        version = __version__ if ours_too else importlib.metadata.version(package)
        line = Measured(
            name, version, speed, len(chunks), int(statistics.median(tokens)), len(sample), passed
        )
        table.append(line)
        print(line.line(), flush=True)

    report("files as they are", "nanochat-chunker", None, texts)
    for name, (package, make) in OTHERS.items():
        try:
            split = make(arguments.max_tokens * BYTES_PER_TOKEN)
            split(texts[0])
        except Exception as error:  # noqa: BLE001 - Chonkie downloads its grammars, for one
            print(f"left out: {name} ({type(error).__name__}: {error})", file=sys.stderr)
            continue
        began = time.process_time()
        chunks = [chunk for text in texts for chunk in split(text) if chunk.strip()]
        report(name, package, size / (time.process_time() - began), chunks)
    for name, compilable in (("nanochat-chunker", False), ("nanochat-chunker --compilable", True)):
        speed, chunks = ours(arguments, compilable)
        report(name, "nanochat-chunker", speed, chunks)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(line) for line in table], indent=2))
    return 0


def parse() -> Any:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("projects", nargs="+", type=Path, help="folders, each one project")
    parser.add_argument("--files", type=int, default=1000, help="to split (default: 1000)")
    parser.add_argument("--documents", type=int, default=300, help="to compile (default: 300)")
    parser.add_argument("--max-tokens", type=int, default=4096, help="(default: 4096)")
    parser.add_argument("--workers", type=int, default=2, help="compilers at a time (default: 2)")
    parser.add_argument("--compiler", help="(default: clang++, else g++)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    return parser.parse_args()


def sources(projects: Sequence[Path]) -> Iterator[Path]:
    for project in find_projects(projects, DEFAULT_EXTENSIONS, "one"):
        for path in walk(project, DEFAULT_EXTENSIONS).paths:
            yield project.root / path


def read(path: Path) -> str | None:
    source = read_source(path, 500_000)
    return None if isinstance(source, Dropped) else source.text


def ours(arguments: Any, compilable: bool) -> tuple[float, list[str]]:
    """The documents of the whole projects in one process, and MB of source a CPU second."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "documents.jsonl"
        settings = Settings(
            project_dirs=tuple(arguments.projects),
            layout="one",
            output=str(output),
            compilable=compilable,
            max_tokens=arguments.max_tokens,
            executor="serial",
        )
        began = time.process_time()
        manifest = pipeline.run(settings)
        seconds = time.process_time() - began
        with output.open(encoding="utf-8") as file:
            chunks = [json.loads(line)["text"] for line in file]
    return manifest["files"]["kept_bytes"] / 1e6 / seconds, chunks


if __name__ == "__main__":
    sys.exit(main())
