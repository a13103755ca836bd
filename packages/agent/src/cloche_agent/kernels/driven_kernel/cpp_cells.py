# ruff: noqa: UP045 - runs on Python 3.9
"""A cell of C++, cut into what stands at the top level of a file and what has to stand in a function.

No parser of C++: it finds where each item ends by brackets and semicolons, and tells declarations from
statements by their first words. Where it is wrong the compiler says so, and nothing was run.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

_SKIPPED = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | R"(?P<mark>[^\s()\\]{0,16})\(.*?\)(?P=mark)" | "(?:\\.|[^"\\\n])*"
        | (?<![0-9a-zA-Z_])'(?:\\.|[^'\\\n])*' """,
    re.DOTALL | re.VERBOSE,
)
"""Where brackets and semicolons mean nothing: comments, strings, characters."""
_WORD = re.compile(r"[A-Za-z_]\w*")
_CONTROL = ("if", "for", "while", "do", "switch", "try")
_STATEMENTS = frozenset(
    (*_CONTROL, "return", "throw", "delete", "goto", "break", "continue", "new", "this", "sizeof", "case")
)
_GLOBAL = frozenset(("using", "namespace", "extern", "static_assert"))
_TYPES = frozenset(("struct", "class", "union", "enum"))
_SPECIFIERS = frozenset(
    (
        *(
            "auto",
            "const",
            "constexpr",
            "consteval",
            "constinit",
            "static",
            "inline",
            "thread_local",
            "volatile",
        ),
        *("unsigned", "signed", "int", "char", "bool", "float", "double", "long", "short", "void", "wchar_t"),
        *("char8_t", "char16_t", "char32_t", "decltype", "typename", "register"),
    )
)
_BODY = re.compile(r"\)(\s*(const|noexcept|override|final|mutable|&&?|->[^;{]*|requires[^;{]*|:[^;]*))*\s*\Z")
_CONSTRUCTOR = re.compile(r"(?:\w+::)*(\w+)::~?\1\s*\(")
_ASSIGNMENT = re.compile(r"(?<![=!<>+\-*/%&|^])=(?!=)")
_NAME_AT_END = re.compile(r"(?:[\w:]*::)?(operator\s*\S+|~?\w+)\s*\Z")


class Item(NamedTuple):
    """One piece of a cell.

    Attributes:
        kind: directive, global, type, template, function, variable, statement or expression.
        text: Its source.
        line: Where it begins, counted from 1.
        names: What it declares; of a function with its parameters.
    """

    kind: str
    text: str
    line: int
    names: frozenset[str] = frozenset()


def items_of(code: str) -> list[Item]:
    """Cut a cell into its items, in order."""
    found: list[Item] = []
    at = 0
    while (at := _next(code, at)) < len(code):
        end = _line_end(code, at) if code[at] == "#" else _item_end(code, at)
        text = code[at:end].rstrip()
        found.append(_item(text, code.count("\n", 0, at) + 1, is_last=_next(code, end) >= len(code)))
        at = end
    return found


# --- where an item ends


def _next(code: str, at: int) -> int:
    """The first place from `at` on that is neither space, comment nor lone semicolon."""
    while at < len(code):
        if code.startswith(("//", "/*"), at):
            skipped = _SKIPPED.match(code, at)
            at = skipped.end() if skipped else len(code)
        elif code[at].isspace() or code[at] == ";":
            at += 1
        else:
            break
    return at


def _line_end(code: str, at: int) -> int:
    end = code.find("\n", at)
    while end > 0 and code[end - 1] == "\\":
        end = code.find("\n", end + 1)
    return len(code) if end < 0 else end


def _item_end(code: str, start: int) -> int:
    depth = 0
    is_body = False
    first = _first_word(code[start:])
    at = start
    while at < len(code):
        if (skipped := _SKIPPED.match(code, at)) is not None:
            at = skipped.end()
            continue
        character = code[at]
        at += 1
        if character in "([{":
            if depth == 0 and character == "{":
                is_body = _is_body(code[start : at - 1], first)
            depth += 1
        elif character in ")]}":
            depth -= 1
            ends = depth == 0 and character == "}" and is_body
            if ends and not _goes_on(code, at, first):
                return at
        elif character == ";" and depth <= 0 and not _goes_on(code, at, first):
            return at
    return len(code)


def _is_body(head: str, first: str) -> bool:
    """Whether the brace after `head` opens what ends an item by itself, with no semicolon."""
    plain = _SKIPPED.sub(" ", head).strip()
    if not plain or first in _CONTROL or first in ("namespace", "extern"):
        return True
    if plain.startswith("template"):
        plain = _without_parameters(plain)
        first = _first_word(plain)
    outside = _outside_brackets(plain)
    if _ASSIGNMENT.search(outside.replace("operator=", "")) or first == "concept":
        return False
    if first in _TYPES and "(" not in plain:
        return False
    return not plain.startswith("[") and _BODY.search(plain) is not None


def _goes_on(code: str, at: int, first: str) -> bool:
    """Whether what begins with the word `first` has more after this end of a part of it."""
    word = _first_word(code[_next_without_semicolon(code, at) :])
    if first == "do":
        # The body's end, or the end of a statement in it; the last semicolon follows the condition.
        return word == "while" or not re.search(r"\bwhile\s*\(.*\)\s*;\Z", code[:at], re.DOTALL)
    return (first == "if" and word == "else") or (first == "try" and word == "catch")


def _next_without_semicolon(code: str, at: int) -> int:
    return at if at < len(code) and code[at] == ";" else _next(code, at)


