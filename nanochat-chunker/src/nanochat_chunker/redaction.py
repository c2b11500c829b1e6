"""Secrets and personal data replaced before a text goes anywhere (`--redact`).

What a secret looks like comes from detect-secrets: the detectors of tokens with a form of their
own. Its entropy, keyword and IP address detectors are left out: in C++ they find hash constants,
variables called `token`, and version numbers.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

from nanochat_chunker.errors import UsageError

KINDS = ("secrets", "emails")
_SECRET = "<secret>"
_EMAIL = "<email>"
_LEFT_OUT = frozenset(("IPPublicDetector", "KeywordDetector"))
_PRIVATE_KEY = re.compile(
    r"-----BEGIN[A-Z ]{0,40} PRIVATE KEY(?: BLOCK)?-----.{1,20000}?"
    r"-----END[A-Z ]{0,40} PRIVATE KEY",
    re.DOTALL,
)
_TOKEN = frozenset(string.ascii_letters + string.digits + "_-+/=")
_LOCAL_PART = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}\Z")
_DOMAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,24}\b")

Span = tuple[int, int, str, str]  # start, stop, what it is, what takes its place


class Redactor:
    """Replaces what is found of the given `KINDS` and counts it."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._finders: list[Callable[[str], Iterator[Span]]] = []
        if "secrets" in kinds:
            self._patterns = secret_patterns()
            self._finders += [_private_keys, self._secrets]
        if "emails" in kinds:
            self._finders.append(_emails)

    def redact(self, text: str) -> tuple[str, Counter[str]]:
        """The text without them, and how many of each kind there were."""
        spans = sorted(span for find in self._finders for span in find(text))
        counts: Counter[str] = Counter()
        pieces = []
        done = 0
        for start, stop, name, instead in spans:
            if start < done:  # inside of one already replaced
                continue
            counts[name] += 1
            pieces += [text[done:start], instead]
            done = stop
        return "".join([*pieces, text[done:]]) if pieces else text, counts

    def _secrets(self, text: str) -> Iterator[Span]:
        for name, pattern in self._patterns:
            for match in pattern.finditer(text):
                yield (*_secret_in(match), name, _SECRET)


def _secret_in(match: re.Match[str]) -> tuple[int, int]:
    """The span of the secret. A group may hold all of it, or only its prefix, as `ghp` does."""
    groups = [span for i in range(1, match.re.groups + 1) if (span := match.span(i))[0] >= 0]
    if not groups:
        return match.span()
    text = match.string
    start, stop = min(groups)[0], max(stop for _, stop in groups)
    while start > match.start() and text[start - 1] in _TOKEN:
        start -= 1
    while stop < match.end() and text[stop] in _TOKEN:
        stop += 1
    return start, stop


def _private_keys(text: str) -> Iterator[Span]:
    if "PRIVATE KEY" in text:
        for match in _PRIVATE_KEY.finditer(text):
            yield (*match.span(), "private_key", _SECRET)


def _emails(text: str) -> Iterator[Span]:
    at = text.find("@")
    while at >= 0:
        domain = _DOMAIN.match(text, at + 1)
        local = _LOCAL_PART.search(text, max(0, at - 64), at) if domain else None
        if domain and local:
            yield local.start(), domain.end(), "email", _EMAIL
        at = text.find("@", domain.end() if domain else at + 1)


@cache
def secret_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """(name, pattern) of each detector used. Raises `UsageError` without detect-secrets."""
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        from detect_secrets.plugins.base import RegexBasedDetector
    except ImportError:
        raise UsageError(
            "--redact secrets needs the package detect-secrets, which is not installed",
            "Type: pip install 'nanochat-chunker[redact]'",
        ) from None
    found = []
    for kind, detector in sorted(get_mapping_from_secret_type_to_class().items()):
        if issubclass(detector, RegexBasedDetector) and detector.__name__ not in _LEFT_OUT:
            name = re.sub(r"[^a-z0-9]+", "_", kind.lower()).strip("_")
            found += [(name, pattern) for pattern in detector.denylist]
    return tuple(found)
