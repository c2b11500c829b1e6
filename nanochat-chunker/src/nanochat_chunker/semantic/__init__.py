"""Slices by libclang: the same documents, where a compiler says which name refers to what.

    units = units_of(includes, name)                       # which unit reads which file
    facts = ProjectReader(root, name, files, read_text).read(unit)    # in parallel over units
    slicer = semantic_slicer(indexes, facts, read_text, options, measure, Checker())

Where libclang has nothing useful to say of a file, the engine's own reading holds for it.
"""

from nanochat_chunker.semantic.checking import Checker
from nanochat_chunker.semantic.facts import FileFacts
from nanochat_chunker.semantic.graph import semantic_slicer
from nanochat_chunker.semantic.project import ProjectReader, SourceFile
from nanochat_chunker.semantic.units import UnitOrder, units_of

__all__ = [
    "Checker", "FileFacts", "ProjectReader", "SourceFile", "UnitOrder", "semantic_slicer",
    "units_of",
]  # fmt: skip
