"""What a Python file means, and what it imports, without running it.

Two files that differ in comments, layout and docstrings alone mean the same. A docstring counts where it may be read:
in a module that mentions `__doc__`, and under a decorator that isn't known to leave it alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256

_DIGITS = 16
_LEAVE_DOCSTRINGS_ALONE = {
    *("abstractmethod", "cache", "cached_property", "classmethod", "contextmanager", "dataclass", "final"),
    *("inference_mode", "lru_cache", "no_grad", "overload", "override", "property", "setter", "staticmethod"),
}
_READS_DOCSTRINGS = {"__doc__", "getdoc", "getsource", "getsourcelines"}
_FINDS_MODULES = {
    *("__import__", "exec", "import_module", "iter_modules", "run_module", "run_path", "spec_from_file_location"),
    *("walk_packages", "load_module", "exec_module"),
}

_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Import:
    """One import statement.

    Attributes:
        module: What it names, without the dots of a relative one.
        level: Number of those dots.
        names: What is taken from it: by `from`, or as attributes; None for everything.
        by_from: Whether the names come after `from … import`.
    """

    module: str
    level: int
    names: frozenset[str] | None
    by_from: bool


@dataclass(frozen=True)
class Meaning:
    """What a file means.

    Attributes:
        digest: The same for files that mean the same.
        imports: Wherever they stand, in functions too; not those for type checkers alone.
        strings: Constants that may name modules.
        finds_modules: Whether it calls something that runs code which no import statement names.
        exports: Where it does nothing but import names for others to take: name -> (module, level, name there).
    """

    digest: str
    imports: tuple[Import, ...] = ()
    strings: frozenset[str] = frozenset()
    finds_modules: bool = False
    exports: Mapping[str, tuple[str, int, str]] | None = None


_known: dict[tuple[bytes, bool], Meaning] = {}


def meaning_of(content: bytes, *, docstrings: bool) -> Meaning:
    """Say what a file's content means.

    Args:
        content: Of the file; one that isn't Python means its bytes.
        docstrings: Whether docstrings that may be read count.
    """
    key = (sha256(content).digest(), docstrings)
    if key not in _known:
        _known[key] = _parse(content, docstrings)
    return _known[key]


def _parse(content: bytes, docstrings: bool) -> Meaning:
    try:
        tree = ast.parse(content)
        typed = _with_type_comments(content)
    except (SyntaxError, ValueError, RecursionError):
        return Meaning(sha256(content).hexdigest()[:_DIGITS])
    names = {found for node in ast.walk(tree) if (found := _name(node))}
    kept = docstrings and bool(names & _READS_DOCSTRINGS)
    tree = _Essence(kept, docstrings).visit(typed or tree)
    digest = sha256(ast.dump(tree, annotate_fields=False).encode()).hexdigest()[:_DIGITS]
    strings = frozenset(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return Meaning(digest, tuple(_imports(tree)), strings, bool(names & _FINDS_MODULES), _exports(tree))


def _with_type_comments(content: bytes) -> ast.Module | None:
    """Parse type comments too, which TorchScript reads; None where one of them is malformed."""
    if b"type:" not in content:
        return None
    try:
        tree = ast.parse(content, type_comments=True)
    except SyntaxError:
        return None
    tree.type_ignores = []
    return tree


def _name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


class _Essence(ast.NodeTransformer):
    """Removes what is never run, and strings that stand for themselves."""

    def __init__(self, kept: bool, careful: bool) -> None:
        self._kept, self._careful = kept, careful

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list) and any(_stands_for_itself(part) for part in body):
                first = body[:1] if isinstance(node, _Documented) and self._keeps_docstring(node) else []
                rest = [part for part in body[len(first) :] if not _stands_for_itself(part)]
                setattr(node, field, [*first, *rest] or [ast.Pass()])
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if _name(node.test) == "TYPE_CHECKING":
            return node.orelse or ast.Pass()
        return node

    def _keeps_docstring(self, node: _Documented) -> bool:
        if self._kept:
            return True
        decorators = getattr(node, "decorator_list", [])
        names = (_name(one.func if isinstance(one, ast.Call) else one) for one in decorators)
        return self._careful and any(name not in _LEAVE_DOCSTRINGS_ALONE for name in names)


def _stands_for_itself(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.AST) -> Iterator[Import]:
    attributes: dict[str, set[str]] = {}
    bare: dict[str, int] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.setdefault(node.value.id, set()).add(node.attr)
            bare[node.value.id] = bare.get(node.value.id, 0) - 1
        elif isinstance(node, ast.Name):
            bare[node.id] = bare.get(node.id, 0) + 1
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = frozenset(alias.name for alias in node.names)
            yield Import(node.module or "", node.level, None if "*" in names else names, True)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or (alias.name if "." not in alias.name else None)
                whole = bound is None or bare.get(bound, 0) > 0
                taken = None if whole else frozenset(attributes.get(str(bound), ()))
                yield Import(alias.name, 0, taken, False)


def _exports(tree: ast.Module) -> dict[str, tuple[str, int, str]] | None:
    found: dict[str, tuple[str, int, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.names[0].name != "*":
            for alias in node.names:
                found[alias.asname or alias.name] = (node.module or "", node.level, alias.name)
        elif not (isinstance(node, ast.Import | ast.Pass) or _is_list_of_exports(node)):
            return None
    return found


def _is_list_of_exports(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and [_name(target) for target in node.targets] == ["__all__"]
