"""Reading the head of a declaration: what kind it is, and the names it gives.

A head is code whose parentheses and brackets are empty, `int f()` for `int f(int a)`; comments and
literals are blank already.
"""

import re
from typing import NamedTuple

from nanochat_chunker.slicing.macro_words import MACRO_WORD, NOT_FUNCTIONS, annotated

_ANGLES = re.compile(r"<[^<>;{}]*>")
_OPERATOR = re.compile(
    r"\boperator\s*(\(\)|\[\]|\"\s*\"\s*[A-Za-z_]\w*|(?:new|delete)\b\s*(?:\[\])?|co_await\b"
    r"|[-+*/%^&|~!=<>,]+|[A-Za-z_:][^()]*?)\s*(?=\(\))"
)
_OPERATOR_NAME = re.compile(r"operator@(\d+)@")
_ATTRIBUTE = re.compile(
    r"\[\]|\b(?:__extension__\b"
    r"|(?:alignas|__attribute__|__declspec|explicit|decltype|noexcept|throw|_Pragma)\s*\(\))"
)
_FUNCTION = re.compile(
    r"(?:\b|(?=[~:]))((?:[A-Za-z_]\w*\s*::\s*|::\s*)*(?:~\s*)?(?:operator@\d+@|[A-Za-z_]\w*))"
    r"\s*\(\)"
)
_CLASS = re.compile(r"\b(class|struct|union|enum)\b(?:\s+(?:class|struct)\b)?")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_LAST_WORD = re.compile(r"([A-Za-z_]\w*)$")
_LAST_FUNCTION = re.compile(r"([A-Za-z_]\w*)\s*\(\)\s*$")
_WORD_AND_ANGLE = re.compile(r"\b([A-Za-z_]\w*)\s*<")
_SPACES = re.compile(r"\s+")
_COLON = re.compile(r"(?<!:):(?!:)")
_INITIALISER = re.compile(r"\[\]|=.*|\{.*|:\s*\d+\s*$", re.DOTALL)
_MEMBER = re.compile(r"((?:[A-Za-z_]\w*\s*::\s*)+)[A-Za-z_]\w*\s*(?:\[\]\s*|\(\)\s*)*$")
_CHAIN = re.compile(r"[A-Za-z_]\w*(?:\s*::\s*[A-Za-z_]\w*)*")
_ASSIGN = re.compile(r"(?<![=!<>+\-*/%&|^])=(?!=)")
_CONSTANT = re.compile(r"\b(?:constexpr|consteval)\b")
_DEDUCED = re.compile(r"\bauto\s*[&*]*\s*$|\bdecltype\b")
_STATIC = re.compile(r"\bstatic\b")
# A friend that has attributes cannot be declared without its body.
_ATTRIBUTED_FRIEND = re.compile(r"\(\)\s*friend\b|\b[A-Z][A-Z0-9_]{3,}\s+friend\b")
_INSTANTIATION = re.compile(r"(?:extern\s+)?template\s+(?!<)\w")
_PURE = re.compile(r"=\s*(?:0|default|delete)\b[^=]*$")
_NAMESPACE = re.compile(r"(?:^|\s)(inline\s+)?namespace\b([^;{}=]*)$")
_EXTERN_C = re.compile(r'\bextern\s*"[^"]*"\s*$')
_REQUIRES_END = re.compile(r"\brequires\s*(?:\(\)\s*)?$")
_FUNCTION_POINTER = re.compile(
    r"\(\s*(?:[\w:]+\s*)?(?:\w+::\s*)?[*&^]+\s*(?:const\s+)?([A-Za-z_]\w*)"
)


_STATEMENT = re.compile(
    r"(?:if|for|while|return|switch|do|else|case|break|continue|goto|throw|delete)\b"
    r"|(?:std\s*::\s*)?[A-Za-z_]\w*\s*(?:\[\]\s*|\(\)\s*)?(?:<<|>>|[-+*/|&^%]?=(?!=)|\.|->|\+\+|--)"
)


class Head(NamedTuple):
    """`plain` has no operators, template arguments nor attributes left in it."""

    plain: str
    operators: tuple[str, ...]
    is_template: bool
    is_special: bool


