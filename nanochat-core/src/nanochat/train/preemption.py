"""The notice that a spot machine on Google Compute Engine gives before it is taken back.

A thread waits for the machine's metadata server to say so and then sends this process SIGTERM,
which ends a run with a checkpoint (see `stopping`). It often comes some seconds before the SIGTERM
of the machine's own shutdown. See
https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption and
https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from nanochat.train.stopping import StopRequest

HOST_VARIABLE = "GCE_METADATA_HOST"
_HOST = "metadata.google.internal"
_PRODUCT = Path("/sys/class/dmi/id/product_name")
_PAUSE, _HANGING = 5.0, 60.0


def metadata_host(asked: Literal["auto", "gce", "off"]) -> str | None:
    """The metadata server to listen to, None for none. Looks at a file, not at the network.

    `auto` listens where the variable GCE_METADATA_HOST names a server or the machine says that it
    is one of Google's.
    """
    if asked == "off":
        return None
    host = os.environ.get(HOST_VARIABLE, "")
    if host or asked == "gce":
        return host or _HOST
    try:
        ours = _PRODUCT.read_text(encoding="utf-8", errors="replace").startswith("Google")
    except OSError:
        return None
    return _HOST if ours else None


class Notices:
    """Listens while a run goes on: preemption ends it, an end announced for maintenance asks for a
    save, after which the run goes on until the machine's own SIGTERM.

    `save_wanted` is that wish; whoever saves takes it back. Ranks cannot agree on a step for it, so
    it is for runs of one process.
    """

    def __init__(self, stop: StopRequest, say: Callable[[str], None], *, saves: bool) -> None:
        self.save_wanted = False
        self._stop = stop
        self._say = say
        self._saves = saves
        self._over = threading.Event()

    @contextmanager
    def listening(self, host: str | None) -> Iterator[Notices]:
        """Listen to a metadata server while entered, to nothing without one."""
        if host is not None and self._stop.armed:
            for key, react in (
                ("preempted", self._preempted),
                ("maintenance-event", self._maintained),
            ):
                arguments = (host, key, react, self._say, self._over)
                threading.Thread(target=_listen, args=arguments, name=key, daemon=True).start()
        try:
            yield self
        finally:
            self._over.set()

    def _preempted(self, value: str) -> bool:
        if value.upper() != "TRUE" or self._over.is_set():
            return False
        self._stop.because = "this spot machine is being taken back"
        self._say(f"notice: {self._stop.because}")
        if not self._stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return True

    def _maintained(self, value: str) -> bool:
        if value.startswith("TERMINATE") and not self._over.is_set():
            then = "saving after this step" if self._saves else "SIGTERM will end the run"
            self._say(f"notice: this machine will be stopped for maintenance, {then}")
            self.save_wanted = self._saves
        return False


def _listen(
    host: str,
    key: str,
    react: Callable[[str], bool],
    say: Callable[[str], None],
    over: threading.Event,
) -> None:
    """Call `react` with each value of a key until it returns True; failures are told once."""
    opener = build_opener(ProxyHandler({}))  # the server is on the machine's own link
    address = f"http://{host}/computeMetadata/v1/instance/{key}"
    tag, told, last = "", False, None
    while not over.is_set():
        wait = f"?wait_for_change=true&timeout_sec={_HANGING:.0f}&last_etag={tag}" if tag else ""
        request = Request(address + wait, headers={"Metadata-Flavor": "Google"})
        try:
            with opener.open(request, timeout=_HANGING + 15) as response:
                value = response.read().decode("utf-8", "replace").strip()
                tag = response.headers.get("ETag", "")
        except OSError as error:
            if isinstance(error, HTTPError) and error.code in (403, 404):
                say(f"notice of {key} is not to be had from {host}: HTTP status {error.code}")
                return
            if not told:
                say(f"{host} does not answer ({error}): SIGTERM alone gives notice of {key} so far")
            told, tag = True, ""
            over.wait(_PAUSE)
            continue
        if value != last and react(value):
            return
        last = value
        if not tag:
            over.wait(_PAUSE)
