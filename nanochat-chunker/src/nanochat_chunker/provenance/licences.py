"""Licences by SPDX: of a file's header, else of the nearest licence file, and the filter over them.

An expression names what the header or the licence text says; nobody's legal advice.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

UNKNOWN = "NOASSERTION"  # the word of SPDX for: not known
HEADER_CHARACTERS = 4096  # where a header says its licence
_LICENCE_FILE = re.compile(
    r"(?:un)?licen[cs]e(?:[-_.].*)?|copying(?:[-_.].*)?|copyright", re.IGNORECASE
)
_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*([^\r\n]{1,200})")
_EXPRESSION = re.compile(r"[A-Za-z0-9.+\-]+|[()]")
_WORDS = re.compile(r"[a-z0-9]+")

# What each licence says and no other above it in this list does. Words only, in lower case.
_PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AGPL-3.0", ("gnu affero general public license", "version 3")),
    ("LGPL-3.0", ("gnu lesser general public license", "version 3")),
    ("LGPL-2.1", ("gnu lesser general public license", "version 2 1")),
    ("LGPL-2.0", ("gnu library general public license",)),
    ("GPL-3.0", ("gnu general public license", "version 3")),
    ("GPL-2.0", ("gnu general public license", "version 2")),
    ("Apache-2.0 WITH LLVM-exception", ("apache license", "version 2 0", "llvm exception")),
    ("Apache-2.0", ("apache license", "version 2 0")),
    ("Apache-2.0", ("licensed under the apache license 2 0",)),
    ("MPL-2.0", ("mozilla public license", "2 0")),
    ("EPL-2.0", ("eclipse public license", "2 0")),
    ("EPL-1.0", ("eclipse public license",)),
    ("BSL-1.0", ("boost software license",)),
    ("CC0-1.0", ("creativecommons org publicdomain zero",)),
    ("CC0-1.0", ("cc0 1 0 universal",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "neither the name")),
    (
        "BSD-3-Clause",
        ("redistribution and use in source and binary forms", "may not be used to endorse"),
    ),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    ("BSD-3-Clause", ("governed by a bsd style license",)),
    ("Zlib", ("this software is provided as is", "altered source versions must be plainly marked")),
    ("ISC", ("permission to use copy modify and or distribute this software for any purpose",)),
    ("ISC", ("permission to use copy modify and distribute this software for any purpose",)),
    ("MIT", ("permission is hereby granted free of charge to any person obtaining a copy",)),
    ("MIT", ("distributed under the mit license",)),
    ("MIT", ("licensed under the mit license",)),
    ("MIT", ("released under the mit license",)),
)

# One of these is in every text that matches.
_PARTS = ("icen", "ICEN", "edistribution", "EDISTRIBUTION", "ermission", "PERMISSION", "ublic")

GROUPS = {
    "permissive": (
        "MIT MIT-0 Apache-* BSD-* BSL-1.0 ISC Zlib 0BSD Unlicense CC0-1.0 X11 NCSA curl Libpng "
        "PostgreSQL WTFPL Python-2.0 PSF-2.0 libtiff IJG FTL Unicode-*"
    ).split(),
    "copyleft": "GPL-* LGPL-* AGPL-* MPL-* EPL-* CDDL-* EUPL-* OSL-* CC-BY-SA-* SSPL-*".split(),
}


def is_licence_file(name: str) -> bool:
    """Whether a file of this name (no folder) holds a licence."""
    return _LICENCE_FILE.fullmatch(name) is not None


def licence_in(text: str) -> str | None:
    """The licence that a text declares by an SPDX tag or by words that only it uses."""
    tag = _SPDX.search(text)
    if tag is not None:
        expression = clean_expression(tag.group(1))
        if expression:
            return expression
    if not any(part in text for part in _PARTS):  # most texts, and this is the fast way
        return None
    words = " ".join(_WORDS.findall(text.lower()))
    for name, phrases in _PHRASES:
        if all(phrase in words for phrase in phrases):
            return name
    return None


def clean_expression(text: str) -> str:
    """An SPDX expression with single blanks, without what follows it (`*/`, `-->`)."""
    kept: list[str] = []
    for token in _EXPRESSION.findall(text):
        if not any(c.isalnum() or c in "()" for c in token):
            break
        word = token.upper() if token.upper() in ("AND", "OR", "WITH") else token
        if kept and _is_name(kept[-1]) and _is_name(word):
            break
        kept.append(word)
    while kept and kept[-1] in ("AND", "OR", "WITH", "("):
        kept.pop()
    return " ".join(kept).replace("( ", "(").replace(" )", ")")


def _is_name(token: str) -> bool:
    return token not in ("AND", "OR", "WITH", "(", ")")


class LicenceFiles:
    """The licence files of a project, by folder: a file's is the nearest one above it."""

    def __init__(self, found: Iterable[tuple[str, str | None]]) -> None:
        by_folder: dict[str, set[str]] = {}
        for path, licence in found:
            if licence is not None:
                by_folder.setdefault(str(PurePosixPath(path).parent), set()).add(licence)
        self._by_folder = {folder: both(names) for folder, names in by_folder.items()}

    def describe(self) -> list[tuple[str, str]]:
        """All that is known, in a fixed order."""
        return sorted(self._by_folder.items())

    def of(self, path: str) -> str:
        for folder in PurePosixPath(path).parents:
            licence = self._by_folder.get(str(folder))
            if licence is not None:
                return licence
        return UNKNOWN


def both(licences: Iterable[str]) -> str:
    """The expression for a text under all of `licences`."""
    names = sorted(set(licences)) or [UNKNOWN]
    if len(names) == 1:
        return names[0]
    return " AND ".join(f"({name})" if " OR " in name else name for name in names)


class LicenceFilter:
    """Says whether a licence is allowed: by names, patterns such as `BSD-*`, and `GROUPS`."""

    def __init__(self, allowed: Sequence[str], excluded: Sequence[str]) -> None:
        self._allowed = _patterns(allowed)
        self._excluded = _patterns(excluded)
        self._known: dict[str, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._allowed or self._excluded)

    def allows(self, expression: str) -> bool:
        """An OR is allowed by either side, an AND by both; an exception grants more, never less."""
        if expression not in self._known:
            self._known[expression] = self._either(_EXPRESSION.findall(expression))
        return self._known[expression]

    def _either(self, tokens: list[str]) -> bool:
        allowed = self._all(tokens)
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            allowed = self._all(tokens) or allowed
        return allowed

    def _all(self, tokens: list[str]) -> bool:
        allowed = self._one(tokens)
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            allowed = self._one(tokens) and allowed
        return allowed

    def _one(self, tokens: list[str]) -> bool:
        name = tokens.pop(0) if tokens else UNKNOWN
        if name == "(":
            allowed = self._either(tokens)
            if tokens and tokens[0] == ")":
                tokens.pop(0)
        else:
            allowed = self._name(name.lower())
        if tokens and tokens[0] == "WITH":
            del tokens[:2]
        return allowed

    def _name(self, name: str) -> bool:
        if any(fnmatchcase(name, pattern) for pattern in self._excluded):
            return False
        return not self._allowed or any(fnmatchcase(name, pattern) for pattern in self._allowed)


def _patterns(names: Sequence[str]) -> list[str]:
    return [pattern.lower() for name in names for pattern in GROUPS.get(name.lower(), [name])]
