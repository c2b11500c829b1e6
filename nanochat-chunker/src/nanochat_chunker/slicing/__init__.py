"""Documents that compile by themselves: self-contained slices of a C++ project.

    indexes = [index_file(path, text) for path, text in files]          # in parallel over files
    for piece in slice_project(indexes, read_text, options, measure):   # one project
        write(piece.text, piece.root, piece.roots, piece.paths)

Paths are relative to the project's root, with `/`. `index_file` is pure and never raises, whatever
the text; `slice_project` is deterministic and does not depend on the order of `files`.

A file without a known extension that others include (`Eigen/Core`) belongs among `files` too: what
hangs on it is not self-contained otherwise.
"""

from nanochat_chunker.slicing.api import index_file, slice_project
from nanochat_chunker.slicing.model import FileIndex, Root, Slice, SliceOptions

__all__ = ["FileIndex", "Root", "Slice", "SliceOptions", "index_file", "slice_project"]
