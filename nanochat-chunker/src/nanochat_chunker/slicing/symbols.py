"""Which items a name may mean, by qualified name and by scope."""

from collections import defaultdict
from collections.abc import Sequence, Set

from nanochat_chunker.slicing.items import Item

_FUNCTIONS = frozenset(("function", "prototype", "call"))
_MAX_BY_LAST_NAME = 12  # functions of one name in all namespaces; more say nothing

NAMED = frozenset(
    "function prototype class forward enum variable extern alias using namespace call".split()
)


class Symbols:
    """The names of a project's items; ids are places in the project's order."""

    def __init__(self) -> None:
        self.table: dict[str, list[int]] = defaultdict(list)
        self.members: dict[str, list[int]] = defaultdict(list)  # out of line, by qualified owner
        self.macros: dict[str, list[int]] = defaultdict(list)
        self.undefs: dict[str, list[int]] = defaultdict(list)
        self.special: dict[str, list[int]] = defaultdict(list)  # specialisations, by primary
        self.operators: list[int] = []
        self.namespaces: set[str] = set()
        self._by_last: dict[str, list[int]] = defaultdict(list)
        self._names: set[str] = set()  # unqualified, of what is in the table
        self._name_parts: set[str] = set()  # and of the namespaces
        self._raw: dict[tuple[str, str], tuple[tuple[int, ...], ...]] = {}
        self._asked: set[str] = set()  # names of which it is known whether
        self._meant: set[str] = set()  # they may mean something

    def add_namespaces(self, item: Item) -> None:
        qualifier = item.qualifier
        while qualifier and qualifier not in self.namespaces:
            self.namespaces.add(qualifier)
            qualifier, _, last = qualifier.rpartition("::")
            self._name_parts.add(last)

    def add(self, i: int, item: Item) -> None:
        """Enters an item; namespaces of all items are known by then."""
        if item.kind == "define":
            self.macros[item.names[0]].append(i)
            return
        if item.kind == "undef":
            self.undefs[item.names[0]].append(i)
            return
        if item.kind not in NAMED:
            return
        if item.kind == "call" and "body" in item.flags and "expanded" not in item.flags:
            return
        qualifier = item.qualifier
        if item.owner:
            owner = self.owner_of(item)
            if owner not in self.namespaces:
                self.members[owner].append(i)
                if item.kind == "class":
                    self.table[f"{owner}::{item.names[0]}"].append(i)
                    self._names.add(item.names[0])
                return
            qualifier = owner
        prefix = qualifier + "::" if qualifier else ""
        for name in item.names:
            self.table[prefix + name].append(i)
            *spaces, last = name.split("::")  # a macro's call may declare in a namespace
            self._names.add(last)
            self._name_parts.update(spaces)
            if item.kind in _FUNCTIONS:
                self._by_last[name].append(i)
        if "special" in item.flags:
            for name in item.names[:1]:
                self.special[prefix + name].append(i)
        if item.names and item.names[0].startswith("operator") and not item.owner:
            self.operators.append(i)

    def owner_of(self, item: Item) -> str:
        """The qualified class or namespace of an out-of-line member."""
        qualifier, owner = item.qualifier, item.owner
        scope = qualifier
        while scope:
            if f"{scope}::{owner}" in self.table or f"{scope}::{owner}" in self.namespaces:
                return f"{scope}::{owner}"
            first = owner.partition("::")[0]
            if f"{scope}::{first}" in self.table:
                return f"{scope}::{owner}"
            scope = scope.rpartition("::")[0]
        if owner in self.table or owner.partition("::")[0] in self.table or not qualifier:
            return owner
        return f"{qualifier}::{owner}"

    def candidates(
        self, name: str, qualifier: str, extra: Sequence[str] = ()
    ) -> list[tuple[int, ...]]:
        """Groups of ids that `name`, written in `qualifier`, may mean, innermost scope first."""
        key = (name, qualifier)
        groups = self._raw.get(key)
        if groups is None:
            groups = tuple(self._search(name, qualifier))
            self._raw[key] = groups
        found = list(groups)
        for namespace in extra:
            if "::" not in name or not name.startswith("::"):
                found.extend(self._at(namespace, name.split("::")))
        return found

    def meant(self, names: Set[str]) -> Set[str]:
        """Of some names those that may mean something, in any scope. Most in a body do not."""
        new = names - self._asked
        if new:
            self._asked |= new
            self._meant.update(name for name in new if self._may_mean(name))
        return names & self._meant

    def _may_mean(self, name: str) -> bool:
        if name[0] == "." or name == "main":
            return False
        if name in self._names or name in self.macros:
            return True
        parts = name.removeprefix("::").split("::")
        if any(part in self.macros for part in parts):
            return True
        for part in parts:
            if part in self._names:
                return True
            if part not in self._name_parts:
                return False
        return False

    def by_last_name(self, name: str) -> Sequence[int]:
        """Functions of this name in any namespace, for lookup by argument types."""
        found = self._by_last.get(name, ())
        return found if len(found) <= _MAX_BY_LAST_NAME else ()

    def _search(self, name: str, qualifier: str) -> list[tuple[int, ...]]:
        if name.startswith("::"):
            return self._at("", name[2:].split("::"))
        parts = name.split("::")
        groups = []
        scope = qualifier
        while True:
            groups.extend(self._at(scope, parts))
            if not scope:
                return groups
            scope = scope.rpartition("::")[0]

    def _at(self, scope: str, parts: list[str]) -> list[tuple[int, ...]]:
        """The items at `scope::parts`, at the first part that is no namespace."""
        name = scope
        for part in parts:
            name = f"{name}::{part}" if name else part
            ids = self.table.get(name)
            if ids:
                return [tuple(ids)]
            if name not in self.namespaces:
                return []
        return []
