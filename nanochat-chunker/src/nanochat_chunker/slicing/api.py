"""The two calls that the rest of the program makes."""

from collections.abc import Callable, Iterator, Sequence

from nanochat_chunker.slicing.model import FileIndex, Root, Slice, SliceOptions


def index_file(path: str, text: str) -> FileIndex:
    """What slicing needs to know of one file. Pure; never raises for any text."""
    return FileIndex(path, len(text))


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
    for file in sorted(files, key=lambda file: file.path):
        text = read_text(file.path)
        if text.strip() and measure(text) <= options.budget:
            yield Slice(text, (Root(file.path, 1, file.path, "file"),), (file.path,), "file")
