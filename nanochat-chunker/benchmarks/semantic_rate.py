"""How many documents of `--semantic` compile, beside those without it for the same roots.

Roots are drawn from the documents without it; at each budget and each way the document counts that
holds the root's definition, and one that is not there counts as failed. libclang reads the units
that give facts of the files which the drawn files see, no others: half an hour, not several.

What is drawn, read and compiled is kept in the folder `--work`, part by part, each part as random
as the whole: a run that was cut goes on. A folder holds the results of one state of the program.
"""

import json
import pickle
import random
import resource
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, lru_cache, partial
from pathlib import Path

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
from nanochat_chunker.verify.reasons import reason

PART = 100  # roots, after which there is a figure
UNITS = 8  # of one job
ROOTS = 6  # of one job


class OnlyFor(Checker):
    """Checks the documents that hold some lines, since only one of a file's is looked at."""

    lines = ()

    def complaints(self, text, c, quick=False):
        held = all(line in text for line in self.lines)
        return super().complaints(text, c, quick) if held else []


class Project:
    """A project as every process needs it."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.name = short(self.folder.name)
        self.texts = load(self.folder)
        self.indexes = {path: index_file(path, text) for path, text in self.texts.items()}
        self.includes = {path: find_includes(text) for path, text in self.texts.items()}

    @cached_property
    def reader(self):
        files = {
            path: SourceFile(index, self.is_plain(path)) for path, index in self.indexes.items()
        }
        return ProjectReader(self.folder, self.name, files, self.texts.__getitem__)

    def is_plain(self, path):
        text = self.texts[path]
        return text.isascii() and (self.folder / path).stat().st_size == len(text)

    def plain(self, budget):
        indexes = list(self.indexes.values())
        return ProjectSlicer(
            indexes, self.texts.__getitem__, self.settings(budget), ByteMeter().units
        )

    def semantic(self, budget, facts):
        checker = OnlyFor()
        indexes = list(self.indexes.values())
        return checker, semantic_slicer(
            indexes, facts, self.texts.__getitem__, self.settings(budget), ByteMeter().units,
            checker,
        )  # fmt: skip

    def settings(self, budget):
        return SliceOptions(budget * 4, project=self.name)


@lru_cache(maxsize=1)
def project_of(folder: str) -> Project:
    slicers.cache_clear()
    return Project(folder)


def roots_job(folder, budget):
    """The roots of a project's documents without libclang."""
    project = Project(folder)
    slicer = project.plain(budget)
    return [piece.root for path in sorted(project.texts) for piece in slicer.slices_of(path)]


def units_job(folder, paths):
    """The units that read what files see, of those of a whole run."""
    project = project_of(folder)
    around = project.plain(16384).graph.project
    seen = 0
    for path in paths:
        seen |= around.context(path)
    needed = {path for path, bit in around.bit.items() if seen >> bit & 1}
    return needed, [
        unit
        for unit in units_of(project.includes, project.name)
        if not needed.isdisjoint(unit.wanted)
    ]


def read_job(folder, units):
    """The facts that units give, and the CPU seconds that took."""
    project = project_of(folder)
    reader = project.reader
    start = time.process_time()
    found = {}
    for unit in units:
        try:
            found[unit] = reader.read(unit)
        except OSError as error:
            print("  ", unit.path, error)
    size = sum(len(project.texts[path]) for facts in found.values() for path in facts)
    return found, time.process_time() - start, size


@lru_cache(maxsize=2)
def slicers(folder, budget, facts_file):
    project = project_of(folder)
    facts = pickle.loads(Path(facts_file).read_bytes())
    return project.plain(budget), project.semantic(budget, facts), facts


