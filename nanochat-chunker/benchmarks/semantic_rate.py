"""How many documents of `--semantic` compile, beside those without it for the same roots.

Roots are drawn from the documents without it at the largest budget; at each budget and each way the
document counts that holds the root's definition, and one that is not there counts as failed. Only
what the drawn files reach is read by libclang, in the drawn files where they reach it: this takes
an hour, all of it would take several.
"""

import json
import random
import time
from collections import Counter, defaultdict
from concurrent.futures import Future, ThreadPoolExecutor

from projects_on_disk import load, names, short

from nanochat_chunker.includes import find_includes
from nanochat_chunker.semantic import (
    ProjectReader,
    SourceFile,
    UnitOrder,
    semantic_slicer,
    units_of,
)
from nanochat_chunker.semantic.checking import Checker
from nanochat_chunker.semantic.headers import builtin_headers
from nanochat_chunker.slicer import ProjectSlicer
from nanochat_chunker.slicing import SliceOptions, index_file
from nanochat_chunker.tokens import ByteMeter
from nanochat_chunker.verify.compiler import Outcome
from nanochat_chunker.verify.reasons import reason

KNOWN: dict[tuple[str, bool], Outcome] = {}  # documents of both ways and budgets are often equal


class OnlyFor(Checker):
    """Checks the documents that hold a line, since only one of a file's is looked at."""

    line = ""
    first: list[bool] | None = None

    def complaints(self, text, c):
        if self.line not in text:
            return []
        found = super().complaints(text, c)
        if self.first is not None and not self.first:
            self.first.append(not found)
        return found


def compare(options, compiler) -> None:
    meter = ByteMeter()
    budgets = sorted(options.budgets, reverse=True)
    print("builtin headers:", builtin_headers().origin)
    everything = []
    for name in names(options.folder, options.only):
        texts = load(options.folder / name)
        indexes = [index_file(path, text) for path, text in texts.items()]
        slicer = plain_slicer(name, indexes, texts, options.draw_at or budgets[0], meter)
        for path in sorted(texts):
            everything.extend((name, piece.root) for piece in slicer.slices_of(path))
    rng = random.Random(options.seed)
    sample = rng.sample(everything, min(options.sample, len(everything)))
    print(f"{len(everything)} documents at {options.draw_at or budgets[0]}", flush=True)
    rows: list[dict] = []
    spent: Counter[str] = Counter()
    facts: dict[str, dict] = defaultdict(dict)
    # A first part is as random as the whole, and there sooner.
    for part in (sample[: options.first], sample[options.first :]):
        drawn: dict[str, list] = defaultdict(list)
        for name, root in part:
            drawn[name].append(root)
        with ThreadPoolExecutor(options.workers) as pool:
            for name, roots in sorted(drawn.items()):
                rows += project(options, name, roots, facts[name], meter, compiler, pool, spent)
        for row in rows:
            row.update({k: v.result() for k, v in row.items() if isinstance(v, Future)})
        if part:
            fallback = Counter(
                each.fallback or "read" for of in facts.values() for each in of.values()
            )
            report(rows, budgets, spent, fallback)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))


def plain_slicer(name, indexes, texts, budget, meter):
    settings = SliceOptions(budget * 4, project=short(name))
    return ProjectSlicer(indexes, texts.__getitem__, settings, meter.units)


def project(options, name, roots, facts, meter, compiler, pool, spent):
    budgets = sorted(options.budgets, reverse=True)
    texts = load(options.folder / name)
    folder = options.folder / name
    indexes = {path: index_file(path, text) for path, text in texts.items()}
    slicer = plain_slicer(name, list(indexes.values()), texts, budgets[0], meter)
    read(folder, name, indexes, texts, slicer, {root.path for root in roots}, facts, spent)
    checker = OnlyFor()
    rows = [
        {"project": short(name), "path": root.path, "name": root.name, "line": root.line,
         "fallback": facts[root.path].fallback if root.path in facts else "not_reached"}
        for root in roots
    ]  # fmt: skip
    for budget in budgets:
        plain = plain_slicer(name, list(indexes.values()), texts, budget, meter)
        settings = SliceOptions(budget * 4, project=short(name))
        semantic = semantic_slicer(
            list(indexes.values()), facts, texts.__getitem__, settings, meter.units, checker
        )
        for root, row in zip(roots, rows, strict=True):
            checker.line = texts[root.path].split("\n")[root.line - 1].strip()
            for way, made in (("plain", plain), ("semantic", semantic)):
                checker.first = []
                start = time.process_time()
                piece = holding(made, root)
                spent[f"{way} slicing"] += time.process_time() - start
                row[f"{way} {budget}"] = pool.submit(verdict, compiler, piece, options)
                row[f"{way} {budget} rung"] = piece.rung if piece else ""
            row[f"first {budget}"] = checker.first == [True]
    checker.close()
    print(f"{short(name):16} {len(roots)} roots, {len(facts)} files read", flush=True)
    return rows