class Declared(NamedTuple):
    kind: str
    names: tuple[str, ...]
    owner: str = ""
    flags: tuple[str, ...] = ()


def simplify(head: str) -> Head:
    """A head without what hides its shape: operator names, template arguments, attributes."""
    operators: list[str] = []
    if "operator" in head:

        def keep(found: re.Match[str]) -> str:
            operators.append("".join(found[1].split()))
            return f" operator@{len(operators) - 1}@ "

        head = _OPERATOR.sub(keep, head)
    is_template = is_special = False
    if "->" in head:
        head = head.replace("->", " @ ")
    if "<" in head:
        stripped = head.lstrip()
        while stripped.startswith("template"):
            rest = stripped[8:].lstrip()
            if not rest.startswith("<"):
                break
            is_template = True
            end = _angle_end(rest)
            if not rest[1 : end - 1].strip():
                is_special = True
            stripped = rest[end:].lstrip()
            if stripped.startswith("requires"):
                found = re.match(r"requires\s*\(\)\s*", stripped)
                stripped = stripped[found.end() :] if found else stripped
        head = stripped
        for _ in range(12):
            shorter = _ANGLES.sub("", head)
            if shorter == head:
                break
            head = shorter
    if "[" in head or "(" in head or "__extension__" in head:
        head = _ATTRIBUTE.sub(" ", head)
    return Head(head, tuple(operators), is_template, is_special)


def _angle_end(text: str) -> int:
    """The end of the `<...>` that `text` begins with."""
    depth = 0
    for found in re.finditer(r"[<>]", text):
        if found.group() == "<":
            depth += 1
        else:
            if text[found.start() - 1 : found.start()] in "-=" and found.start():
                continue
            depth -= 1
            if depth == 0:
                return found.end()
    return len(text)


def namespace_of(head: str) -> tuple[str, str] | None:
    """(opener, name) where `head` opens a namespace or `extern "C"`."""
    if "namespace" in head:
        found = _NAMESPACE.search(head)
        if found is not None:
            inline, rest = found.groups()
            names = _CHAIN.findall(_ATTRIBUTE.sub(" ", rest).replace(" inline ", ""))
            name = _SPACES.sub("", names[-1]) if names else ""
            opener = f"{'inline ' if inline else ''}namespace {name}".strip()
            return opener, "" if inline else name
    if "extern" in head and _EXTERN_C.search(head):
        return 'extern "C"', ""
    return None


def assigns(head: Head) -> bool:
    """Whether the head has an initialiser, `= default` and the like aside."""
    return "=" in head.plain and _ASSIGN.search(head.plain) is not None


def class_of(head: Head) -> Declared | None:
    """The class or enum whose body follows, or None."""
    key = _CLASS.search(head.plain)
    if key is None:
        return None
    rest = head.plain[key.end() :]
    colon = _COLON.search(rest)
    if colon is not None:
        rest = rest[: colon.start()]
    if "()" in rest:
        # A function that returns `struct S`, unless it is a macro with arguments.
        rest = re.sub(r"\b[A-Z][A-Z0-9_]+\s*\(\)", " ", rest)
        if "()" in rest:
            return None
    kind = "enum" if key[1] == "enum" else "class"
    chains = [_SPACES.sub("", chain) for chain in _CHAIN.findall(rest)]
    chains = [chain for chain in chains if chain not in ("final", "typename", "sealed")]
    if not chains:
        return Declared(kind, ())
    # `class EXPORT Name FINAL`: macros stand on both sides of the name.
    chains = [chain for chain in chains if not MACRO_WORD.fullmatch(chain)] or chains
    owner, _, name = chains[-1].rpartition("::")
    return Declared(kind, (name,), owner)


