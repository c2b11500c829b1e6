"""Which items of a project the names in an item mean."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set

from nanochat_chunker.slicing.expansion import Macros, chain_of
from nanochat_chunker.slicing.items import Item
from nanochat_chunker.slicing.ordering import Ordered
from nanochat_chunker.slicing.symbols import Symbols

_MAX_OF_ONE_NAME = 256  # before and after a use; overloads in real projects are fewer
_LONGEST_NAME = 500  # characters of a qualified name that is looked for
_MAX_THROUGH_MACROS = 4_000  # names that an item's own may lead to
_MAX_KEPT = 400_000  # answers to names, before they are forgotten
_DECLARATIONS = frozenset(("prototype", "forward", "extern"))

Ids = tuple[int, ...]


class _Meaning:
    """What one name may mean in one scope of one file, before the place of its use is known."""

    __slots__ = ("by_last", "far_groups", "first", "groups", "inner", "macros", "only")

    def __init__(
        self, first: str, inner: tuple[str, ...], macros: Ids, groups: tuple[Ids, ...],
        far_groups: tuple[Ids, ...], by_last: Ids, only: int,
    ) -> None:  # fmt: skip
        self.first = first  # the first part of the name
        self.inner = inner  # later parts that are macros
        self.macros = macros
        self.groups = groups  # of what the file itself includes, innermost scope first
        self.far_groups = far_groups  # of what its includers had before it, too
        self.by_last = by_last  # functions, by their name alone
        self.only = only  # the item that it means wherever it is used, or -1


class Lookup:
    """Name lookup over a project's items, in C++'s order of scopes but without types."""

    def __init__(self, ordered: Ordered, symbols: Symbols, macros: Macros) -> None:
        self._ordered = ordered
        self._project = ordered.project
        self._symbols = symbols
        self._macros = macros
        self._directives = [i for i, item in enumerate(ordered.items) if item.kind == "directive"]
        self._extra: dict[tuple[str, str], tuple[str, ...]] = {}
        self._known: dict[tuple[str, str], dict[str, _Meaning | None]] = {}
        self._kept = 0

    @property
    def directives(self) -> Sequence[int]:
        """The using-directives of the project."""
        return self._directives

    def resolve(self, i: int, names: Iterable[str]) -> Ids:
        """The items that `names` mean where item `i` stands."""
        item = self._ordered.items[i]
        qualifier = self._ordered.qualifiers[i]
        if item.owner:
            qualifier = self._symbols.owner_of(item)
        path = self._ordered.paths[i]
        known = self._known.get((path, qualifier))
        if known is None:
            known = self._known.setdefault((path, qualifier), {})
        found: set[int] = set()
        done = set(self._symbols.meant(names if isinstance(names, Set) else set(names)))
        todo = list(done)
        most = len(done) + _MAX_THROUGH_MACROS
        while todo:
            name = todo.pop()
            if name in known:
                meaning = known[name]
            else:
                meaning = known[name] = self._meaning(name, path, qualifier)
                self._kept += 1
            if meaning is None:
                continue
            if meaning.only >= 0 and meaning.only != i and name not in item.names:
                found.add(meaning.only)
                continue
            more: list[str] = list(meaning.inner)
            if meaning.macros:
                more += self._through_macro(i, name, meaning, found)
            for j in self._chosen(i, item, name, meaning):
                found.add(j)
                if "::" in name and self._ordered.items[j].kind == "namespace":
                    target = next(
                        (use for use in self._ordered.items[j].uses if use != meaning.first), ""
                    )
                    more.append(_renamed(target, name))
            for use in self._symbols.meant(set(more)) - done if more else ():
                # A name that means itself and more would grow without end, two such beyond count.
                if len(use) <= _LONGEST_NAME and len(done) < most:
                    done.add(use)
                    todo.append(use)
        if self._kept > _MAX_KEPT:
            self._known.clear()
            self._kept = 0
        return tuple(sorted(found))

    def _meaning(self, name: str, path: str, qualifier: str) -> _Meaning | None:
        """None where the name means nothing of the project."""
        symbols, bits = self._symbols, self._ordered.bits
        closure = self._project.closure[path]
        context = self._project.context(path)
        first = name.removeprefix("::").partition("::")[0] if "::" in name else name
        macros: Ids = ()
        if first in symbols.macros:
            macros = _visible(symbols.macros[first], closure, bits)
            if not macros:
                macros = _visible(symbols.macros[first], context, bits)
        extra = self.extra_namespaces(path, qualifier)
        candidates = symbols.candidates(name, qualifier, extra)
        groups = tuple(filter(None, (_visible(ids, closure, bits) for ids in candidates)))
        far = groups
        if candidates and context != closure:
            far = tuple(filter(None, (_visible(ids, context, bits) for ids in candidates)))
        by_last: Ids = ()
        if "::" not in name:
            by_last = _visible(symbols.by_last_name(name), closure, bits)
        inner: tuple[str, ...] = ()
        if "::" in name:
            later = name.removeprefix("::").split("::")[1:]
            inner = tuple(part for part in later if part in symbols.macros)
        if not (inner or macros or groups or far or by_last):
            return None
        only = -1
        if groups and len(groups[0]) == 1 and not inner and not macros:
            item = self._ordered.items[groups[0][0]]
            if "special" not in item.flags and item.kind != "namespace":
                only = groups[0][0]
        return _Meaning(first, inner, macros, groups, far, by_last, only)

    def _through_macro(self, i: int, name: str, meaning: _Meaning, found: set[int]) -> list[str]:
        """Adds the macro that a name is, and gives the names that it leads to."""
        macro = self._macros.before(meaning.macros, i)
        if macro < 0:
            return []
        found.add(macro)
        item = self._ordered.items[macro]
        more = list(item.uses)
        if meaning.first in self._macros.pasting:
            more += sorted(self._macros.pasted(i, meaning.first))
        body = chain_of(item)
        if body and "::" in name:
            more.append(_renamed(body, name))
        return more

    def _chosen(self, i: int, item: Item, name: str, meaning: _Meaning) -> Iterable[int]:
        """The items that a use of a name at `i` needs."""
        items = self._ordered.items
        chosen = self._first_group(i, meaning.groups, plain=True)
        if meaning.far_groups and all("special" in items[j].flags for j in chosen):
            chosen = self._first_group(i, meaning.far_groups, plain=False) or chosen
        chosen = chosen or meaning.by_last
        own = name in item.names and name != item.owner  # a constructor needs its class
        if chosen and own and "special" not in item.flags:
            # Its own name asks only for what declared it before, default arguments and all.
            chosen = tuple(j for j in chosen if j < i and items[j].kind in _DECLARATIONS)[-8:]
        return self.needed(i, chosen) if len(chosen) > 1 else chosen

    def _first_group(self, i: int, groups: Iterable[Ids], plain: bool) -> Ids:
        """The first group that holds others than `i`; `plain`: than specialisations, too."""
        items = self._ordered.items
        chosen: Ids = ()
        for group in groups:
            chosen = _near(group, i)
            if i in chosen:
                chosen = tuple(j for j in chosen if j != i)
            if chosen and not (plain and all("special" in items[j].flags for j in chosen)):
                break
        return chosen

    def needed(self, i: int, ids: Ids) -> Iterable[int]:
        """Of the items of one name those that a use at `i` needs."""
        items = self._ordered.items
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
            chosen.extend(j for j in functions if j < i or items[j].needs_body)
        else:
            chosen.extend([j for j in functions if j < i] or prototypes + functions)
        if "template" in items[i].flags and (prototypes or functions):
            # Overloads that come later are found by the types of arguments.
            chosen.extend(j for j in (*prototypes, *functions) if j > i)
        externs, variables = by_kind.get("extern", []), by_kind.get("variable", [])
        if [j for j in externs if j < i]:
            chosen.append(externs[0])
        else:
            chosen.extend([j for j in variables if j < i][-1:] or variables[:1] or externs[:1])
        for kind in ("enum", "alias", "using", "namespace", "call"):
            chosen.extend(by_kind.get(kind, ()))
        return chosen

    def extra_namespaces(self, path: str, qualifier: str) -> tuple[str, ...]:
        """Namespaces that using-directives open in a scope of a file."""
        key = (path, qualifier)
        found = self._extra.get(key)
        if found is None:
            seen = self._project.context(path)
            names = []
            for j in self._directives:
                if not seen >> self._ordered.bits[j] & 1:
                    continue
                scope = self._ordered.qualifiers[j]
                if scope and not (qualifier + "::").startswith(scope + "::"):
                    continue
                names.append(self.namespace_named(self._ordered.items[j].names[0], scope))
            found = self._extra[key] = tuple(dict.fromkeys(name for name in names if name))
        return found

    def namespace_named(self, name: str, scope: str) -> str:
        """The qualified project namespace that `name` means in `scope`, or ''."""
        name = self._plain_name(name)
        while True:
            qualified = f"{scope}::{name}" if scope else name
            if qualified in self._symbols.namespaces:
                return qualified
            if not scope:
                return ""
            scope = scope.rpartition("::")[0]

    def _plain_name(self, name: str, depth: int = 0) -> str:
        """A qualified name without the macro or the alias that it may begin with."""
        items = self._ordered.items
        first, colons, rest = name.removeprefix("::").partition("::")
        macros = self._symbols.macros.get(first)
        if macros:
            first = chain_of(items[macros[0]]) or first
        aliases = [j for j in self._symbols.table.get(first, ()) if items[j].kind == "namespace"]
        if aliases and depth < 8:
            target = next((use for use in items[aliases[0]].uses if use != first), first)
            first = self._plain_name(target, depth + 1)
        return first + colons + rest


def _renamed(first: str, name: str) -> str:
    """A qualified name with another first part."""
    return f"{first}::{name.removeprefix('::').partition('::')[2]}"


def _visible(ids: Sequence[int], seen: int, bits: Sequence[int]) -> Ids:
    return tuple([j for j in ids if seen >> bits[j] & 1])


def _near(group: Ids, i: int) -> Ids:
    """Of items of one name those around `i`, where there are very many."""
    if len(group) <= _MAX_OF_ONE_NAME:
        return group
    place = bisect_left(group, i)
    return group[max(0, place - _MAX_OF_ONE_NAME) : place + _MAX_OF_ONE_NAME]
