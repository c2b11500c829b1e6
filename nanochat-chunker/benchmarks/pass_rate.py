"""How many documents compile: slices at two budgets, beside a plain cut of the same files.

    python fetch_projects.py projects
    python pass_rate.py projects --sample 500 --seed 1 --workers 2

For each budget it draws documents at random from all projects, compiles each alone and, where that
fails, with the include folders of its project: guessed from the includes that its files resolve,
and those of --include, what the projects' own builds ask pkg-config for, such as Python's.
The plain cut takes the files of the sampled roots, cuts each at blank lines outside of braces where
it is longer than the budget, and compiles one random piece of each.

With --semantic it compares slices with and without libclang instead: see semantic_rate.py.
"""

import argparse
import json
import random
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from projects_on_disk import load, names, short

from nanochat_chunker.includes import Resolver, find_includes
from nanochat_chunker.slicing import SliceOptions, index_file, slice_project
from nanochat_chunker.slicing.configuration import STANDARD_HEADERS as SYSTEM
from nanochat_chunker.splitting import split_text
from nanochat_chunker.tokens import ByteMeter
from nanochat_chunker.verify.compiler import find_compiler
from nanochat_chunker.verify.reasons import reason


def include_folders(texts: dict[str, str], name: str) -> list[str]:
    """The -I that make a project's includes resolve, the most used first."""
    resolver = Resolver(list(texts), name)
    counts: Counter[str] = Counter()
    for path, text in texts.items():
        for include in find_includes(text):
            found = resolver.resolve(path, include)
            if found is not None and f"/{found}".endswith(f"/{include.target}"):
                counts[found[: -len(include.target)].rstrip("/")] += 1
    # A folder with a string.h of its own would hide the system's.
    hiding = {path.rpartition("/")[0] for path in texts if path.rpartition("/")[2] in SYSTEM}
    return ["", *(folder for folder, _ in counts.most_common(40) if folder not in hiding | {""})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--budgets", type=int, nargs="+", default=[16384, 65536])
    parser.add_argument("--sample", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--compiler")
    parser.add_argument("--include", nargs="*", default=[], help="more include folders, for all")
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("--failures", type=Path, help="write the failing documents here")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("semantic-work"),
        help="with --semantic: see semantic_rate",
    )
    parser.add_argument("--draw-at", type=int, help="with --semantic: the budget to draw roots at")
    parser.add_argument("--semantic", action="store_true", help="compare the ways: semantic_rate")
    options = parser.parse_args()
    compiler = find_compiler(options.compiler)
    print(compiler.version)
    if options.semantic:
        from semantic_rate import compare

        compare(options, compiler)
        return
    meter = ByteMeter()
    documents: dict[int, list[tuple[str, object]]] = {budget: [] for budget in options.budgets}
    folders: dict[str, list[str]] = {}
    whole: dict[str, dict[str, str]] = {}
    for name in names(options.folder, options.only):
        texts = load(options.folder / name)
        whole[name] = texts
        indexes = [index_file(path, text) for path, text in texts.items()]
        folders[name] = [
            str(options.folder / name / folder) for folder in include_folders(texts, short(name))
        ] + options.include
        for budget in options.budgets:
            settings = SliceOptions(budget * 4, project=short(name))
            made = slice_project(indexes, texts.__getitem__, settings, meter.units)
            documents[budget].extend((name, piece) for piece in made)
    results = {}
    for budget in options.budgets:
        rng = random.Random(options.seed)
        sample = rng.sample(documents[budget], min(options.sample, len(documents[budget])))
        jobs = [(name, piece.text, piece.root.path, piece.rung) for name, piece in sample]
        print(f"\n{budget} tokens: {len(documents[budget])} documents, {len(jobs)} compiled")
        results[f"slices {budget}"] = rate(compiler, jobs, folders, options)
        if not options.no_plain:
            jobs = []
            for name, piece in sample:
                text = whole[name][piece.root.path]
                pieces, _ = split_text(text, meter, budget * 4)
                jobs.append((name, rng.choice(pieces), piece.root.path, "plain"))
            print(f"\n{budget} tokens: plain cut of the same files, {len(jobs)} compiled")
            results[f"plain {budget}"] = rate(compiler, jobs, folders, options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def rate(compiler, jobs, folders, options):
    def check(job):
        name, text, path, _ = job
        alone = compiler.compile(text, c=path.endswith(".c"))
        if alone.compiles:
            return alone, alone
        return alone, compiler.compile(text, c=path.endswith(".c"), include_dirs=folders[name])

    start = time.perf_counter()
    by: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    rungs: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    reasons_with: Counter[str] = Counter()
    with ThreadPoolExecutor(options.workers) as pool:
        for job, (alone, included) in zip(jobs, pool.map(check, jobs), strict=True):
            name, text, path, rung = job
            pair = (alone.compiles, included.compiles)
            by[short(name)].append(pair)
            rungs[rung].append(pair)
            if not alone.compiles:
                reasons[reason(alone.diagnostics)] += 1
                if options.failures and rung != "plain":
                    options.failures.mkdir(parents=True, exist_ok=True)
                    file = f"{short(name)}-{path.replace('/', '_')}-{abs(hash(text)) % 10**6}.cc"
                    said = "".join(f"// {line}\n" for line in alone.diagnostics)
                    (options.failures / file).write_text(text + said)
            if not included.compiles:
                reasons_with[reason(included.diagnostics)] += 1
    table: dict[str, object] = {}
    for title, groups in (("project", by), ("rung", rungs)):
        for key, pairs in sorted(groups.items()):
            table[f"{title} {key}"] = row(key, pairs)
    table["all"] = row("all", [pair for pairs in by.values() for pair in pairs])
    for title, counts in (("alone", reasons), ("with includes", reasons_with)):
        print(f"why not, {title}:")
        for text, count in counts.most_common(15):
            print(f"  {count:4} {text}")
        table[f"reasons {title}"] = dict(counts.most_common())
    print(f"{time.perf_counter() - start:.0f} s")
    return table


def row(key: str, pairs: list[tuple[bool, bool]]) -> list[int]:
    alone, included = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    count = len(pairs)
    print(
        f"  {key:36} {alone:4} of {count:4} alone {alone / count:6.1%}"
        f"   with includes {included:4} {included / count:6.1%}"
    )
    return [alone, included, count]


if __name__ == "__main__":
    main()
