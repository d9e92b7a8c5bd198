"""What a Python file means, and what it imports, without running it.

Two files that differ in comments, layout and docstrings alone mean the same. A docstring counts where it may be read:
in a module that mentions `__doc__`, and under a decorator that isn't known to leave it alone.
"""

from __future__ import annotations

import ast
import re
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
    *("walk_packages", "load_module", "exec_module", "locate", "resolve_name", "addsitedir"),
}

NAMES_A_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*([.:][^\W\d]\w*)+")
"""What a text looks like that may name a module: `package.module` or `package.module:name`."""

_TYPE_COMMENT = re.compile(rb"#\s*type:(?!\s*ignore\b)")

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
        exports: Where it does nothing but import names for others to take, at once or when they are first used:
            name -> (module, level, name there).
    """

    digest: str
    imports: tuple[Import, ...] = ()
    strings: frozenset[str] = frozenset()
    finds_modules: bool = False
    exports: Mapping[str, tuple[str, int, str]] | None = None


_known: dict[str, Meaning] = {}


def meaning_of(content: bytes, *, docstrings: bool) -> Meaning:
    """Say what a file's content means.

    Args:
        content: Of the file; one that isn't Python means its bytes.
        docstrings: Whether docstrings that may be read count.
    """
    key = f"{sha256(content).hexdigest()}{'+' if docstrings else ''}"
    if key not in _known:
        _known[key] = _parse(content, docstrings)
    return _known[key]


def known_meanings() -> dict[str, Meaning]:
    """Return what this process has parsed, for another one of the same code to `learn`: parsing takes seconds."""
    return dict(_known)


def learn(meanings: Mapping[str, Meaning]) -> None:
    """Take over what `known_meanings` returned."""
    _known.update(meanings)


def _parse(content: bytes, docstrings: bool) -> Meaning:
    try:
        tree = ast.parse(content)
        typed = _with_type_comments(content)
    except (SyntaxError, ValueError, RecursionError):
        return Meaning(sha256(content).hexdigest()[:_DIGITS])
    exports = _exports(tree)
    kept = docstrings and any(_name(node) in _READS_DOCSTRINGS for node in ast.walk(tree))
    tree = typed or tree
    _Essence(kept, docstrings).reduce(tree)
    digest = sha256(ast.dump(tree, annotate_fields=False).encode()).hexdigest()[:_DIGITS]
    found = _Found.of(tree)
    finds_modules = bool(found.uses.keys() & _FINDS_MODULES) or "path" in found.attributes.get("sys", ())
    strings = frozenset(filter(NAMES_A_MODULE.fullmatch, found.strings))
    return Meaning(digest, tuple(_imports(found)), strings, finds_modules, exports)


def _with_type_comments(content: bytes) -> ast.Module | None:
    """Parse type comments too, which TorchScript reads; None where there is none, or one of them is malformed."""
    if not _TYPE_COMMENT.search(content):
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


class _Essence:
    """Removes what is never run, and strings that stand for themselves; all of them are statements."""

    def __init__(self, kept: bool, careful: bool) -> None:
        self._kept, self._careful = kept, careful

    def reduce(self, node: ast.AST) -> None:
        """Do so in the statements that a node holds."""
        for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            self.reduce(part)
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if not isinstance(body, list):
                continue
            executed = [part for statement in body for part in self._executed(statement)]
            if any(_stands_for_itself(part) for part in executed):
                first = executed[:1] if isinstance(node, _Documented) and self._keeps_docstring(node) else []
                rest = [part for part in executed[len(first) :] if not _stands_for_itself(part)]
                executed = [*first, *rest] or [ast.Pass()]
            setattr(node, field, executed)

    def _executed(self, node: ast.stmt) -> list[ast.stmt]:
        self.reduce(node)
        if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
            return node.orelse or [ast.Pass()]
        return [node]

    def _keeps_docstring(self, node: _Documented) -> bool:
        if self._kept:
            return True
        decorators = getattr(node, "decorator_list", [])
        names = (_name(one.func if isinstance(one, ast.Call) else one) for one in decorators)
        return self._careful and any(name not in _LEAVE_DOCSTRINGS_ALONE for name in names)


def _stands_for_itself(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@dataclass
class _Found:
    """What stands in a tree, gathered in one walk.

    Attributes:
        imports: Statements.
        strings: Constants.
        uses: Name, of a variable or an attribute -> how often it is used as a whole: taking an attribute of a variable
            isn't.
        attributes: Variable -> its attributes that are taken.
    """

    imports: list[ast.Import | ast.ImportFrom]
    strings: set[str]
    uses: dict[str, int]
    attributes: dict[str, set[str]]

    @classmethod
    def of(cls, tree: ast.AST) -> _Found:
        found = cls([], set(), {}, {})
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                found.uses[node.id] = found.uses.get(node.id, 0) + 1
            elif isinstance(node, ast.Attribute):
                found.uses.setdefault(node.attr, 0)
                if isinstance(node.value, ast.Name):
                    found.attributes.setdefault(node.value.id, set()).add(node.attr)
                    found.uses[node.value.id] = found.uses.get(node.value.id, 0) - 1
            elif isinstance(node, ast.Constant):
                if isinstance(node.value, str):
                    found.strings.add(node.value)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found.imports.append(node)
        return found


def _imports(found: _Found) -> Iterator[Import]:
    for node in found.imports:
        if isinstance(node, ast.ImportFrom):
            names = frozenset(alias.name for alias in node.names)
            yield Import(node.module or "", node.level, None if "*" in names else names, True)
        else:
            for alias in node.names:
                bound = alias.asname or (alias.name if "." not in alias.name else None)
                whole = bound is None or found.uses.get(bound, 0) > 0
                taken = None if whole else frozenset(found.attributes.get(str(bound), ()))
                yield Import(alias.name, 0, taken, False)


def _exports(tree: ast.Module) -> dict[str, tuple[str, int, str]] | None:
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body)
    found: dict[str, tuple[str, int, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.names[0].name != "*":
            found |= _handed_on(node)
        elif lazy and isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
            for inner in node.body:
                found |= _handed_on(inner)
        elif not (isinstance(node, ast.Import | ast.Pass) or _stands_for_itself(node) or _hands_on(node, lazy)):
            return None
    return found


def _handed_on(node: ast.stmt) -> dict[str, tuple[str, int, str]]:
    if not isinstance(node, ast.ImportFrom):
        return {}
    return {alias.asname or alias.name: (node.module or "", node.level, alias.name) for alias in node.names}


def _hands_on(node: ast.stmt, lazy: bool) -> bool:
    """Say whether a statement lists the names that are handed on, or hands them on when they are first used."""
    if isinstance(node, ast.FunctionDef):
        return node.name in ("__getattr__", "__dir__")
    names = [_name(target) for target in node.targets] if isinstance(node, ast.Assign) else []
    return names == ["__all__"] or (lazy and len(names) == 1 and str(names[0]).startswith("_"))
