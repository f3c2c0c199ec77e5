"""Which names may still be read after a statement: a backward analysis of a function's syntax tree.

Only names that are read later become values of a loop or of an `if`; what a branch or a loop leaves in other names
does not matter.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Names = frozenset[str]
NONE: Names = frozenset()


@dataclass
class Liveness:
    """The names that are live after each statement, and at the head of each loop, by identity of the node."""

    after: dict[ast.stmt, Names] = field(default_factory=dict)
    head: dict[ast.stmt, Names] = field(default_factory=dict)


def analyse(function: ast.FunctionDef) -> Liveness:
    """Analyse a function; nothing is live at its end."""
    found = Liveness()
    _block(function.body, NONE, NONE, NONE, found)
    return found


def loads(node: ast.AST | None) -> Names:
    """Return the names that an expression reads."""
    if node is None:
        return NONE
    return frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def targets(node: ast.AST | None) -> Names:
    """Return the names that the targets of an assignment bind."""
    if node is None:
        return NONE
    return frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def assigned(statements: Sequence[ast.stmt]) -> list[str]:
    """Return the names that statements may bind, in order of appearance; comprehensions keep theirs to themselves."""
    found: dict[str, None] = {}
    for statement in statements:
        for node in _walk_outside_comprehensions(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found[node.id] = None
    return list(found)


def _walk_outside_comprehensions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.comprehension):
            yield from _walk_outside_comprehensions(child)


def _block(body: Sequence[ast.stmt], out: Names, brk: Names, cont: Names, found: Liveness) -> Names:
    for statement in reversed(body):
        found.after[statement] = out
        out = _statement(statement, out, brk, cont, found)
    return out


def _statement(node: ast.stmt, out: Names, brk: Names, cont: Names, found: Liveness) -> Names:
    if isinstance(node, ast.Assign):
        written = frozenset[str]().union(*(targets(t) for t in node.targets))
        read = frozenset[str]().union(*(loads(t) for t in node.targets))
        return (out - written) | read | loads(node.value)
    if isinstance(node, ast.AnnAssign):
        return (out - targets(node.target)) | loads(node.target) | loads(node.value) | loads(node.annotation)
    if isinstance(node, ast.AugAssign):
        return out | targets(node.target) | loads(node.target) | loads(node.value)
    if isinstance(node, ast.If):
        then = _block(node.body, out, brk, cont, found)
        orelse = _block(node.orelse, out, brk, cont, found)
        return loads(node.test) | then | orelse
    if isinstance(node, (ast.For, ast.While)):
        return _loop(node, out, found)
    if isinstance(node, ast.With):
        inner = _block(node.body, out, brk, cont, found)
        for item in node.items:
            inner |= loads(item.context_expr)
        return inner
    if isinstance(node, ast.Return):
        return loads(node.value)
    if isinstance(node, ast.Break):
        return brk
    if isinstance(node, ast.Continue):
        return cont
    return out | loads(node)


def _loop(node: ast.For | ast.While, out: Names, found: Liveness) -> Names:
    endless = isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and bool(node.test.value)
    bound = targets(node.target) if isinstance(node, ast.For) else NONE
    test = loads(node.test) if isinstance(node, ast.While) else NONE
    head = test if endless else out | test
    while True:
        inside = _block(node.body, head, out, head, found)
        grown = head | (inside - bound)
        if grown == head:
            break
        head = grown
    found.head[node] = head
    return head | (loads(node.iter) if isinstance(node, ast.For) else NONE)
