"""The modules that a stage executes, found from import statements, and the versions of installed packages.

    roots: the stage's own modules, and what the settings name
      │ import statements, wherever they stand; strings that name modules of the user's
      ▼
    the package itself and the user's modules: hashed by their meaning       installed packages: their versions

A module counts as the user's if it lies outside the environment: in the current folder, or where an editable
installation points. A module that imports by a computed name (`import_module(name)`) or changes `sys.path` depends on
all of the user's code. What is executed beyond that (an installed package imports the user's modules by name) is known
once it was executed: `unlisted`.
"""

from __future__ import annotations

import importlib
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.machinery import EXTENSION_SUFFIXES, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from types import ModuleType

from tasks.code_hash import NAMES_A_MODULE, Import, Meaning, meaning_of
from tasks.file_cache import derive, read_bytes

OURS = ("pruning", "tasks", "zoo")
"""Our packages whose `__init__` only re-exports names: it stands for the modules that the names come from."""

NOT_FOLLOWED = ("tasks.config.schema", "tasks.fingerprint", "tasks.stage_table", "tasks.terminal")
"""What the settings and the table of the stages say is compared, not the code; the others shape no output."""

_NO_CODE = {
    *("artifacts", "build", "data", "dist", "frontier", "mlartifacts", "mlruns", "node_modules", "restored", "trials"),
    *("benchmarks", "docs", "flows", "tests"),
}
_HOME = Path(__file__).resolve().parents[1]
"""Where Secateur itself lies, whatever the current folder is."""

_INSTALLED = {Path(path) for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))}


PROGRAM = (*OURS, "flows", "secateur")


def hash_of_program() -> str:
    """Hash the text of all code of ours, Python's version, and the names and versions of all installed packages."""
    files = sorted(path for name in PROGRAM for path in (_HOME / name).rglob("*.py"))
    here = Path.cwd()
    places = {Path(place).resolve() for place in sys.path if place and Path(place).is_dir()} - {here}
    installed = sorted({path.name for place in places for path in place.glob("*.dist-info")})
    found = sha256("\n".join([sys.version, *installed]).encode())
    for path in files:
        found.update(f"\n{path.relative_to(_HOME)} ".encode() + sha256(path.read_bytes()).digest())
    return found.hexdigest()


@dataclass(frozen=True)
class Code:
    """What is executed.

    Attributes:
        modules: Name -> hash of its meaning.
        installed: Top-level names of installed packages, those of the standard library left out.
    """

    modules: Mapping[str, str]
    installed: frozenset[str]


@dataclass(frozen=True)
class _Place:
    """Where a module lies: its file, if it has one, and the folders that its submodules lie in."""

    file: Path | None
    folders: tuple[Path, ...]


def code_of(modules: Iterable[str], strings: Iterable[str]) -> Code:
    """Find what a stage executes.

    Args:
        modules: Its own.
        strings: Of its settings; those that name a module count, `package.module:name` or `package.module`.
    """
    importlib.invalidate_caches()
    search = _Search(Path.cwd())
    for module in modules:
        search.visit(module, None)
    for string in strings:
        search.visit_named(string)
    return Code(dict(sorted(search.found.items())), frozenset(search.installed))


def unlisted(loaded: Mapping[str, ModuleType], listed: Iterable[str]) -> list[str]:
    """Name the files of the user's in the current folder that were executed, and stand for no module of a list.

    Args:
        loaded: What is imported, as `sys.modules`.
        listed: Names of modules, as `code_of` finds them.
    """
    here, search = Path.cwd().resolve(), _Search(Path.cwd())
    own = (name for name in listed if name.partition(".")[0] not in OURS)
    known = {file.resolve() for name in own if (file := search.file_of(name)) is not None}
    found = []
    for module in loaded.values():
        named = getattr(module, "__file__", None)
        if not isinstance(named, str) or not named.endswith(".py") or is_installed_file(Path(named)):
            continue  # before links are resolved, which takes long for the thousands that are installed
        file = Path(named).resolve()
        if file.is_relative_to(here) and not is_installed_file(file) and file not in known and file.is_file():
            inside = file.relative_to(here)  # `torch.ops` says "_ops.py", which is no file of the user's
            if inside.parts[0] not in {*_NO_CODE, *OURS, "secateur"}:
                found.append(str(inside))
    return sorted(set(found))


