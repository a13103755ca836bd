"""Cutting cells of C++ into declarations and statements."""

from __future__ import annotations

import pytest

from cloche_agent.kernels.driven_kernel.cpp_cells import items_of


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        ("#include <vector>\n#define A \\\n 1\nint x;", "directive directive variable"),
        ("int x = 3; x += 1; x", "variable statement expression"),
        ("int f(int a) { return a; } int y = f(1);", "function variable"),
        ("std::vector<std::map<int, int>> v{{{1, 2}}}; v.push_back({});", "variable statement"),
        ("struct P { int a; void f() {} }; P p{1}; P *q = &p;", "type variable variable"),
        ("enum class E { a, b };\nunion U { int a; };", "type type"),
        ("template <class T> T f(T a) { return a; } template <> int f(int a) { }", "template global"),
        ("using namespace n; using I = int; namespace n { int a; }", "global type global"),
        ("typedef int J; typedef struct { int a; } K;", "type type"),
        ("for (int i = 0; i < 3; i++) { std::cout << i; } while (x) x--;", "statement statement"),
        ("if (a) { b(); } else if (c) d(); else { e(); } f();", "statement statement"),
        ("do { x++; } while (x < 3); do y(); while (z);", "statement statement"),
        ("try { a(); } catch (int) { } catch (...) { }", "statement"),
        ("auto f = [](int a) { return a; }; sort(v, [](int a, int b) { return a; });", "variable statement"),
        ('auto s = R"x(a; { " )x"; auto c = \';\'; // { ;\n /* ; */ s', "variable variable expression"),
        ("std::ostream &operator<<(std::ostream &o, const P &p) { return o << p.a; }", "function"),
        ("void P::f() const noexcept { } P::P(int a) : a(a) { }", "function function"),
        ("foo(x); std::cout << x << std::endl; a[1] = 2; *p = 3; ++i; (void)x;", "statement " * 6),
        ('std::string s("x"); Foo f(1, 2); int a[3] = {1, 2}; const auto &[b, c] = p;', "variable " * 4),
        ("int f(int); double g(); std::string name(const P &p);", "function " * 3),
        ("1'000'000 + x", "expression"),
        ("{ int scoped = 1; }\n;;\n", "statement"),
        ("", ""),
    ],
)  # fmt: skip
def test_items_are_what_they_look_like(code: str, kinds: str) -> None:
    assert [item.kind for item in items_of(code)] == kinds.split()


def test_items_name_what_they_declare_and_where_they_stand() -> None:
    items = items_of(
        "int a = 1, b(2), *c;\n\nint f(int x, double) { return 1; }\nstatic int d = 4; struct P;"
    )
    assert [item.line for item in items] == [1, 3, 4, 4]
    assert items[0].names == {"a", "b", "c"}
    assert items[1].names == {"f(int x, double)"}
    assert items[2].names == {"d"}
    assert items[2].text == "int d = 4;"  # static would be another object in each cell


@pytest.mark.parametrize(
    "code", ["int f( {", "'", '"', "}}}", "template <", "if (", 'R"(', "#", "/*", "a < b > c"]
)
def test_nonsense_is_left_to_the_compiler(code: str) -> None:
    assert "".join(item.text for item in items_of(code)) in code
