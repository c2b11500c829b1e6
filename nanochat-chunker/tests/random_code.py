"""Code made at random of what parsing finds hard, and macros for the names in it."""

import random
import re

from nanochat_chunker.slicing.macros import Macro

NAMES = "FOO_BEGIN FOO_END BAR baz_q QUX T MAC EXPORT A_B NULL final DISABLE_X POP_Y".split()
WORDS = ["a", "b", "S", "f", "g", *NAMES]
# $n is a name that may be a macro, $w another or a plain word, $s more of the same.
PIECES = (
    "$n\n",
    "$n($w)\n",
    "$n($w, $n($w));\n",
    "$n($w) int $w();\n",
    "$w $n ($w)($w a);\n",
    "$n&($w)(int a) { return a; }\n",
    "int $n($w);\n",
    "$n = 3;\n",
    "$n($w, b) { $n(x); $w(); }\n",
    "void $w() try { $w; } catch (...) { }\n",
    "void $w() { $n; }\n",
    "class $n $w { $s };\n",
    "struct $w { $s }\n",
    "struct { $s } $w;\n",
    "namespace { $s }\n",
    "namespace $n { $s }\n",
    "}\n",
    'extern "C" { $s }\n',
    "#if M1\n$s#else\n$s#endif\n",
    "#ifdef $n\n$s#endif\n",
    "#define $n $w\n",
    "#define $n namespace y {\n",
    "#define $n(a) a##$w\n",
    "#define $n(a) int $w; $n(a)\n",
    "#undef $n\n",
    "#include $n\n",
    '#include "$w.h"\n',
    "// a comment\n",
    "/* a\n comment */ ",
    "enum $w { a, $n, b = $n(2) };\n",
    "$n $n $w = { 1, 2 };\n",
    "static int $w = 1;\n",
    "$w($w a) : x($n()), y { 2 } { $w; }\n",
    "$w($w a) : $n ($w)($w), y(2) { }\n",
    " public: $n\n",
    "typedef $n ($w)(int);\n",
    "template <class $w> $n $w::$w($n a) { return $n(a); }\n",
    "using $w = $n;\n#if M1\n$s#endif\n",
    "struct $w { $s } $n($w)\n#if M1\n;\n#else\nint $w() { }\n#endif\n",
    "class\n#if M1\n $n x\n#else\n $n y\n#endif\n{ $s $n(int a); $n(x) };\n",
    "#if M1\n#define FOO_END x\n#else\n#define BAR(x) y\n#endif\n FOO_END = 3;\nBAR(2) = 3;",
    "int $w[] = {\n#include $n\n};\n",
    *"( ) { } [ ] ; : , =".split(),
)
BODIES = (
    "", "", "namespace x {", "namespace {", "}", 'extern "C" {', "int", "int f();", "class", "x;",
    "a ## b", "__attribute__((x))", "1", "0", '"x.h"', "T(a)", "struct a {};", "static a", "a",
)  # fmt: skip


def code(rng: random.Random) -> str:
    return "".join(_piece(rng, 0) for _ in range(rng.randrange(1, 25)))


def _piece(rng: random.Random, depth: int) -> str:
    def fill(found: re.Match[str]) -> str:
        if found[1] == "s":
            return "".join(_piece(rng, depth + 1) for _ in range(rng.randrange(4 - depth)))
        return rng.choice(NAMES if found[1] == "n" else WORDS)

    return re.sub(r"\$([nws])", fill, rng.choice(PIECES))


def macros(seed: int, share: float, names: tuple[str, ...] = ()):
    """A lookup by which that share of all names are macros; bodies may name `names`."""
    found: dict[str, Macro | None] = {}

    def lookup(name: str) -> Macro | None:
        if name not in found:
            rng = random.Random(f"{seed} {name}")
            parameters = rng.choice((None, (), ("a",), ("a", "b")))
            body = rng.choice((*BODIES, *names))
            found[name] = Macro(name, parameters, body) if rng.random() < share else None
        return found[name]

    return lookup
