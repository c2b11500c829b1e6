"""A project under one configuration: what includes what, and one order for all its items.

The order is that of a compiler which reads every translation unit in turn and each header once. A
subset of items in this order that is closed under what they need is in a valid order.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from nanochat_chunker.includes import Include, Resolver
from nanochat_chunker.slicing.configuration import (
    ELSEWHERE,
    STANDARD_HEADERS,
    evaluate,
    is_defined,
    predefined,
)
from nanochat_chunker.slicing.index import build
from nanochat_chunker.slicing.items import Item, Scope
from nanochat_chunker.slicing.macro_shapes import MacroShapes
from nanochat_chunker.slicing.macros import Macro
from nanochat_chunker.slicing.model import FileIndex, Told
from nanochat_chunker.slicing.preprocess import Event, predefined_for, within

# Characters of one file that are parsed anew while its conditions are decided, one after another.
_MAX_REBUILT = 600_000
_MAX_TEXT = 64_000_000  # characters of text kept at hand
_SOURCES = (".c", ".cc", ".cpp", ".cxx", ".c++", ".cu", ".C")


class Configured:
    """The files of a project with their conditions decided by what they include.

    `rank` gives each file its place, `closure[path]` the files it sees as a set of bits by that
    place, `parent` the file through which it was first reached.
    """

    def __init__(
        self,
        files: Sequence[FileIndex],
        read_text: Callable[[str], str],
        name: str,
        told: Told | None = None,
    ) -> None:
        self.files = {file.path: file for file in sorted(files, key=lambda file: file.path)}
        self._rebuilt: set[str] = set()
        self._read_text = read_text
        self._texts: dict[str, str] = {}
        self._text_size = 0
        self._last_line = "", 0, 1  # the last place asked for: its file, position, line
        self._resolver = Resolver(list(self.files), name)
        self._told = told or Told()
        self._resolved: dict[tuple[str, str, bool], str | None] = dict(self._told.included)
        self.bit = {path: i for i, path in enumerate(self.files)}
        self.closure: dict[str, int] = {}
        self.parent: dict[str, str] = {}
        self._contexts: dict[str, int] = {}
        self._definers: dict[str, list[tuple[int, Macro | None]]] = defaultdict(list)
        self._seen = 0
        self._defined = {  # by some file: no business of the build system's
            event.value.name
            for file in self.files.values()
            for event in file.events
            if event.kind == "define" and isinstance(event.value, Macro)
        } - predefined().keys()
        for path in self._roots():
            if path not in self.closure:
                self._visit(path)
        self._complete_closures()
        self._left_out = self._find_left_out()

    def text(self, path: str) -> str:
        """The text of a file; the last few are kept."""
        text = self._texts.get(path)
        if text is None:
            text = self._read_text(path)
            self._texts[path] = text
            self._text_size += len(text)
            while self._text_size > _MAX_TEXT and len(self._texts) > 1:
                oldest = next(iter(self._texts))
                self._text_size -= len(self._texts.pop(oldest))
        return text

    def line(self, path: str, position: int) -> int:
        """The line of a place in a file, from 1."""
        last, start, line = self._last_line
        if last != path or position < start:
            start, line = 0, 1
        line += self.text(path).count("\n", start, position)
        self._last_line = path, position, line
        return line

    def resolve(self, path: str, target: str, angle: bool) -> str | None:
        """The file of the project that an include means, or None."""
        key = (path, target, angle)
        if key not in self._resolved:
            found = None
            if not (angle and target in STANDARD_HEADERS):
                found = self._resolver.resolve(path, Include(target, angle))
            self._resolved[key] = None if found == path else found
        return self._resolved[key]

    def is_own(self, path: str, target: str) -> bool:
        """Whether a file includes itself."""
        return self._resolver.resolve(path, Include(target, False)) == path

    def macro(self, name: str, seen: int) -> Macro | None:
        """What `name` is defined as, last of all, in the files of `seen`."""
        for bit, macro in reversed(self._definers.get(name, ())):
            if seen >> bit & 1:
                return macro
        return None

    def skipped(self, path: str) -> str:
        """Why no document is built around a file, or ''."""
        file = self.files[path]
        if file.skipped:
            return file.skipped
        if path in self._left_out:
            return "not_in_configuration"
        if file.fragment:
            return "fragment"
        if self._elsewhere(path) or any(
            event.kind == "include"
            and (target := self.resolve(path, str(event.value), event.extra)) is not None
            and self._elsewhere(target)
            for event in file.events
        ):
            return "other_platform"
        return ""

    def _elsewhere(self, path: str) -> bool:
        return any(
            event.kind == "include" and event.value in ELSEWHERE
            for event in self.files[path].events
        )

    def _find_left_out(self) -> frozenset[str]:
        """Files that others include only where the configuration leaves it out."""
        taken: set[str | None] = set()
        left: set[str] = set()
        for path, file in self.files.items():
            for event in file.events:
                if event.kind == "include":
                    taken.add(self.resolve(path, str(event.value), event.extra))
            for name in file.off:
                found = self.resolve(path, name, False)
                if found is not None:
                    left.add(found)
        out: set[str] = left - taken
        # What only such files include is left out with them.
        while True:
            more = {
                target
                for path in out
                for event in self.files[path].events
                if event.kind == "include"
                and (target := self.resolve(path, str(event.value), event.extra)) is not None
                and target not in out
                and self.parent.get(target) in out
            }
            if not more:
                return frozenset(out)
            out |= more

    def context(self, path: str) -> int:
        """The files that a file sees itself, and through the one that first includes it."""
        seen = self._contexts.get(path)
        if seen is None:
            seen = 0
            at: str | None = path
            guard: set[str] = set()
            while at is not None and at not in guard:
                guard.add(at)
                seen |= self.closure[at]
                at = self.parent.get(at)
            self._contexts[path] = seen
        return seen

    def defines(self, name: str) -> bool:
        return name in self._definers

    def _roots(self) -> Iterator[str]:
        """Headers that nobody includes, then sources, those of tests last, then what is left."""
        included = set()
        for path, file in self.files.items():
            for event in file.events:
                if event.kind == "include":
                    target = self.resolve(path, str(event.value), event.extra)
                    if target is not None:
                        included.add(target)
            for name in file.off:
                target = self.resolve(path, name, False)
                if target is not None:
                    included.add(target)
        free = [path for path in self.files if path not in included]

        def place(path: str) -> tuple[bool, bool, str]:
            lower = path.lower()
            return (
                path.endswith(_SOURCES),
                "test" in lower or "example" in lower or "bench" in lower or "fuzz" in lower,
                path,
            )

        yield from sorted(free, key=place)
        yield from self.files

    def _visit(self, root: str) -> None:
        """Reads one translation unit, by hand rather than by recursion: chains can be deep."""
        self._seen = 0
        stack = [self._enter(root)]
        while stack:
            path, position, rebuilds = stack.pop()
            file = self.files[path]
            of_compiler = predefined_for(path)

            def lookup(name: str) -> Macro | None:
                found = self.macro(name, self._seen)
                if found is None and name not in self._defined:
                    found = of_compiler(name)  # noqa: B023
                return found

            descend = False
            while position < len(file.events):
                event = file.events[position]
                if event.kind == "define" and isinstance(event.value, Macro):
                    self._definers[event.value.name].append((self.bit[path], event.value))
                elif event.kind == "undef":
                    self._definers[str(event.value)].append((self.bit[path], None))
                elif event.kind == "if":
                    value = self._value(path, event, lookup)
                    if value != event.extra and rebuilds * file.size < _MAX_REBUILT:
                        rebuilds += 1
                        file = self._rebuild(path)
                elif event.kind == "include":
                    target = self.resolve(path, str(event.value), event.extra)
                    if target is not None:
                        if target not in self.closure:
                            self.parent.setdefault(target, path)
                            stack.append((path, position + 1, rebuilds))
                            stack.append(self._enter(target))
                            descend = True
                            break
                        self.closure[path] |= self.closure[target]
                        self._seen |= self.closure[target]
                position += 1
            if descend:
                continue
            if not self._guessed_right(file):
                self._rebuild(path)
            if stack:
                self.closure[stack[-1][0]] |= self.closure[path]

    def _enter(self, path: str) -> tuple[str, int, int]:
        bit = 1 << self.bit[path]
        self.closure[path] = bit
        self._seen |= bit
        return path, 0, 0

    def _value(self, path: str, event: Event, lookup: Callable[[str], Macro | None]) -> bool:
        left_out = self._told.left_out.get(path)
        if left_out is not None:
            return not within(left_out, event.end)
        expression = str(event.value)
        if expression.startswith("defined(") and expression.endswith(")"):
            return (
                is_defined(expression[8:-1], lookup)
                if expression.count("(") == 1
                else evaluate(expression, lookup)
            )
        return evaluate(expression, lookup)

    def _guessed_right(self, file: FileIndex) -> bool:
        """Whether macros of other files leave items to begin and end where they did."""
        seen = self._seen
        shapes = MacroShapes(lambda name: self._ever(name, seen))
        return all(shapes.holds(guess) for guess, _ in file.guesses)

    def _ever(self, name: str, seen: int) -> Macro | None:
        """The last definition of `name` in the files of `seen`, undefined again or not."""
        for bit, macro in reversed(self._definers.get(name, ())):
            if macro is not None and seen >> bit & 1:
                return macro
        return None

    def _rebuild(self, path: str) -> FileIndex:
        seen = self._seen
        # What the file itself defines further down must not count as known before.
        own = self.bit[path]

        def known(name: str) -> Macro | None:
            for bit, macro in reversed(self._definers.get(name, ())):
                if bit != own and seen >> bit & 1:
                    return macro
            return None

        file = build(
            path,
            self._read_text(path),
            known,
            lambda name: self._ever(name, seen),
            self._told.left_out.get(path),
            self.files[path] if path not in self._rebuilt else None,
        )
        self._rebuilt.add(path)
        self.files[path] = file
        return file

    def _complete_closures(self) -> None:
        """Closures within cycles of includes, which were not whole when they were read."""
        for _ in range(8):
            changed = False
            for path, file in self.files.items():
                whole = self.closure[path]
                for event in file.events:
                    if event.kind == "include":
                        target = self.resolve(path, str(event.value), event.extra)
                        if target is not None:
                            whole |= self.closure[target]
                if whole != self.closure[path]:
                    self.closure[path] = whole
                    changed = True
            if not changed:
                break

    def ordered(self) -> Iterator[tuple[str, Item, Scope]]:
        """Every item once, in the order of the project, with the scope its file is included in."""
        started: set[str] = set()
        for root in self.closure:
            if root in started:
                continue
            started.add(root)
            stack: list[tuple[str, int, Scope]] = [(root, 0, ())]
            while stack:
                path, position, outer = stack.pop()
                items = self.files[path].items
                while position < len(items):
                    item = items[position]
                    position += 1
                    if item.kind == "include":
                        target = self.resolve(path, item.names[0], "angle" in item.flags)
                        if target is not None and target not in started:
                            started.add(target)
                            yield path, item, outer
                            stack.append((path, position, outer))
                            stack.append((target, 0, outer + item.scope))
                            break
                    yield path, item, outer
