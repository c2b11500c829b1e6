"""A project ready to be sliced, file by file: any process may take any of its files."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from nanochat_chunker.slicing import FileIndex, Slice, SliceOptions
from nanochat_chunker.slicing.graph import Graph
from nanochat_chunker.slicing.ladder import Ladder
from nanochat_chunker.slicing.model import Told
from nanochat_chunker.slicing.project import Configured


class ProjectSlicer:
    """What `slice_project` makes, by the file of the roots; files do not depend on each other."""

    def __init__(
        self,
        files: Sequence[FileIndex],
        read_text: Callable[[str], str],
        options: SliceOptions,
        measure: Callable[[str], int],
        told: Told | None = None,
        graph: Callable[[Configured], Graph] = Graph,
        ladder: Callable[[Graph, SliceOptions, Callable[[str], int]], Ladder] = Ladder,
    ) -> None:
        """`told` is what a compiler says of the files, `graph` makes of them what needs what, and
        `ladder` the documents."""
        self._project = Configured(files, read_text, options.project, told)
        self.graph = graph(self._project)
        self._ladder = ladder(self.graph, options, measure)

    def skipped(self, path: str) -> str:
        """Why a file is the root of no document; '' where it may be."""
        return self._project.skipped(path)

    def take_notes(self) -> Counter[str]:
        """What there is to say of the documents made since the last call."""
        notes = Counter(self._ladder.notes)
        self._ladder.notes.clear()
        return +notes

    def slices_of(self, path: str, left_out: Counter[str] | None = None) -> Iterator[Slice]:
        """The slices of a file; its definitions that are the root of none go to `left_out`."""
        return self._ladder.documents(path, left_out)