def function_of(head: Head) -> Declared | None:
    """The function that a head with parameters declares, or None."""
    plain = head.plain
    if "()" not in plain:
        return None
    assign = _ASSIGN.search(plain) if "=" in plain else None
    candidates = []
    for found in _FUNCTION.finditer(plain):
        name = "".join(found[1].split())
        last = name.rpartition("::")[2]
        if last in NOT_FUNCTIONS or (assign is not None and found.start() > assign.start()):
            continue
        candidates.append((found.start(), name, last))
    if not candidates:
        return None
    start, name, last = candidates[0]
    if len(candidates) > 1 and MACRO_WORD.fullmatch(last):
        # `ATTRIBUTE(x) int f()`: a macro with arguments before, not after.
        between = plain[start + len(last) : candidates[1][0]].replace("()", "").strip()
        if not between.startswith((":", "const", "noexcept", "override", "@")):
            start, name, last = candidates[1]
    elif len(candidates) > 1 and not MACRO_WORD.fullmatch(candidates[1][2]):
        # `TYPE(x) *f()`: a macro that makes the type.
        between = plain[start + len(name) : candidates[1][0]].replace("()", "").strip()
        if (between or "::" in candidates[1][1]) and not between.strip("*& "):
            start, name, last = candidates[1]
    flags = []
    before = plain[:start]
    if ("const" in before and _CONSTANT.search(before)) or "CONSTEXPR" in before:
        flags.append("constexpr")
    deduced = ("auto" in before or "decltype" in before) and _DEDUCED.search(before)
    if deduced and " @ " not in plain[start:]:
        flags.append("auto")
    if "static" in before and _STATIC.search(before):
        flags.append("local")
    if "friend" in before and _ATTRIBUTED_FRIEND.search(before):
        flags.append("attributed")
    name = name.removeprefix("::")
    owner, _, last = name.rpartition("::")
    names: tuple[str, ...] = (_operator(last, head),)
    literal = names[0].startswith('operator""')
    if literal:
        names = (names[0], names[0][10:])
    return Declared("function", names, owner, tuple(flags))


def _operator(name: str, head: Head) -> str:
    found = _OPERATOR_NAME.fullmatch(name)
    return "operator" + head.operators[int(found[1])] if found is not None else name


def simple(head: str, raw: str) -> Declared:
    """What a head that ends with `;` declares. `raw` has its parentheses still filled."""
    text = head.strip()
    if text.startswith("using"):
        rest = text[5:].strip()
        if rest.startswith("namespace"):
            return Declared("directive", (_SPACES.sub("", rest[9:]),))
        equal = rest.find("=")
        if equal >= 0:
            found = _IDENTIFIER.match(rest)
            return Declared("alias", (found[0],) if found else ())
        using: list[str] = []
        for part in rest.removeprefix("enum ").split(","):
            chain = re.sub(r"\s+|\btypename\b|\.\.\.|<.*", "", part)
            using.append(chain.rpartition("::")[2])
        return Declared("using", tuple(name for name in using if name))
    if text.startswith("typedef"):
        return Declared("alias", _typedef_names(text, raw))
    if text.startswith("namespace"):
        found = _IDENTIFIER.search(text, 9)
        return Declared("namespace", (found[0],) if found else ())
    if text.startswith(("static_assert", "_Static_assert", "asm", "__asm")):
        return Declared("assert", ())
    if text.startswith(("module", "export", "import ")):
        return Declared("other", ())
    if text.startswith("friend"):
        return Declared("friend", ())
    if "template" in text and _INSTANTIATION.match(text):
        return Declared("instantiation", ())
    parts = simplify(text)
    plain = parts.plain.strip()
    flags: tuple[str, ...] = ("template",) if parts.is_template else ()
    if parts.is_special:
        flags = (*flags, "special")
    if parts.is_template and plain.startswith("using"):
        found = _IDENTIFIER.search(plain, 5)
        return Declared("alias", (found[0],) if found else (), flags=flags)
    if parts.is_template and plain.startswith("friend"):
        return Declared("friend", ())
    if parts.is_template and plain.startswith("concept"):
        found = _IDENTIFIER.search(plain, 7)
        return Declared("alias", (found[0],) if found else (), flags=flags)
    forward = _forward(plain)
    if forward:
        return Declared(
            "forward", (forward.rpartition("::")[2],), forward.rpartition("::")[0], flags
        )
    if not assigns(parts) or _PURE.search(plain):
        function = function_of(parts)
        if function is not None:
            data = annotated(plain) if MACRO_WORD.fullmatch(function.names[0]) else ""
            if data:
                return Declared("variable", (data,), "", (*function.flags, *flags))
            return function._replace(kind="prototype", flags=(*function.flags, *flags))
    else:
        function = function_of(parts)
        if function is not None and "@" in function.names[0]:
            return function._replace(kind="prototype", flags=(*function.flags, *flags))
    data = annotated(plain)
    names, owner = ((data,), "") if data else _variable_names(plain, raw)
    external = plain.startswith("extern") and "=" not in plain
    if "static" in plain and _STATIC.search(plain):
        flags = (*flags, "local")
    return Declared("extern" if external else "variable", names, owner, flags)


