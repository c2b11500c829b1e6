"""Chooses a backend by timing the candidates at the run's own shapes, and remembers the times.

Each candidate is timed in a process of its own (see `bench.jobs`), compiled as the run would be,
so a crash or a lack of memory costs a candidate and not the run. Rank 0 measures; the others get
its times through torchrun's store, so all come to the same choice.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from nanochat.backend import Hook, Problem, Target, installed_version
from nanochat.bench.jobs import Job, Outcome, Runner, run_job
from nanochat.caches import cache_folder
from nanochat.errors import NanochatError, UsageError
from nanochat.registry import Registered

FORMAT = 1
WAIT = timedelta(minutes=30)
"""How long the other ranks wait for the first one's times."""

NOISE = 0.03
"""Times this close are equal: the same kernel differs by up to 2% from run to run (H100)."""

Rows = dict[str, Outcome]


def cache_file() -> Path:
    """Where the times are kept."""
    return cache_folder() / "measured.json"


class Cache:
    """Times by what they were measured for. Whatever is wrong with the file is told once."""

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self.path = path
        self._say = say
        self._told = False

    def get(self, key: Mapping[str, Any]) -> Rows | None:
        entry = self._read().get(_digest(key))
        if entry is None:
            return None
        try:
            return {name: Outcome.from_dict(row) for name, row in entry["rows"].items()}
        except (TypeError, KeyError, AttributeError) as error:
            self._tell(f"an entry of {self.path} cannot be used ({error}): measuring again")
            return None

    def put(self, key: Mapping[str, Any], rows: Rows) -> None:
        """Add an entry; a reader sees the old file or the new one, a failure is only told."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                entries = self._read()
                kept = {name: row.as_dict() for name, row in rows.items()}
                entries[_digest(key)] = {"key": dict(key), "rows": kept}
                descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".measured-")
                try:
                    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                        json.dump({"format": FORMAT, "entries": entries}, file, indent=1)
                    os.replace(name, self.path)
                except BaseException:
                    os.unlink(name)
                    raise
        except OSError as error:
            self._tell(f"the times cannot be kept in {self.path}: {error.strerror}")

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["format"] != FORMAT:
                return {}
            entries = found["entries"]
            if not isinstance(entries, dict):
                raise TypeError("it has no entries")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._tell(f"{self.path} cannot be read ({error}): measuring again")
            return {}
        return entries

    def _tell(self, text: str) -> None:
        if not self._told:
            self._say(text)
        self._told = True


class Measurer:
    """The `measure` of `make_plan`. `windows` are those of the model's layers, one each."""

    def __init__(
        self,
        target: Target,
        *,
        device: str,
        windows: Sequence[int | None],
        compile: bool,
        remeasure: bool = False,
        run: Runner = run_job,
        say: Callable[[str], None] = print,
    ) -> None:
        self._target = target
        self._device = device
        self._windows = windows
        self._compile = compile
        self._remeasure = remeasure
        self._run = run
        self._rank = int(os.environ.get("RANK", "0"))
        self._say = say if self._rank == 0 else _silent
        self._cache = Cache(cache_file(), self._say)

    def __call__(
        self, hook: Hook, candidates: Sequence[Registered], problem: Problem
    ) -> tuple[Registered, str, Mapping[str, str]]:
        """Raises UsageError if no candidate could be timed."""
        if len(candidates) == 1:
            return candidates[0], "the only one that can run here", {}
        rows = self._rows(hook, candidates, problem)
        times = {name: row.ms for name, row in rows.items() if row.ms is not None}
        if not times:
            told = "; ".join(f"{name}: {_why(row)}" for name, row in rows.items())
            error = UsageError(f"no {hook} backend could be timed: {told}")
            if self._rank:
                raise SystemExit(error.status)
            raise error
        fastest = min(times.values())
        # Candidates come in the order of `auto`, so what cannot be told apart is chosen alike.
        best = next(
            name
            for name in (c.backend.name for c in candidates)
            if name in times and times[name] <= (1 + NOISE) * fastest
        )
        self._say(table(hook, rows))
        winner = next(c for c in candidates if c.backend.name == best)
        lost = {
            name: f"measured {times[name]:.3f} ms, {times[name] / fastest:.2f}x the fastest"
            if name in times
            else f"not timed: {_why(row)}"
            for name, row in rows.items()
            if name != best
        }
        others = ", ".join(f"{name} {times[name]:.3f}" for name in times if name != best)
        reason = f"the fastest measured: {times[best]:.3f} ms"
        if times[best] > fastest:
            reason = f"measured {times[best]:.3f} ms, within {NOISE:.0%} of the fastest"
        return winner, f"{reason} ({others})" if others else reason, lost

    def _rows(self, hook: Hook, candidates: Sequence[Registered], problem: Problem) -> Rows:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return self._known_or_timed(hook, candidates, problem)
        store, name = _store(), f"nanochat/measured/{hook}"
        if self._rank:
            return _from_first(store, name)
        try:
            rows = self._known_or_timed(hook, candidates, problem)
        except BaseException:
            store.set(name, "null")
            raise
        store.set(name, json.dumps({n: row.as_dict() for n, row in rows.items()}))
        return rows

    def _known_or_timed(
        self, hook: Hook, candidates: Sequence[Registered], problem: Problem
    ) -> Rows:
        key = self._key(hook, candidates, problem)
        known = None if self._remeasure else self._cache.get(key)
        if known is not None:
            self._say(f"{hook}: times from {self._cache.path} (--remeasure takes them anew)")
            return known
        rows: Rows = {}
        for candidate in candidates:
            name = candidate.backend.name
            self._say(f"{hook}: timing {name} ...")
            rows[name] = self._run(
                Job(
                    work=hook,  # type: ignore[arg-type]
                    backends={hook: name},
                    device=self._device,
                    dtype=getattr(problem, "dtype", ""),
                    problem=asdict(problem),
                    windows=list(self._windows) if hook == "attention" else [],
                    compile=self._compile,
                )
            )
        # A crash may have passing reasons: only what is complete is kept.
        if all(row.state != "failed" for row in rows.values()):
            self._cache.put(key, rows)
        return rows

    def _key(
        self, hook: Hook, candidates: Sequence[Registered], problem: Problem
    ) -> dict[str, Any]:
        """All that the times depend on and that can be known without importing anything."""
        wrapped = {r.distribution for c in candidates for r in c.backend.requires}
        return {
            "hook": hook,
            "target": asdict(replace(self._target, count=1)),
            "problem": asdict(problem),
            "windows": list(self._windows) if hook == "attention" else [],
            "compiled": self._compile,
            "candidates": {c.backend.name: c.origin for c in candidates},
            "versions": {d: installed_version(d) for d in sorted({"torch", "triton", *wrapped})},
        }