class _Search:
    def __init__(self, here: Path) -> None:
        self._here = here
        self._places: dict[str, _Place | None] = {}
        self._visited: set[tuple[str, str | None]] = set()
        self._followed: set[str] = set()
        self.found: dict[str, str] = {}
        self.installed: set[str] = set()

    def file_of(self, name: str) -> Path | None:
        """Return the file of a module; None where it has none, or is installed or not there."""
        place = self._place(name)
        return place.file if place is not None else None

    def visit(self, name: str, wanted: frozenset[str] | None) -> None:
        """Follow a module, for these names of it; None: for all of them."""
        parts = name.split(".")
        for end in range(1, len(parts)):
            self._enter(".".join(parts[:end]), frozenset())
        self._enter(name, wanted)

    def visit_named(self, string: str) -> None:
        """Follow the module that a string names: `package.module:name`, or `package.module` where it is the user's."""
        if not NAMES_A_MODULE.fullmatch(string):
            return
        module, colon, name = string.partition(":")
        if ":" in name:
            return
        if self._place(module.partition(".")[0]) is None:
            if colon:
                self._note_installed(module)
            return
        parts = module.split(".")
        if not colon and self._is_ours(module):
            return
        known = [end for end in range(1, len(parts) + 1) if self._place(".".join(parts[:end])) is not None]
        wanted = frozenset({name.partition(".")[0]}) if colon else None
        self.visit(".".join(parts[: known[-1]]), wanted)

    def _enter(self, name: str, wanted: frozenset[str] | None) -> None:
        place = self._place(name)
        if place is None:
            self._note_installed(name)
            return
        names: Iterable[str | None] = [None] if wanted is None else wanted or [""]
        asked = [one for one in names if (name, one) not in self._visited]
        self._visited |= {(name, one) for one in asked}
        if asked and place.file is not None and name not in NOT_FOLLOWED:
            self._follow(name, place, wanted)
        if wanted:
            for one in wanted:  # a name may be a submodule
                if place.folders and self._place(f"{name}.{one}") is not None:
                    self._enter(f"{name}.{one}", None)

    def _follow(self, name: str, place: _Place, wanted: frozenset[str] | None) -> None:
        assert place.file is not None
        content, ours = read_bytes(place.file), self._is_ours(name)
        if place.file.suffix != ".py":
            self.found[name] = sha256(content).hexdigest()[:16]
            return
        meaning = meaning_of(content, docstrings=not ours)
        package = name if place.folders else name.rpartition(".")[0]
        if ours and place.folders and meaning.exports is not None:
            self._hand_on(package, meaning, wanted)
            return
        if name in self._followed:
            return
        self._followed.add(name)
        self.found[name] = meaning.digest
        for statement in meaning.imports:
            self._import(package, statement)
        if not ours:
            for string in meaning.strings:
                self.visit_named(string)
            if meaning.finds_modules:
                self._everything()

    def _hand_on(self, package: str, meaning: Meaning, wanted: frozenset[str] | None) -> None:
        """Follow the wanted names through a package that only re-exports them, and the modules that it imports."""
        assert meaning.exports is not None
        for statement in meaning.imports:
            if not statement.by_from:
                self._import(package, statement)
        for name, (module, level, there) in meaning.exports.items():
            source = _absolute(package, module, level)
            is_module = self._place(f"{source}.{there}") is not None
            if is_module or wanted is None or name in wanted:
                self.visit(source, frozenset({there}))

    def _import(self, package: str, statement: Import) -> None:
        self.visit(_absolute(package, statement.module, statement.level), statement.names)

    def _everything(self) -> None:
        """Follow every module of the current folder that may be the user's code."""
        folders = [self._here]
        while folders:
            folder = folders.pop()
            for path in sorted(folder.iterdir()):
                inside = path.relative_to(self._here)
                if path.is_dir():
                    aside = {*_NO_CODE, *OURS} if folder == self._here else {"node_modules"}
                    named = path.name.isidentifier() and path.name not in aside and path.name != "__pycache__"
                    if named and not path.is_symlink() and not (path / "pyvenv.cfg").exists():
                        folders.append(path)
                elif path.suffix == ".py" and path.stem.isidentifier():
                    parts = inside.parent.parts if path.stem == "__init__" else (*inside.parent.parts, path.stem)
                    if parts:
                        self.visit(".".join(parts), None)

    def _place(self, name: str) -> _Place | None:
        """Return where a module lies; None where it is installed, of the standard library, or not there."""
        if name not in self._places:
            parent, _, last = name.rpartition(".")
            if not parent:
                self._places[name] = self._top(name)
            else:
                above = self._place(parent)
                self._places[name] = _within(above.folders, last) if above else None
        return self._places[name]

    def _top(self, name: str) -> _Place | None:
        if not name.isidentifier():
            return None
        if name in OURS:
            return _within((_HOME,), name)
        if (here := _within((self._here,), name)) is not None and not (
            here.file is None and name in sys.stdlib_module_names
        ):
            return here
        if name in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(name)
        for finder in sys.meta_path:
            if spec is None and "editable" in getattr(finder, "__module__", "") + getattr(finder, "__name__", ""):
                spec = finder.find_spec(name, None)
        if spec is None:
            return None
        file = Path(spec.origin) if spec.origin and spec.has_location else None
        folders = tuple(Path(folder) for folder in spec.submodule_search_locations or ())
        if any(is_installed_file(path) for path in (file, *folders) if path is not None):
            return None
        return _Place(file, folders)

    def _note_installed(self, name: str) -> None:
        top = name.partition(".")[0]
        if top and top not in sys.stdlib_module_names and self._place(top) is None:
            self.installed.add(top)

    @staticmethod
    def _is_ours(name: str) -> bool:
        return name.partition(".")[0] in OURS


