"""Stands in for a slicer of single files until slicing has one."""

from collections.abc import Callable, Iterator, Sequence

from nanochat_chunker.slicing import FileIndex, Slice, SliceOptions, slice_project


class ProjectSlicer:
    """All slices of a project, given by the file of their root."""

    def __init__(
        self,
        files: Sequence[FileIndex],
        read_text: Callable[[str], str],
        options: SliceOptions,
        measure: Callable[[str], int],
    ) -> None:
        self._by_path: dict[str, list[Slice]] = {}
        for piece in slice_project(files, read_text, options, measure):
            self._by_path.setdefault(piece.root.path, []).append(piece)

    def slices_of(self, path: str) -> Iterator[Slice]:
        return iter(self._by_path.get(path, []))
