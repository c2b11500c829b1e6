"""Where a loader stands, as plain values for a checkpoint, and how ranks take it up again.

A position is (epoch, shard, row): everything before it in that order has been taken by its rank.
Documents that were taken and not yet trained on are kept as references, not as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple
from zlib import crc32

from nanochat.data.packing import Document, PackingCounts
from nanochat.errors import UsageError

VERSION = 1
REMEDY = "Resume with the data as it was, or start a new run from the checkpoint's weights"


class Position(NamedTuple):
    """The next row to look at. Positions compare in the order in which rows are read."""

    epoch: int = 0
    shard: str = ""
    row: int = 0


START = Position()


def owner(shard: str, row: int, world_size: int) -> int:
    """The rank that a document belongs to.

    Ranks take turns by row, so any shard serves any number of ranks; the name shifts the turns, so
    that shards of few rows do not all begin with rank 0.
    """
    return (row + crc32(shard.encode())) % world_size


class Reference(NamedTuple):
    """Tokens `start` to `stop` of the document in a row of a shard."""

    shard: str
    row: int
    epoch: int
    start: int
    stop: int


@dataclass(frozen=True)
class Taken:
    """Documents that another number of ranks has taken: rank r all of its own before positions[r].

    Left behind by a resume with another number of ranks, until all are past these positions.
    """

    world_size: int
    positions: tuple[Position, ...]

    def has(self, at: Position) -> bool:
        return at < self.positions[owner(at.shard, at.row, self.world_size)]

    def is_past(self, at: Position) -> bool:
        return at >= max(self.positions)


@dataclass(frozen=True)
class LoaderState:
    """Everything that one rank's loader needs to go on exactly."""

    rank: int = 0
    world_size: int = 1
    position: Position = START
    tokenizer: str = ""
    """Fingerprint: positions within documents are counted in tokens."""
    validation: str = ""
    """The shard that must stay unseen."""
    shards: Mapping[str, int] = field(default_factory=dict)
    """Rows of the shards referred to (and perhaps of others), by which they are recognised."""
    buffered: Sequence[Document | Reference] = ()
    pending: Document | Reference | None = None
    counts: PackingCounts = field(default_factory=PackingCounts)
    skipped: int = 0
    taken: tuple[Taken, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values; some 20 bytes a buffered document in JSON."""
        names = {document.shard for document in self.buffered}
        if self.pending:
            names.add(self.pending.shard)
        if self.position.shard:
            names.add(self.position.shard)
        number = {name: i for i, name in enumerate(sorted(names))}

        def values(document: Document | Reference) -> list[int]:
            shard, start, stop = number[document.shard], document.start, document.stop
            return [shard, document.row, document.epoch, start, stop]

        state: dict[str, Any] = {
            "version": VERSION,
            "rank": self.rank,
            "world_size": self.world_size,
            "position": list(self.position),
            "tokenizer": self.tokenizer,
            "validation": self.validation,
            "shards": {name: self.shards[name] for name in number},
            "buffered": [values(document) for document in self.buffered],
            "pending": values(self.pending) if self.pending else None,
            "counts": asdict(self.counts),
            "skipped": self.skipped,
        }
        if self.taken:
            state["taken"] = [
                {"world_size": t.world_size, "positions": [list(p) for p in t.positions]}
                for t in self.taken
            ]
        return state

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> LoaderState:
        """Raises UsageError where the values are not those of `as_dict`."""
        try:
            if state["version"] != VERSION:
                raise UsageError(
                    f"the checkpoint's data position has version {state['version']}, "
                    f"this program knows {VERSION}",
                    "Resume with the version that wrote it",
                )
            names = sorted(state["shards"])

            def reference(values: Sequence[int]) -> Reference:
                number, row, epoch, start, stop = values
                return Reference(names[number], row, epoch, start, stop)

            return cls(
                rank=state["rank"],
                world_size=state["world_size"],
                position=Position(*state["position"]),
                tokenizer=state["tokenizer"],
                validation=state["validation"],
                shards=dict(state["shards"]),
                buffered=tuple(map(reference, state["buffered"])),
                pending=reference(state["pending"]) if state["pending"] else None,
                counts=PackingCounts(**state["counts"]),
                skipped=state["skipped"],
                taken=tuple(
                    Taken(t["world_size"], tuple(Position(*p) for p in t["positions"]))
                    for t in state.get("taken", ())
                ),
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(
                f"the checkpoint's data position is damaged ({type(error).__name__}: {error})",
                REMEDY,
            ) from error


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The states of all ranks as one, for a checkpoint that any number of ranks can resume."""
    return {"version": VERSION, "ranks": list(states)}


def resume_state(
    saved: dict[str, Any], rank: int, world_size: int
) -> tuple[LoaderState, str | None]:
    """What `rank` of `world_size` goes on from, and a notice where that is not exact.

    `saved` is a merged state, or one rank's. With as many ranks as before each takes up its own.
    With another number nothing is lost and nothing repeated: the ranks share out the buffered
    documents, go on from the position of the rank that was furthest back, and pass over what the
    others had taken beyond it. A rank whose state is missing counts as being at the beginning
    of the shard that the rank furthest back was reading. Raises UsageError on damaged values.
    """
    ranks = saved.get("ranks", [saved])
    if not isinstance(ranks, (list, tuple)) or not ranks:
        raise UsageError("the checkpoint's data position is damaged (no ranks)", REMEDY)
    known = {state.rank: state for state in map(LoaderState.from_dict, ranks)}
    before = next(iter(known.values())).world_size
    if before == world_size and rank in known:
        return known[rank], None

    back = min(state.position for state in known.values())
    notices = []
    missing = [r for r in range(before) if r not in known]
    for r in missing:
        known[r] = replace(
            known[min(known)],
            rank=r,
            position=back._replace(row=0),
            buffered=(),
            pending=None,
            counts=PackingCounts(),
            skipped=0,
        )
    if missing:
        notices.append(
            f"the checkpoint has no data position of rank {', '.join(map(str, missing))}: "
            f"its documents are read again from the beginning of {back.shard or 'the data'}"
        )
    if before == world_size:
        return known[rank], notices[0]
    notices.append(
        f"resuming on {world_size} ranks what was saved on {before}: "
        "documents are shared out anew, none is lost or repeated, but batches differ"
    )
    return _share_out([known[r] for r in range(before)], rank, world_size), "; ".join(notices)


def _share_out(states: Sequence[LoaderState], rank: int, world_size: int) -> LoaderState:
    positions = tuple(state.position for state in states)
    waiting = [
        reference
        for state in states
        for reference in (*state.buffered, *((state.pending,) if state.pending else ()))
    ]
    back = min(positions)
    first = rank == 0  # totals stay right if one rank carries on those of all
    return LoaderState(
        rank=rank,
        world_size=world_size,
        position=back,
        tokenizer=states[0].tokenizer,
        validation=states[0].validation,
        shards={name: rows for state in states for name, rows in state.shards.items()},
        buffered=waiting[rank::world_size],
        counts=PackingCounts(
            documents=sum(s.counts.documents for s in states) if first else 0,
            tokens=sum(s.counts.tokens for s in states) if first else 0,
            dropped=sum(s.counts.dropped for s in states) if first else 0,
        ),
        skipped=sum(s.skipped for s in states) if first else 0,
        # The filters of an earlier resume are the same on all ranks that still have them.
        taken=(
            Taken(len(states), positions),
            *max((s.taken for s in states), key=len),
        ),
    )