def _absolute(package: str, module: str, level: int) -> str:
    if not level:
        return module
    parts = package.split(".")
    base = parts[: len(parts) - (level - 1)]
    return ".".join([*base, module] if module else base)


def _within(folders: Iterable[Path], name: str) -> _Place | None:
    """Return where a module lies in one of these folders; a folder without `__init__.py` is a package too."""
    bare: list[Path] = []
    for folder in folders:
        if (file := folder / name / "__init__.py").is_file():
            return _Place(file, (folder / name,))
        for suffix in (".py", *EXTENSION_SUFFIXES):
            if (file := folder / f"{name}{suffix}").is_file():
                return _Place(file, ())
        if (folder / name).is_dir():
            bare.append(folder / name)
    return _Place(None, tuple(bare)) if bare else None


def is_installed_file(path: Path) -> bool:
    """Say whether a file belongs to an installed package or to Python."""
    return {"site-packages", "dist-packages"} & set(path.parts) != set() or any(
        path.is_relative_to(folder) for folder in _INSTALLED
    )


_ONLY_SHOW_OR_STORE = {"filelock", "psutil", "pydantic", "safetensors", "tqdm", "yaml"}
"""Their output can be read by any version, so their own version doesn't matter."""

_BRING_ALONG = {"torch": ("numpy",), "onnx": ("onnxscript", "onnx_ir"), "sklearn": ("numpy", "scipy")}
"""Packages that others compute with, though no stage imports them."""

_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages, by the names that they are imported by, and Python's.

    One that isn't installed has none: "not installed".
    """
    wanted = set(names) | {also for name in names for also in _BRING_ALONG.get(name, ())}
    found = {name: _version(name) for name in sorted(wanted - _ONLY_SHOW_OR_STORE)}
    return {"python": f"{sys.version_info.major}.{sys.version_info.minor}", **found}


def _version(name: str) -> str:
    try:
        return version(_DISTRIBUTIONS.get(name, name))
    except PackageNotFoundError:
        # It reads the lists of files of all packages, a second each time, and a network's code may import dozens.
        owners = sorted(derive("owners of modules", packages_distributions).get(name, ()))
        return ", ".join(f"{owner} {version(owner)}" for owner in owners) or "not installed"
