"""All items of a project in its one order, each with the scope it really stands in."""

from collections import defaultdict
from dataclasses import replace

from nanochat_chunker.slicing.items import Frame, Item, Scope
from nanochat_chunker.slicing.project import Configured


class Ordered:
    """Items by their place in the order, which is their id everywhere else.

    `paths`, `bits` and `qualifiers` give for each item its file, the place of that file in sets
    of files, and the scope as it is written before a name.
    """

    def __init__(self, project: Configured) -> None:
        self.project = project
        self.items: list[Item] = []
        self.paths: list[str] = []
        self.by_path: dict[str, list[int]] = defaultdict(list)
        self._scopes: dict[Scope, Scope] = {}
        textual = _textual(project)
        for path, item, outer in project.ordered():
            if path in textual:
                continue
            if outer:
                item = replace(item, scope=outer + item.scope)
            self.by_path[path].append(len(self.items))
            self.items.append(self._scoped(item))
            self.paths.append(path)
        self.bits = [project.bit[path] for path in self.paths]
        self.qualifiers = [item.qualifier for item in self.items]

    def _scoped(self, item: Item) -> Item:
        """An item whose namespaces are not named by macros."""
        scope = self._scopes.get(item.scope)
        if scope is None:
            scope = self._scopes[item.scope] = tuple(map(self._frame, item.scope))
        return replace(item, scope=scope) if scope != item.scope else item

    def _frame(self, frame: Frame) -> Frame:
        name = frame.name
        macro = self.project.macro(name, -1) if name else None
        if macro is None or macro.params is not None or not macro.body:
            return frame
        return Frame(frame.opener.replace(name, macro.body), macro.body)


def _textual(project: Configured) -> frozenset[str]:
    """Files that are only ever included within an item (lists for macros): no items of it."""
    inner: set[tuple[str, str]] = set()  # (who includes, what)
    outer: set[tuple[str, str]] = set()
    for path, file in project.files.items():
        tops = {item.begin for item in file.items if item.kind == "include"}
        for event in file.events:
            if event.kind == "include":
                target = project.resolve(path, str(event.value), event.extra)
                if target is not None:
                    (outer if event.start in tops else inner).add((path, target))
    textual: set[str] = set()
    while True:  # what only such files include is so, too
        whole = {target for path, target in outer if path not in textual}
        found = {target for _, target in inner} | {t for path, t in outer if path in textual}
        if not found - whole - textual:
            return frozenset(textual)
        textual |= found - whole
