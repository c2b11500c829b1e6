"""The two calls that the rest of the program makes."""

from collections.abc import Callable, Iterator, Sequence

from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.index import build
from nanochat_chunker.slicing.ladder import Ladder
from nanochat_chunker.slicing.model import FileIndex, Slice, SliceOptions
from nanochat_chunker.slicing.project import Configured


def index_file(path: str, text: str) -> FileIndex:
    """What slicing needs to know of one file. Pure; never raises for any text."""
    try:
        return build(path, text)
    except Exception as error:  # noqa: BLE001 - one strange file must not end a run
        return FileIndex(path, len(text), skipped=type(error).__name__)


def slice_project(
    files: Sequence[FileIndex],
    read_text: Callable[[str], str],
    options: SliceOptions,
    measure: Callable[[str], int],
) -> Iterator[Slice]:
    """The documents of one project, in a fixed order: by path of their root, then by line.

    `read_text` gives the text that `index_file` was given; `measure` the length of a text in the
    units of the budget. Raises what `read_text` raises.
    """
    graph = Graph(Configured(files, read_text, options.project))
    ladder = Ladder(graph, options, measure)
    for path in sorted(graph.project.files):
        yield from ladder.documents(path)