def holding(slicer, root):
    for piece in slicer.slices_of(root.path):
        if any(each.line == root.line and each.name == root.name for each in piece.roots):
            return piece
    return None


def read(folder, name, indexes, texts, slicer, wanted, facts, spent):
    """Adds the facts of what the files of the roots see."""
    files = {
        path: SourceFile(
            index, texts[path].isascii() and (folder / path).stat().st_size == len(texts[path])
        )
        for path, index in indexes.items()
    }
    reader = ProjectReader(folder, short(name), files, texts.__getitem__)
    graph = slicer.graph
    seen = 0
    for path in wanted:
        seen |= graph.context(path)
    needed = sorted(
        path for path, bit in graph.project.bit.items() if seen >> bit & 1 and path not in facts
    )
    owners = {}
    includes = {path: find_includes(text) for path, text in texts.items()}
    for unit in units_of(includes, short(name), first=wanted):
        owners.update(dict.fromkeys(unit.wanted, unit))
    for unit in {owners[path].path: owners[path] for path in needed}.values():
        take(reader, unit, facts, texts, spent)
    for path in needed:
        known = facts.get(path)
        if owners[path].path != path and (known is None or known.fallback or known.errors):
            take(reader, UnitOrder(path, (path,)), facts, texts, spent)


def take(reader, unit, facts, texts, spent):
    start = time.process_time()
    try:
        found = reader.read(unit)
    except OSError as error:
        print("  ", unit.path, error)
        return
    spent["reading"] += time.process_time() - start
    spent["units"] += 1
    for path, each in found.items():
        old = facts.get(path)
        quality = (bool(each.fallback), len(each.errors))
        if old is None or quality < (bool(old.fallback), len(old.errors)):
            facts[path] = each
            spent["bytes"] += len(texts[path]) if old is None else 0


def verdict(compiler, piece, options):
    if piece is None:
        return "no document of this root"
    in_c = piece.root.path.endswith(".c")
    if (piece.text, in_c) not in KNOWN:
        KNOWN[piece.text, in_c] = compiler.compile(piece.text, c=in_c)
    done = KNOWN[piece.text, in_c]
    if done.compiles:
        return ""
    if options.failures:
        options.failures.mkdir(parents=True, exist_ok=True)
        said = "".join(f"// {line}\n" for line in done.diagnostics)
        file = f"{piece.root.path.replace('/', '_')}-{piece.root.line}-{len(piece.text)}.cc"
        (options.failures / file).write_text(piece.text + said + f"// {piece.rung}\n")
    return reason(done.diagnostics)


def report(rows, budgets, spent, fallback) -> None:
    total = len(rows)
    print("files read:", dict(fallback.most_common()))
    for budget in budgets:
        print(f"\n{budget} tokens, {total} roots")
        for way in ("plain", "semantic"):
            key = f"{way} {budget}"
            passed = sum(not row[key] for row in rows)
            print(f"  {way:10} {passed} pass, {passed / total:.1%}")
        print(f"  before mending, by libclang: {sum(row[f'first {budget}'] for row in rows)}")
        good = [row for row in rows if not row["fallback"]]
        passed = sum(not row[f"semantic {budget}"] for row in good)
        print(f"  semantic, of {len(good)} roots in files that did not fall back: {passed}")
        for title in ("project", f"semantic {budget} rung"):
            groups = defaultdict(list)
            for row in rows:
                groups[row[title]].append(row)
            for key, group in sorted(groups.items()):
                counts = [sum(not r[f"{w} {budget}"] for r in group) for w in ("plain", "semantic")]
                print(f"    {key:40} plain {counts[0]:4} semantic {counts[1]:4} of {len(group)}")
        for way in ("plain", "semantic"):
            reasons = Counter(row[f"{way} {budget}"] for row in rows if row[f"{way} {budget}"])
            print(f"  why not, {way}:")
            for text, count in reasons.most_common(12):
                print(f"    {count:4} {text[:110]}")
    rate = spent["bytes"] / 1e6 / max(1e-9, spent["reading"])
    print(f"\nreading: {spent['units']} units, {spent['bytes'] / 1e6:.1f} MB in "
          f"{spent['reading']:.0f} s CPU, {rate:.3f} MB/s")  # fmt: skip
    for way in ("plain", "semantic"):
        print(f"slicing, {way}: {spent[f'{way} slicing']:.0f} s CPU of this process", flush=True)