def table(title: str, rows: Rows) -> str:
    """What was timed, in aligned columns, the fastest first."""
    best = min((r.ms for r in rows.values() if r.ms is not None), default=None)
    lines = [(title, "ms", "ratio", "extra peak", "state")]
    for name, row in sorted(rows.items(), key=lambda r: (r[1].ms is None, r[1].ms or 0.0)):
        extra = "" if row.extra is None else f"{row.extra / 2**20:.0f} MiB"
        ms = "" if row.ms is None else f"{row.ms:.3f}"
        ratio = f"{row.ms / best:.2f}" if row.ms is not None and best else ""
        lines.append((name, ms, ratio, extra, "ok" if row.ok else _why(row)))
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in range(1, 4)), line[4]]
        )
        for line in lines
    )


def _why(row: Outcome) -> str:
    return f"{row.state}: {row.reason}"


def _silent(_: str) -> None:
    """Only the first rank speaks."""


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two runs from dropping each other's entries, where the system has locks."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    with path.open("w") as file:
        # A file system without locks may lose an entry, which is then measured again.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _store() -> Any:
    """The store that torchrun keeps for its ranks."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise UsageError(
            "measuring with several ranks needs torchrun, through which they share the times",
            "Start with torchrun, or measure in one process and name the winner",
        )
    import torch.distributed as dist

    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=WAIT
    )
    return dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)


def _from_first(store: Any, name: str) -> Rows:
    try:
        text = store.get(name)
    except RuntimeError as error:
        raise NanochatError(f"rank 0 did not share its times: {error}") from error
    found = json.loads(text)
    if found is None:
        raise SystemExit(1)  # rank 0 has told why
    return {n: Outcome.from_dict(row) for n, row in found.items()}