def _forward(plain: str) -> str:
    if not plain.startswith(("class", "struct", "union", "enum")):
        return ""
    found = re.match(
        r"(?:class|struct|union|enum(?:\s+class|\s+struct)?)\s+((?:[\w:]+\s+|\w+\s*\(\)\s*)*?)"
        r"([A-Za-z_][\w:]*)\s*(?:(?<!:):(?!:)[\w:\s]+)?$",
        plain,
    )
    if found is None:
        return ""
    for word in found[1].split():
        if not MACRO_WORD.fullmatch(word.removesuffix("()")):
            return ""
    return found[2].strip(":")


def _typedef_names(text: str, raw: str) -> tuple[str, ...]:
    found = _FUNCTION_POINTER.search(raw)
    if found is not None:
        return (found[1],)
    names = declarators(text)
    if names:
        return names
    function = _LAST_FUNCTION.search(text)
    return (function[1],) if function else ()


def declarators(text: str) -> tuple[str, ...]:
    """The names after a type: `int a, *b[2]` gives a and b."""
    for _ in range(12):
        shorter = _ANGLES.sub("", text)
        if shorter == text:
            break
        text = shorter
    names = []
    for part in text.split(","):
        found = _LAST_WORD.search(_INITIALISER.sub(" ", part).strip())
        if found is not None and found[1] not in ("const", "override", "final"):
            names.append(found[1])
    return tuple(names)


def _variable_names(plain: str, raw: str) -> tuple[tuple[str, ...], str]:
    assign = _ASSIGN.search(plain)
    head = plain[: assign.start()] if assign else plain
    if "(" in head:
        found = _FUNCTION_POINTER.search(raw)
        if found is not None:
            return (found[1],), ""
    owner = _MEMBER.search(head) if "::" in head else None
    names = declarators(plain if assign is None or "," in plain[assign.end() :] else head)
    # `a = f(x), b`: what follows a comma may be an expression; only plain names count.
    if owner is None or " " not in head.strip():
        return names, ""
    return names, _SPACES.sub("", owner[1]).strip(":")


def is_statement(head: str) -> bool:
    """Whether it can only stand in a function: `cout << x`, `x = 3`, `if ()`."""
    found = _STATEMENT.match(head)
    return found is not None and not head[found.start() : found.end()].isupper()


def is_requires(head: str) -> bool:
    """Whether a brace after this head opens a requires-expression."""
    return _REQUIRES_END.search(head) is not None


def is_specialised(head: str, name: str) -> bool:
    """Whether a class head gives `name` template arguments."""
    key = max(head.rfind("class "), head.rfind("struct "), head.rfind("union "))
    colon = head.find(" : ", key)
    return name in _WORD_AND_ANGLE.findall(head[key : colon if colon > 0 else None])


def flags_of(parts: Head) -> tuple[str, ...]:
    """Whether it is a template, and a specialisation."""
    if parts.is_special:
        return ("template", "special")
    return ("template",) if parts.is_template else ()


def enumerators(body: str) -> tuple[str, ...]:
    """The names that the body of an enum gives."""
    names = []
    depth = 0
    expect = True
    for found in re.finditer(r"[A-Za-z_]\w*|[(){}\[\],=]", body):
        token = found.group()
        if token in ("(", "{", "["):
            depth += 1
        elif token in (")", "}", "]"):
            depth -= 1
        elif token == ",":
            expect = depth == 0 or expect
        elif token == "=":
            expect = False
        elif expect and depth == 0:
            names.append(token)
            expect = False
    return tuple(names)
