"""Which translation unit reads which files of a project: each is read once."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from nanochat_chunker.includes import Include, Resolver

SOURCES = (".c", ".cc", ".cpp", ".cxx", ".c++", ".cu", ".cppm", ".ixx")

_LAST = ("test", "example", "bench", "fuzz")  # sources that more often lack what they include


class UnitOrder(NamedTuple):
    """A translation unit to parse, and the files to read in it: its own and headers."""

    path: str
    wanted: tuple[str, ...]


def units_of(
    includes: Mapping[str, Sequence[Include]], project_name: str, first: Collection[str] = ()
) -> list[UnitOrder]:
    """Units that together reach all files of `includes` (path to what it includes).

    A header is read in the first unit that includes it, where it has what it needs before it, as
    the order of the project has it: sources by path, those that others include aside, and then the
    headers that no source reaches. `first` are sources to take before the others.
    """
    resolver = Resolver(sorted(includes), project_name)
    targets = {
        path: [
            found
            for include in includes[path]
            if (found := resolver.resolve(path, include)) is not None
        ]
        for path in sorted(includes)
    }
    included = {target for path, found in targets.items() for target in found if target != path}
    sources = [path for path in targets if path.lower().endswith(SOURCES)]
    sources.sort(key=lambda path: (path not in first, any(w in path.lower() for w in _LAST)))
    free = [path for path in targets if path not in included]
    roots = [path for path in sources if path not in included]
    roots += [path for path in free if path not in set(roots)]
    roots += list(targets)  # cycles, and sources that others include
    taken: set[str] = set()
    units = []
    for root in roots:
        if root in taken:
            continue
        taken.add(root)
        wanted = [root]
        for path in wanted:  # grows
            for target in targets[path]:
                if target not in taken:
                    taken.add(target)
                    wanted.append(target)
        units.append(UnitOrder(root, tuple(wanted)))
    return units