def rows_job(folder, roots, budgets, facts_file, compiler, failures):
    """What became of roots: for each way and budget why its document fails, or ''."""
    rows = [{"project": project_of(folder).name} for _ in roots]
    spent = Counter({"semantic slicing": -cpu(children=True)})
    for budget in budgets:
        plain, (checker, semantic), facts = slicers(folder, budget, facts_file)
        for root, row in zip(roots, rows, strict=True):
            row["fallback"] = facts[root.path].fallback if root.path in facts else "not read"
            checker.lines = first_lines(project_of(folder).texts[root.path], root)
            for way, made in (("plain", plain), ("semantic", semantic)):
                start = cpu()
                piece = holding(made, root)
                spent[f"{way} slicing"] += cpu() - start
                row[f"{way} {budget}"] = verdict(compiler, piece, failures)
                row[f"{way} {budget} rung"] = piece.rung if piece else ""
        checker.close()  # its time counts once it has ended
    spent["semantic slicing"] += cpu(children=True)
    return rows, spent


def first_lines(text, root):
    """The first lines of a root that are surely of it: what follows a directive may be left out."""
    found = []
    for line in map(str.strip, text.split("\n")[root.line - 1 : root.line + 5]):
        if line.startswith("#"):
            break
        found.append(line)
        if line.endswith((";", "}")):
            break
    return found


def cpu(children=False):
    used = resource.getrusage(resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def holding(slicer, root):
    for piece in slicer.slices_of(root.path):
        if any(each.line == root.line and each.name == root.name for each in piece.roots):
            return piece
    return None


def verdict(compiler, piece, failures):
    if piece is None:
        return "no document of this root"
    done = compiled(compiler, piece.text, piece.root.path.endswith(".c"))
    if done.compiles:
        return ""
    if failures:
        failures.mkdir(parents=True, exist_ok=True)
        said = "".join(f"// {line}\n" for line in done.diagnostics)
        file = f"{piece.root.path.replace('/', '_')}-{piece.root.line}-{len(piece.text)}.cc"
        (failures / file).write_text(piece.text + said + f"// {piece.rung}\n")
    return reason(done.diagnostics)


@lru_cache(maxsize=50)
def compiled(compiler, text, in_c):
    """Documents of both ways and budgets are often equal."""
    return compiler.compile(text, c=in_c)


def compare(options, compiler) -> None:
    print("builtin headers:", builtin_headers().origin)
    options.work.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.workers) as pool:
        sample = draw(options, pool)
        rows, spent, read = [], Counter(), defaultdict(dict)
        for number in range(0, len(sample), PART):
            make = partial(
                run_part, options, pool, compiler, sample[number : number + PART], read, number
            )
            part = kept(options.work / f"part-{number}.pkl", make)
            rows += part["rows"]
            spent.update(part["spent"])
            read = part["read"]
            report(rows, sorted(options.budgets, reverse=True), spent, read)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))


def kept(file, make):
    """What `make` makes, or made in an earlier run."""
    if not file.exists():
        value = pickle.dumps(make(), pickle.HIGHEST_PROTOCOL)
        file.with_suffix(".tmp").write_bytes(value)
        file.with_suffix(".tmp").rename(file)
    return pickle.loads(file.read_bytes())


def draw(options, pool):
    """(folder, root) at random."""
    budget = options.draw_at or max(options.budgets)
    folders = [str(options.folder / name) for name in names(options.folder, options.only)]

    def make():
        made = pool.map(roots_job, folders, [budget] * len(folders))
        return [(f, root) for f, roots in zip(folders, made, strict=True) for root in roots]

    everything = kept(options.work / "roots.pkl", make)
    print(f"{len(everything)} documents at {budget}", flush=True)
    rng = random.Random(options.seed)
    return rng.sample(everything, min(options.sample, len(everything)))


