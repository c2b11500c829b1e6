"""What each item of a project needs: its names resolved to other items, once for all documents."""

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace

from nanochat_chunker.slicing.index import blank_literals
from nanochat_chunker.slicing.items import Frame, Item
from nanochat_chunker.slicing.macros import Macro, expand
from nanochat_chunker.slicing.names import names_in
from nanochat_chunker.slicing.parsing import parse
from nanochat_chunker.slicing.project import Configured
from nanochat_chunker.slicing.symbols import Symbols

_TYPES = frozenset(("class", "enum", "alias", "forward", "using"))
_MAX_CALLS = 200  # different calls of one macro that are expanded within one item
_MAX_OF_ONE_NAME = 256  # before and after a use; overloads in real projects are fewer
_DECLARATIONS = frozenset(("prototype", "forward", "extern"))
_MAX_BODIES = 4  # overloads of one name whose bodies come along with a call

_LONGEST_NAME = 500  # characters of a qualified name that is looked for


class Graph:
    """Items by place in the project's order, with lazily resolved dependencies."""

    def __init__(self, project: Configured) -> None:
        self.project = project
        self._context: dict[str, int] = {}
        self.items: list[Item] = []
        self.paths: list[str] = []
        self.by_path: dict[str, list[int]] = defaultdict(list)
        self.symbols = Symbols()
        self.textual = self._textual()
        for path, item, outer in project.ordered():
            if path in self.textual:
                continue
            if outer:
                item = replace(item, scope=outer + item.scope)
            self.by_path[path].append(len(self.items))
            self.items.append(self._scoped(item))
            self.paths.append(path)
        self.bits = [project.bit[path] for path in self.paths]
        self._macros = self._macro_values()
        for i, item in enumerate(self.items):
            if item.kind == "call" and item.tail < 0:
                self.items[i] = self._expanded(i, item)
        self.qualifiers = [item.qualifier for item in self.items]
        for item in self.items:
            self.symbols.add_namespaces(item)
        for i, item in enumerate(self.items):
            self.symbols.add(i, item)
        self.directives = [i for i, item in enumerate(self.items) if item.kind == "directive"]
        self._extra: dict[tuple[str, str], tuple[str, ...]] = {}
        self._decl: dict[int, tuple[int, ...]] = {}
        self._body: dict[int, tuple[int, ...]] = {}
        self.pasting = self._pasting()
        self._heads: dict[int, tuple[int, ...]] = {}
        self._companions: dict[int, tuple[int, ...]] = {}
        self._types: dict[int, tuple[int, ...]] = {}
        self._sizes: dict[tuple[int, str], int] = {}
        self._operators: dict[int, list[int]] | None = None

    def _textual(self) -> frozenset[str]:
        """Files that are only ever included within an item (lists for macros): no items of it."""
        inner: set[str] = set()
        outer: set[str] = set()
        for path, file in self.project.files.items():
            tops = {item.begin for item in file.items if item.kind == "include"}
            for event in file.events:
                if event.kind == "include":
                    target = self.project.resolve(path, str(event.value), event.extra)
                    if target is not None:
                        (outer if event.start in tops else inner).add(target)
        return frozenset(inner - outer)

    def _macro_values(self) -> dict[str, list[tuple[int, Macro]]]:
        """What each #define says, by name, in the project's order."""
        values: dict[str, list[tuple[int, Macro]]] = defaultdict(list)
        at: dict[str, dict[int, Macro]] = {}
        for i, item in enumerate(self.items):
            if item.kind == "define":
                path = self.paths[i]
                if path not in at:
                    events = self.project.files[path].events
                    at[path] = {e.start: e.value for e in events if isinstance(e.value, Macro)}
                macro = at[path].get(item.begin)
                if macro is not None:
                    values[macro.name].append((i, macro))
        return values

    def _macro_value(self, name: str, i: int, seen: int) -> Macro | None:
        """What a macro stands for at item `i`: its last definition before."""
        best: Macro | None = None
        for j, macro in self._macros.get(name, ()):
            if seen >> self.bits[j] & 1:
                if j > i and best is not None:
                    break
                best = macro
        return best

    def _expanded(self, i: int, item: Item) -> Item:
        """A macro call with the names that its expansion declares."""
        path = self.paths[i]
        seen = self.context(path)

        def lookup(name: str) -> Macro | None:
            return self._macro_value(name, i, seen)

        if not any(self.project.defines(use) for use in item.uses):
            return item
        code = self.project.text(path)[item.begin : item.end]
        expanded = expand(code, lookup)
        if expanded == code:
            return item
        inner = parse(expanded, expanded, lookup).items
        names = [name for part in inner for name in part.names if not part.owner]
        uses = set(item.uses)
        for part in inner:
            uses.update(part.uses)
            uses.update(part.body_uses)
            for member in part.members:
                uses.update(member.uses)
                uses.update(member.body_uses)
        return Item(
            "call", item.start, item.begin, item.end, item.scope, tuple(dict.fromkeys(names)),
            "", -1, tuple(sorted(uses)), (), (), item.flags | {"expanded"},
        )  # fmt: skip

    def context(self, path: str) -> int:
        """The files that a file sees itself, and through the one that first includes it."""
        seen = self._context.get(path)
        if seen is not None:
            return seen
        seen = 0
        at: str | None = path
        guard: set[str] = set()
        while at is not None and at not in guard:
            guard.add(at)
            seen |= self.project.closure[at]
            at = self.project.parent.get(at)
        self._context[path] = seen
        return seen

    def sees(self, path: str, j: int) -> bool:
        return bool(self.project.closure[path] >> self.bits[j] & 1)

    def declaration(self, i: int) -> tuple[int, ...]:
        """What the declaration of an item needs; of a class, with its members declared."""
        found = self._decl.get(i)
        if found is None:
            item = self.items[i]
            names = set(item.uses)
            for member in _flatten(item.members):
                names.update(member.uses)
                if member.needs_body:
                    names.update(member.body_uses)
            if item.kind in ("call", "enum", "class") or item.needs_body:
                names.update(item.body_uses)
            if "inner" in item.flags:
                names.update(self._inner_names(i))
            if item.owner:
                names.add(item.owner)
            found = self._decl[i] = self.needs(i, names, "declaration")
        return found

    def body(self, i: int) -> tuple[int, ...]:
        """What the bodies of an item need beyond its declaration."""
        found = self._body.get(i)
        if found is None:
            item = self.items[i]
            names = set(item.body_uses)
            for member in _flatten(item.members):
                names.update(member.body_uses)
            found = self._body[i] = self.needs(i, names, "body")
        return found

    def needs(self, i: int, names: Iterable[str], part: str) -> tuple[int, ...]:
        """What a part of an item needs: its declaration, its body, or the head of a class.

        The place where facts other than names come in.
        """
        return self.resolve(i, names)

    def resolve_head(self, i: int) -> tuple[int, ...]:
        """What the head of a class names, its members aside."""
        found = self._heads.get(i)
        if found is None:
            found = self._heads[i] = self.needs(i, self.items[i].uses, "head")
        return found

    def types(self, j: int) -> tuple[int, ...]:
        """The types of the project that a declaration names, those in a class's members aside."""
        found = self._types.get(j)
        if found is None:
            item = self.items[j]
            ids = self.resolve_head(j) if item.kind == "class" else self.declaration(j)
            found = self._types[j] = tuple(k for k in ids if self.items[k].kind in _TYPES)
        return found

    def companions(self, i: int) -> tuple[int, ...]:
        """What no name asks for once `i` is there.

        Specialisations, operators of a type, nested classes defined out of line, the definition
        of what was declared forward.
        """
        found = self._companions.get(i)
        if found is None:
            item = self.items[i]
            found = ()
            if item.names and item.kind in ("class", "function", "prototype", "forward", "enum"):
                found = tuple(dict.fromkeys(self._find_companions(i, item)))
            self._companions[i] = found
        return found

    def _find_companions(self, i: int, item: Item) -> Iterable[int]:
        symbols, items = self.symbols, self.items
        prefix = self.qualifiers[i] + "::" if self.qualifiers[i] else ""
        name = prefix + item.names[0]
        yield from (j for j in symbols.special.get(name, ()) if j != i)
        if item.kind == "forward":
            for j in symbols.table.get(name, ()):
                if items[j].kind in ("class", "enum") and "special" not in items[j].flags:
                    yield j
        if item.kind == "class":
            yield from (j for j in symbols.members.get(name, ()) if items[j].kind == "class")
        if self._operators is None:
            self._operators = defaultdict(list)
            for j in symbols.operators:
                for k in self.types(j):
                    self._operators[k].append(j)
        yield from self._operators.get(i, ())

    def bodies(self, j: int) -> tuple[int, ...]:
        """The definitions of a function that is declared at `j`."""
        item = self.items[j]
        if item.owner or not item.names:
            return ()
        prefix = self.qualifiers[j] + "::" if self.qualifiers[j] else ""
        found = tuple(
            k
            for k in self.symbols.table.get(prefix + item.names[0], ())
            if self.items[k].kind == "function"
        )
        return found if len(found) <= _MAX_BODIES else ()

    def size(self, i: int, level: str) -> int:
        """The length of an item's text at a level, about: what is cut out is not known here."""
        found = self._sizes.get((i, level))
        if found is None:
            item = self.items[i]
            found = item.end - item.start
            if level != "full":
                if item.kind == "function" and item.tail >= 0:
                    found = item.tail - item.start + 1
                else:
                    found -= _bodies(item.members)
            self._sizes[i, level] = found
        return found

    def _inner_names(self, i: int) -> set[str]:
        item, path = self.items[i], self.paths[i]
        names: set[str] = set()
        for event in self.project.files[path].events:
            if event.kind == "include" and item.begin < event.start < item.end:
                target = self.project.resolve(path, str(event.value), event.extra)
                if target is not None:
                    for inner in self.project.files[target].items:
                        names.update(inner.uses)
                        names.update(inner.body_uses)
        return names

    def resolve(self, i: int, names: Iterable[str]) -> tuple[int, ...]:
        """The items that `names` mean where item `i` stands."""
        item, path = self.items[i], self.paths[i]
        symbols, items = self.symbols, self.items
        qualifier = self.qualifiers[i]
        if item.owner:
            qualifier = symbols.owner_of(item)
        extra = self.extra_namespaces(path, qualifier, i)
        closure = self.project.closure[path]
        context = -1
        bits = self.bits
        found: set[int] = set()
        todo = list(names)
        done = set(todo)
        while todo:
            name = todo.pop()
            if name[0] == ".":
                continue
            first = name.removeprefix("::").partition("::")[0] if "::" in name else name
            if first in symbols.macros:
                macro = self._macro_before(first, i, closure)
                if macro < 0:
                    if context < 0:
                        context = self.context(path)
                    macro = self._macro_before(first, i, context)
                if macro >= 0:
                    found.add(macro)
                    for use in items[macro].uses:
                        if use not in done:
                            done.add(use)
                            todo.append(use)
                    if macro in self.pasting:
                        for use in self._pasted(i, first, context if context >= 0 else closure):
                            if use not in done:
                                done.add(use)
                                todo.append(use)
                    body = self._chain_of(macro)
                    if body and "::" in name:
                        rest = f"{body}::{name.removeprefix('::').partition('::')[2]}"
                        # A name that means itself and more would grow without end.
                        if rest not in done and len(rest) <= _LONGEST_NAME:
                            done.add(rest)
                            todo.append(rest)
            groups = [_near(group, i) for group in symbols.candidates(name, qualifier, extra)]
            chosen: list[int] = []
            for group in groups:
                chosen = [j for j in group if closure >> bits[j] & 1 and j != i]
                if chosen and not all("special" in items[j].flags for j in chosen):
                    break
            if groups and all("special" in items[j].flags for j in chosen):
                if context < 0:
                    context = self.context(path)
                for group in groups:
                    chosen = [j for j in group if context >> bits[j] & 1 and j != i]
                    if chosen:
                        break
            if not chosen and "::" not in name:
                chosen = [j for j in symbols.by_last_name(name) if closure >> bits[j] & 1]
            if chosen and name in item.names and "special" not in item.flags:
                # Its own name asks only for what declared it before, default arguments and all.
                chosen = [j for j in chosen if j < i and items[j].kind in _DECLARATIONS][-8:]
            if chosen:
                for j in self._choose(i, chosen):
                    found.add(j)
                    kind = items[j].kind
                    if kind == "namespace" and "::" in name:
                        target = next((u for u in items[j].uses if u != first), "")
                        rest = f"{target}::{name.removeprefix('::').partition('::')[2]}"
                        # A name that means itself and more would grow without end.
                        if rest not in done and len(rest) <= _LONGEST_NAME:
                            done.add(rest)
                            todo.append(rest)
        return tuple(sorted(found))

    def _chain_of(self, macro: int) -> str:
        """The name that a macro stands for, where it is one: `#define NAMESPACE rocksdb`."""
        item = self.items[macro]
        if "function" in item.flags or len(item.uses) != 1:
            return ""
        return item.uses[0]

    def _scoped(self, item: Item) -> Item:
        """An item whose namespaces are not named by macros."""
        if any(self.project.defines(frame.name) for frame in item.scope if frame.name):
            item.scope = tuple(self._frame(frame) for frame in item.scope)
        return item

    def _frame(self, frame: Frame) -> Frame:
        name = frame.name
        macro = self.project.macro(name, -1) if name else None
        if macro is None or macro.params is not None or not macro.body:
            return frame
        return Frame(frame.opener.replace(name, macro.body), macro.body)

    def _pasting(self) -> frozenset[int]:
        """Macros that make names with `##`, themselves or through another."""
        symbols, items = self.symbols, self.items
        found = {j for ids in symbols.macros.values() for j in ids if "pastes" in items[j].flags}
        names = {items[j].names[0] for j in found}
        while True:
            more = {
                j
                for ids in symbols.macros.values()
                for j in ids
                if j not in found and not names.isdisjoint(items[j].uses)
            }
            if not more:
                return frozenset(found)
            found |= more
            names.update(items[j].names[0] for j in more)

    def _pasted(self, i: int, name: str, seen: int) -> set[str]:
        """The names that calls of a pasting macro within item `i` expand to."""
        item = self.items[i]
        text = self.project.text(self.paths[i])
        code = text[item.begin : item.end]

        names: set[str] = set()

        def lookup(word: str) -> Macro | None:
            macro = self._macro_value(word, i, seen)
            if macro is not None:
                names.add(word)
            return macro

        if item.kind == "define":
            return names
        calls = set()
        for found in re.finditer(rf"\b{name}\s*\(", code):
            depth = 0
            for end in re.finditer(r"[()]", code[found.start() : found.start() + 2000]):
                depth += 1 if end.group() == "(" else -1
                if depth == 0:
                    calls.add(code[found.start() : found.start() + end.end()])
                    break
            if len(calls) >= _MAX_CALLS:
                break
        for call in sorted(calls):
            names.update(names_in(blank_literals(expand(call, lookup))))
        return names

    def _macro_before(self, name: str, i: int, seen: int) -> int:
        best = -1
        for j in self.symbols.macros[name]:
            if seen >> self.bits[j] & 1 and (j < i or best < 0):
                if j > i and self.bits[j] != self.bits[i]:
                    continue
                best = j
        return best

    def _choose(self, i: int, ids: list[int]) -> list[int]:
        """Of the items of one name those that a use at `i` needs."""
        items = self.items
        if len(ids) == 1:
            return ids
        by_kind: dict[str, list[int]] = defaultdict(list)
        for j in ids:
            item = items[j]
            if "special" in item.flags and item.kind in ("class", "function", "prototype"):
                continue
            by_kind[item.kind].append(j)
        if not by_kind:
            return ids
        chosen: list[int] = []
        classes, forwards = by_kind.get("class", []), by_kind.get("forward", [])
        early = [j for j in classes if j < i]
        if classes or forwards:
            if early:
                chosen.append(early[-1])
                if "template" in items[early[-1]].flags:  # a forward may hold the defaults
                    chosen.extend([j for j in forwards if j < early[-1]][:1])
            else:
                chosen.extend([j for j in forwards if j < i][-1:] or forwards[:1])
                chosen.extend(classes[:1])
        prototypes, functions = by_kind.get("prototype", []), by_kind.get("function", [])
        ready = [j for j in prototypes if j < i]
        if ready:
            chosen.extend(ready)
            chosen.extend(j for j in functions if items[j].needs_body)
        else:
            chosen.extend([j for j in functions if j < i] or prototypes + functions)
        externs, variables = by_kind.get("extern", []), by_kind.get("variable", [])
        if [j for j in externs if j < i]:
            chosen.append(externs[0])
        else:
            chosen.extend([j for j in variables if j < i][-1:] or variables[:1] or externs[:1])
        for kind in ("enum", "alias", "using", "namespace", "call"):
            chosen.extend(by_kind.get(kind, ()))
        return chosen

    def extra_namespaces(self, path: str, qualifier: str, i: int) -> tuple[str, ...]:
        """Namespaces that using-directives open where an item stands."""
        key = (path, qualifier)
        found = self._extra.get(key)
        if found is None:
            seen = self.context(path)
            names = []
            for j in self.directives:
                directive = self.items[j]
                if not seen >> self.bits[j] & 1:
                    continue
                scope = directive.qualifier
                if scope and not (qualifier + "::").startswith(scope + "::"):
                    continue
                names.append(self.namespace_named(directive.names[0], scope))
            found = self._extra[key] = tuple(dict.fromkeys(name for name in names if name))
        return found

    def plain_name(self, name: str, depth: int = 0) -> str:
        """A qualified name without the macro or the alias that it may begin with."""
        first, colons, rest = name.removeprefix("::").partition("::")
        macros = self.symbols.macros.get(first)
        if macros:
            first = self._chain_of(macros[0]) or first
        aliases = [
            j for j in self.symbols.table.get(first, ()) if self.items[j].kind == "namespace"
        ]
        if aliases and depth < 8:
            target = next((use for use in self.items[aliases[0]].uses if use != first), first)
            first = self.plain_name(target, depth + 1)
        return first + colons + rest

    def namespace_named(self, name: str, scope: str) -> str:
        """The qualified project namespace that `name` means in `scope`, or ''."""
        name = self.plain_name(name)
        while True:
            qualified = f"{scope}::{name}" if scope else name
            if qualified in self.symbols.namespaces:
                return qualified
            if not scope:
                return ""
            scope = scope.rpartition("::")[0]


def _near(group: tuple[int, ...], i: int) -> tuple[int, ...]:
    """Of items of one name those around `i`, where there are very many."""
    if len(group) <= _MAX_OF_ONE_NAME:
        return group
    place = bisect_left(group, i)
    return group[max(0, place - _MAX_OF_ONE_NAME) : place + _MAX_OF_ONE_NAME]


def _bodies(members: tuple[Item, ...]) -> int:
    total = 0
    for member in members:
        if member.members:
            total += _bodies(member.members)
        elif member.kind == "function" and member.tail >= 0 and not member.needs_body:
            total += member.end - member.tail - 1
    return total


def _flatten(members: tuple[Item, ...]) -> Iterable[Item]:
    for member in members:
        yield member
        if member.members:
            yield from _flatten(member.members)


Read = Callable[[str], str]
