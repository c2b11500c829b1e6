"""What test_chunker_fuzz has done in other processes: mutated sources through every stage."""

import pickle
import random
from pathlib import Path

from random_code import macros

from nanochat_chunker.documents import Packer
from nanochat_chunker.files import Dropped, decode, digest_of
from nanochat_chunker.includes import find_includes, include_order
from nanochat_chunker.provenance.licences import licence_in
from nanochat_chunker.provenance.origin import is_generated
from nanochat_chunker.records import parse
from nanochat_chunker.redaction import Redactor
from nanochat_chunker.slicer import ProjectSlicer
from nanochat_chunker.slicing import SliceOptions, index_file
from nanochat_chunker.slicing.index import build
from nanochat_chunker.tokens import ByteMeter

BUDGET = 600  # tokens; small, so that files are split and the ladder is climbed down
FILES = 4  # of a project, each mutated
PIECES = (
    b'{ } ( ) < > [ ] ; : :: , # \\ " \' /* */ // R"( )" R"x( <% %> ??/ \n \r \0 \xff \xc3\xa9 '
    b"\xf0\x9f\x98\x80 #if #ifdef #ifndef #elif #else #endif #define #undef #include #pragma "
    b"namespace template class struct enum union typedef using extern inline static operator "
    b"decltype auto requires concept friend public: ~ = delete; = default; noexcept -> && ... "
    b"__attribute__(( )) [[ ]] alignas( asm( goto try catch throw co_await _Pragma( __has_include("
).split(b" ")


def mutate(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """`data` after a few edits of kinds that break what a parser expects."""
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        at = rng.randrange(len(data) + 1)
        span = min(len(data) - at, rng.choice((1, 3, 20, 300)))
        match rng.randrange(9):
            case 0:
                data = data[:at] + rng.choice(PIECES) * rng.choice((1, 1, 2, 50)) + data[at:]
            case 1:
                data = data[:at] + data[at + span :]
            case 2:
                data = data[:at] + data[at : at + span] * rng.choice((2, 3, 20)) + data[at + span :]
            case 3:
                cut = rng.randrange(len(other) + 1)
                data = data[:at] + other[cut : cut + 300] + data[at:]
            case 4:
                data = data[:at]
            case 5:
                data = (
                    data[:at] + bytes(rng.randrange(256) for _ in range(span)) + data[at + span :]
                )
            case 6:
                lines = data.split(b"\n")
                rng.shuffle(lines)
                data = b"\n".join(lines)
            case 7:
                data = data.replace(rng.choice(PIECES) or b" ", rng.choice(PIECES))
            case 8:
                data = data.replace(b"\n", rng.choice((b" ", b"\r", b"\\\n", b"\n\n")), 40)
    return data[:60_000]


def check(sources: list[str], seeds: list[int]):
    """For each seed a project of mutated files, taken all the way; errors are the test's."""
    redactor = Redactor(("secrets", "emails"))
    for seed in seeds:
        rng = random.Random(seed)
        texts = {}
        for name in ("a.h", "src/b.hpp", "src/c.cc", "d.cc")[:FILES]:
            data = mutate(rng, *(Path(p).read_bytes() for p in rng.sample(sources, 2)))
            parse(data)
            source = decode(data, 100_000)
            if not isinstance(source, Dropped):
                texts[name] = redactor.redact(source.text)[0]
                digest_of(source.text)
        for path, text in texts.items():
            _parsed_anew(seed, path, text)
        yield _documents(texts)


def _parsed_anew(seed: int, path: str, text: str) -> None:
    """An index made of an earlier one is what it is without, whatever macros are known now."""
    old = index_file(path, text)
    known, shapes = macros(seed, 0.3), macros(-seed, 0.3, old.asked)
    if not old.skipped:
        assert build(path, text, known, shapes, old=old) == build(path, text, known, shapes)


def _documents(texts: dict[str, str]) -> int:
    meter = ByteMeter()
    includes = {path: find_includes(text) for path, text in texts.items()}
    packer = Packer(meter, BUDGET)
    made = []
    for path in include_order(includes, "p"):
        licence_in(texts[path][:4096])
        is_generated(path, texts[path])
        made += packer.add(path, texts[path])
    made = [document.text for document in [*made, *packer.finish()]]
    options = SliceOptions(budget=meter.limit(BUDGET), project="p")
    indexes = [index_file(path, text) for path, text in texts.items()]
    slicer = ProjectSlicer(indexes, texts.__getitem__, options, meter.units)
    made += [piece.text for path in texts for piece in slicer.slices_of(path)]
    for text in made:
        assert text.strip()
        assert meter.tokens(meter.units(text)) <= BUDGET
    return len(made)


def check_texts(_payload: None, projects: list[dict[str, str]]):
    """The same for projects given as they are."""
    for texts in projects:
        yield _documents(texts)


def slice_alone(_payload: None, texts: list[str]):
    """Each text as the only file of a project."""
    for text in texts:
        index = index_file("a.cc", text)
        assert pickle.loads(pickle.dumps(index)) == index
        slicer = ProjectSlicer([index], lambda _path, text=text: text, SliceOptions(20_000), len)
        yield len(list(slicer.slices_of("a.cc")))