def run_part(options, pool, compiler, part, read, number):
    """Reads what is new of the units, by folder and unit in `read`, then slices and compiles."""
    drawn, rows = defaultdict(list), []
    for folder, root in sorted(part, key=lambda each: (each[0], each[1].path)):
        drawn[folder].append(root)
    make = partial(read_part, pool, drawn, read)
    read, spent = kept(options.work / f"read-{number}.pkl", make)
    print(f"{number} to {number + len(part)}: {spent['units']} units read", flush=True)
    futures = []
    for folder, roots in drawn.items():
        file = options.work / f"facts-{Path(folder).name}-{number}.pkl"
        file.write_bytes(pickle.dumps(best(read[folder])))
        for at in range(0, len(roots), ROOTS):
            futures.append(pool.submit(
                rows_job, folder, roots[at : at + ROOTS], options.budgets, str(file), compiler,
                options.failures,
            ))  # fmt: skip
    for future in futures:
        found, seconds = future.result()
        rows += found
        spent.update(seconds)
        bad = sum(bool(row[f"semantic {max(options.budgets)}"]) for row in rows)
        print(f"  {len(rows)} roots, {bad} fail", flush=True)
    return {"rows": rows, "spent": spent, "read": read}


def read_part(pool, drawn, read):
    """`read` with the units that the roots need beside those, and what they took."""
    spent = Counter()
    needs = dict(zip(drawn, pool.map(units_job, drawn, drawn_paths(drawn)), strict=True))
    for again in (False, True):
        jobs = []
        for folder, (needed, units) in needs.items():
            if again:
                units = unread(needed, units, best(read[folder]))
            left = [unit for unit in units if unit not in read[folder]]
            jobs += [(folder, left[at : at + UNITS]) for at in range(0, len(left), UNITS)]
        read_all = pool.map(read_job, [job[0] for job in jobs], [job[1] for job in jobs])
        for (folder, units), done in zip(jobs, read_all, strict=True):
            found, seconds, size = done
            read[folder].update(found)
            spent.update({"reading": seconds, "units": len(units), "bytes": size})
    return read, spent


def drawn_paths(drawn):
    return [{root.path for root in roots} for roots in drawn.values()]


def best(read):
    """The facts of each file by the unit that reads it best."""
    facts = {}
    for found in read.values():
        for path, each in found.items():
            old = facts.get(path)
            quality = (bool(each.fallback), len(each.errors))
            if old is None or quality < (bool(old.fallback), len(old.errors)):
                facts[path] = each
    return facts


def unread(needed, units, facts):
    """Headers that no unit read well, by themselves."""
    own = {unit.path for unit in units}
    return [
        UnitOrder(path, (path,))
        for path in sorted(needed - own)
        if path not in facts or facts[path].fallback or facts[path].errors
    ]


def report(rows, budgets, spent, read) -> None:
    total = len(rows)
    fallback = Counter(f.fallback or "read" for of in read.values() for f in best(of).values())
    print("\nfiles read:", dict(fallback.most_common()))
    for budget in budgets:
        print(f"{budget} tokens, {total} roots")
        for way in ("plain", "semantic"):
            passed = sum(not row[f"{way} {budget}"] for row in rows)
            print(f"  {way:10} {passed} pass, {passed / total:.1%}")
        good = [row for row in rows if not row["fallback"]]
        passed = sum(not row[f"semantic {budget}"] for row in good)
        print(f"  semantic, of {len(good)} roots in files that did not fall back: {passed}")
        for title in ("project", f"semantic {budget} rung", f"plain {budget} rung"):
            groups = defaultdict(list)
            for row in rows:
                groups[row[title]].append(row)
            print(f"  by {title}:")
            for key, group in sorted(groups.items()):
                counts = [sum(not r[f"{w} {budget}"] for r in group) for w in ("plain", "semantic")]
                print(f"    {key:40} plain {counts[0]:4} semantic {counts[1]:4} of {len(group)}")
        for way in ("plain", "semantic"):
            reasons = Counter(row[f"{way} {budget}"] for row in rows if row[f"{way} {budget}"])
            print(f"  why not, {way}:")
            for text, count in reasons.most_common(15):
                print(f"    {count:4} {text[:110]}")
    rate = spent["bytes"] / 1e6 / max(1e-9, spent["reading"])
    print(f"reading: {spent['units']} units, {spent['bytes'] / 1e6:.1f} MB in "
          f"{spent['reading']:.0f} s CPU, {rate:.3f} MB/s")  # fmt: skip
    print(f"slicing with looks and compiling: {spent['semantic slicing']:.0f} s CPU", flush=True)
