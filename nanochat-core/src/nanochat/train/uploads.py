"""Sends checkpoints to their address in the background: one at a time, of those waiting the newest.

A failure is told and tried again, later each time, until it works or a newer checkpoint follows. At
the end of a run `finish` waits; after a machine's notice it waits no longer than the machine lasts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from nanochat.train import checkpoint
from nanochat.train.bucket import reason
from nanochat.train.config import TrainConfig
from nanochat.train.record import LOG
from nanochat.train.remote import RemoteRun, amount
from nanochat.train.stopping import StopRequest
from nanochat.train.transfer import Cancelled, Opened, Transfer

FIRST_DELAY, LONGEST_DELAY = 2.0, 120.0
LAST_TRIES = 5
"""At the end of a run, when no newer checkpoint will follow."""


@dataclass(frozen=True)
class Uploaded:
    """A checkpoint that is complete at its address."""

    step: int
    address: str
    told: str


class Uploads:
    """The uploads of a run. `say` is called from a thread of its own."""

    def __init__(
        self,
        remote: RemoteRun,
        log: Path,
        say: Callable[[str], None],
        stop: StopRequest,
        *,
        grace: float = 30.0,
        keep: int = 0,
    ) -> None:
        self._remote = remote
        self._log = log
        self._say = say
        self._stop = stop
        self._grace = grace
        self._keep = keep
        self._changed = threading.Condition()
        self._waiting: Opened | None = None
        self._sending: tuple[Opened, Transfer] | None = None
        self._ending = False
        self._replaced: threading.Thread | None = None
        self.done: Uploaded | None = None
        self.failure = ""
        self._thread = self._start()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        thread.start()
        return thread

    def add(self, step: int, folder: Path) -> None:
        """Send a checkpoint when the one on its way is there; it replaces one that still waits.

        Its files must be written. They may be moved, flushed or deleted meanwhile.
        """
        opened = self._remote.open(step, folder)
        with self._changed:
            passed, self._waiting = self._waiting, opened
            self._changed.notify_all()
        if passed is not None:
            passed.close()
            self._say(f"step {passed.step} is not uploaded: step {step} is newer and goes first")
        if self._stop.left(self._grace) is not None:
            # Whoever saves may still flush the files to a slow disk: time that is to be used.
            threading.Thread(target=self._urge, daemon=True).start()

    def __enter__(self) -> Uploads:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, Exception) and not self._ending:
            self.finish()  # the run failed; what it saved is still wanted
        self.close()

    def finish(self) -> str:
        """Wait until all is sent. What became of it, in words for the end of a message.

        `done` and `failure` say the same to programs. After SIGTERM or a machine's notice it waits
        no longer than the grace from then on, and tries first what can still arrive.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        while self._thread.is_alive():
            left = self._stop.left(self._grace)
            if left is not None:
                self._hurry(left)
                if left <= 0:
                    self._give_up()
                    break
            self._thread.join(0.1 if left is None else min(0.1, max(left, 0.001)))
        if self.failure:
            there = f"; complete there is {self.done.address}" if self.done else ""
            return f"NOT uploaded to {self._remote.address}: {self.failure}{there}"
        return f"uploaded as {self.done.address}: {self.done.told}" if self.done else ""

    def close(self) -> None:
        """Give up what is left."""
        with self._changed:
            self._ending, waiting, self._waiting = True, self._waiting, None
            if waiting is not None:
                waiting.close()
            if self._sending is not None:
                self._sending[1].cancel()
            self._changed.notify_all()

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._ending)
                if self._waiting is None or self._replaced is me:
                    break
                opened, self._waiting = self._waiting, None
                sending = self._sending = (opened, Transfer())
            self._deliver(*sending)
            opened.close()
            with self._changed:
                if self._sending is sending:
                    self._sending = None
        if self.done is not None and self._replaced is not me:
            self._also(lambda: self._remote.put_log(self._log))  # with what came after the save

    def _deliver(self, opened: Opened, transfer: Transfer) -> None:
        """Send one checkpoint, however often it takes."""
        attempt, ending = 0, self._ending
        while not self._send(opened, transfer):
            attempt += 1
            with self._changed:
                if self._waiting is not None or (ending and attempt >= LAST_TRIES):
                    return
            delay = min(FIRST_DELAY * 2 ** (attempt - 1), LONGEST_DELAY)
            self._say(f"step {opened.step}: trying to upload it again in {delay:.0f}s")
            with self._changed:
                self._changed.wait_for(
                    lambda before=ending: self._waiting is not None or self._ending != before,
                    timeout=delay,
                )
                if self._waiting is not None:
                    return
                if self._ending != ending:  # the run is over: no more long pauses
                    attempt, ending = 0, True

    def _send(self, opened: Opened, transfer: Transfer) -> bool:
        """Try once. True if there is nothing more to try."""
        step = opened.step
        transfer.begin()
        try:
            self._remote.upload(opened, transfer)
        except Cancelled:
            return True
        except Exception as error:
            self.failure = reason(error)
            self._say(
                f"step {step} could not be uploaded to {self._remote.address}: {self.failure}"
            )
            return False
        self.failure = ""
        told = amount(opened.size, time.monotonic() - transfer.started)
        self.done = Uploaded(step, self._remote.address_of(step), told)
        self._say(f"step {step}: uploaded {self.done.address}, {told}")
        self._also(lambda: self._remote.put_log(self._log))
        self._also(lambda: self._remote.tidy(step, self._keep))
        return True

    def _also(self, action: Callable[[], None]) -> None:
        """What a checkpoint does not need: its failure is told and does no harm."""
        try:
            action()
        except Exception as error:
            self._say(f"{self._remote.address} was not kept tidy: {reason(error)}")

    def _urge(self) -> None:
        """Hurry until there is nothing to choose, or no time."""
        while (left := self._stop.left(self._grace)) is not None and left > 0:
            if self._waiting is None:
                return
            self._hurry(left)
            time.sleep(0.1)

    def _hurry(self, left: float) -> None:
        """Choose between an older checkpoint on its way and the newest, which waits for it."""
        with self._changed:
            if self._sending is None or self._waiting is None:
                return
            (older, transfer), newest = self._sending, self._waiting
            if finishes_older(transfer, newest.size, left):
                return
            transfer.cancel()
            # The thread may hang in a request for longer than the machine lasts.
            self._sending, self._replaced = None, self._thread
            self._thread = self._start()
        self._say(f"step {older.step} is given up on its way: step {newest.step} goes first")

    def _give_up(self) -> None:
        with self._changed:
            sending, waiting = self._sending, self._waiting
        opened = waiting or (sending[0] if sending else None)
        self.close()
        if opened is None or (self.done and self.done.step == opened.step):
            return  # all but tidying up was done
        told = f"step {opened.step} did not arrive within {self._grace:.0f}s of the notice"
        if sending is not None and waiting is None and opened.size:
            told += f" ({100 * sending[1].sent / opened.size:.0f}% did)"
        self.failure = told