# --- what it is


def _item(text: str, line: int, *, is_last: bool) -> Item:
    plain = _SKIPPED.sub(lambda match: " " if match[0].startswith("/") else '""', text).strip()
    first = _first_word(plain)
    if text.startswith("#"):
        return Item("directive", text, line)
    if is_last and not plain.endswith((";", "}")):
        return Item("expression", text, line)
    if first in _STATEMENTS or plain.startswith("{"):
        return Item("statement", text, line)
    if first in _GLOBAL:
        alias = re.match(r"using\s+(\w+)\s*=", plain)
        return Item("type", text, line, frozenset([alias[1]])) if alias else Item("global", text, line)
    if first == "typedef":
        return Item("type", text, line, frozenset(_WORD.findall(plain)[-1:]))
    if first == "template":
        return _template(text, plain, line)
    if first in _TYPES and "(" not in plain.partition("{")[0]:
        named = re.match(r"\w+(?:\s+class|\s+struct)?\s+(\w+)", plain)
        return Item("type", text, line, frozenset([named[1]] if named else []))
    if first not in _SPECIFIERS and not _declares(plain) and not _CONSTRUCTOR.match(plain):
        return Item("statement", text, line)
    return _declaration(text, plain, line)


def _template(text: str, plain: str, line: int) -> Item:
    rest = _without_parameters(plain)
    if re.match(r"template\s*<\s*>", plain):
        return Item("global", text, line)
    named = re.match(r"(?:struct|class|union|concept|using)\s+(\w+)", rest)
    if named:
        return Item("template", text, line, frozenset([named[1]]))
    function = _function_name(rest)
    return Item("template", text, line, frozenset([function] if function else []))


def _declaration(text: str, plain: str, line: int) -> Item:
    head = _outside_brackets(plain).partition("{")[0]
    if plain.endswith("}") or _is_prototype(plain, head):
        function = _function_name(plain)
        return Item("function", text, line, frozenset([function] if function else []))
    text = re.sub(r"\A((?:inline|thread_local|const|constexpr)\s+)*static\s+", r"\1", text)
    names = [
        found[1]
        for part in head.rstrip("; ").split(",")
        if (found := _NAME_AT_END.search(re.split(r"[=(\[{]", part, maxsplit=1)[0]))
    ]
    return Item("variable", text, line, frozenset(names))


def _is_prototype(plain: str, head: str) -> bool:
    """Whether `T f(...);` declares a function: its brackets are empty, or begin with a type and a name."""
    if "=" in head or "(" not in plain:
        return False
    inside = plain[plain.index("(") + 1 : plain.rindex(")")].strip() if ")" in plain else ""
    return not inside or (_first_word(inside) in _SPECIFIERS) or _declares(inside.split(",")[0] + ";")


def _declares(plain: str) -> bool:
    """Whether it is a type, then a name that is declared."""
    at = 0
    while True:
        word = re.compile(r"(?:::)?\s*[A-Za-z_]\w*").match(plain, at)
        if word is None:
            return False
        at = word.end()
        if plain[at : at + 1] == "<":
            at = _angle_end(plain, at)
            if at < 0:
                return False
        if not plain.startswith("::", at):
            break
    rest = re.compile(
        r"(?:\s+const\b|\s+volatile\b)*(?P<between>[\s*&]+)(?P<name>(?:\w+::)*~?[A-Za-z_]\w*)\s*(?P<next>.?)"
    )
    found = rest.match(plain, at)
    return found is not None and (
        found["name"] == "operator" or found["next"] in ("=", ";", "{", "(", "[", ",", ":")
    )


def _function_name(plain: str) -> Optional[str]:
    """Name and parameters, so that overloads are told apart: `f(int,double)`."""
    opens = plain.find("(")
    if "operator()" in plain:
        opens = plain.find("(", plain.index("operator()") + len("operator()"))
    name = _NAME_AT_END.search(plain[:opens]) if opens >= 0 else None
    if name is None:
        return None
    closes, depth = opens, 0
    for closes in range(opens, len(plain)):
        depth += (plain[closes] == "(") - (plain[closes] == ")")
        if depth == 0:
            break
    return name[1] + re.sub(r"\s+", " ", plain[opens : closes + 1])


# --- words and brackets


def _first_word(plain: str) -> str:
    plain = re.sub(r"\A(\s*\[\[.*?\]\])+", "", plain).lstrip()
    found = _WORD.match(plain)
    return found[0] if found else ""


def _without_parameters(plain: str) -> str:
    """What follows `template <...>`, and its constraint where that is plain."""
    while plain.startswith("template"):
        end = _angle_end(plain, plain.find("<"))
        if end < 0:
            return plain
        plain = plain[end:].lstrip()
    return plain


def _angle_end(plain: str, at: int) -> int:
    """Where the angle bracket at `at` is closed; -1 where it is none but a comparison or a shift."""
    depth = 0
    for end in range(at, len(plain)):
        character = plain[end]
        depth += (character == "<") - (character == ">" and plain[end - 1] != "-")
        if character in ";{}" or plain.startswith(("<<", "&&", "||"), end):
            return -1
        if depth == 0:
            return end + 1
    return -1


def _outside_brackets(plain: str) -> str:
    kept: list[str] = []
    depth = 0
    for character in plain:
        depth -= character in ")]}>" and depth > 0
        if depth == 0:
            kept.append(character)
        depth += character in "([{" or (character == "<" and not "".join(kept).endswith("<<"))
    return "".join(kept)