def finishes_older(transfer: Transfer, newest: int, left: float) -> bool:
    """True if an upload on its way is to be finished before the newest checkpoint, of so many
    bytes, is begun, with so many seconds left: if both would arrive, or the older one alone.

    Asked again and again, it lets go of an upload that does not get on while there is time.
    """
    rate = transfer.rate
    if rate is None or time.monotonic() - transfer.moved > left / 2:
        return False
    older = max(transfer.total - transfer.sent, 0) / rate
    return older + newest / rate <= left or older <= left < newest / rate


def open_uploads(
    config: TrainConfig,
    folder: Path,
    source: Path | None,
    say: Callable[[str], None],
    stop: StopRequest,
    stack: ExitStack,
) -> Uploads | None:
    """The uploads of a run into its bucket, None where it has none. A checkpoint that the run goes
    on from and that never arrived there is the first."""
    if not config.checkpoint_bucket:
        return None
    remote = RemoteRun.of(config.checkpoint_bucket, folder)
    say(f"checkpoints are uploaded to {remote.address}")
    uploads = Uploads(
        remote,
        folder / LOG,
        say,
        stop,
        grace=config.grace_seconds,
        keep=config.keep_checkpoints,
    )
    stack.enter_context(uploads)
    continued = source is not None and source.parent.parent == folder
    step = checkpoint.step_of(source.name) if source is not None else None
    if source is not None and step is not None and continued and step not in remote.steps():
        uploads.add(step, source)
    return uploads
