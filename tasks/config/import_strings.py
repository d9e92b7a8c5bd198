"""Turn an import string, `package.module:name`, into what it names."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import zoo  # noqa: F401  # a folder of the user's of this name isn't taken for it later
from pruning.errors import SecateurError, SettingsError, unknown_name
from pruning.metrics import StatefulMetric

_MOST_NAMES = 20
_HOME = Path(__file__).resolve().parents[2]
OWN_PACKAGES = ("secateur", "flows", "tasks", "pruning", "zoo")


def resolve(reference: str) -> Callable[..., Any]:
    """Import what an import string names.

    Args:
        reference: `package.module:name`. The folder that the command runs in is searched before the environment,
            behind Secateur's own packages.

    Raises:
        SettingsError: The module or the name isn't there, what it names can't be called, or belongs to Python itself.
    """
    module_name, separator, name = reference.partition(":")
    if not separator or not module_name or not name:
        raise SettingsError(f"{reference!r} is no import string; expected 'package.module:name'")
    _refuse_python(reference, module_name)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if shadowed := _shadowed(error, Path(here)):
            raise SettingsError(f"{reference!r} can't be imported: {shadowed}") from error
        if not isinstance(error, ModuleNotFoundError):
            raise SettingsError(f"{reference!r} can't be imported: {type(error).__name__}: {error}") from error
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            message = (
                f"{reference!r} can't be imported: there is no module {error.name!r} in {here} or in the environment"
                f"{_in_src(reference, Path(here))}"
            )
        else:
            message = (
                f"{reference!r} can't be imported: {module_name} itself needs {error.name!r}, which isn't installed"
            )
        raise SettingsError(message) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything while it is imported
        raise SettingsError(f"{reference!r} can't be imported: {type(error).__name__}: {error}") from error
    target: Any = module
    for part in name.split("."):
        if not hasattr(target, part):
            known = [
                key
                for key, value in getattr(target, "__dict__", {}).items()
                if callable(value) and not key.startswith("_")
            ]
            near = known if len(known) <= _MOST_NAMES else get_close_matches(part, known, _MOST_NAMES, cutoff=0.0)
            absent = unknown_name(f"name in {module_name}", part, near)
            if shadowed := _shadowed(ImportError(absent, name=module_name), Path(here)):
                raise SettingsError(f"{reference!r} can't be imported: {shadowed}")
            raise SettingsError(absent)
        target = getattr(target, part)
    if not callable(target):
        raise SettingsError(f"{reference!r} is a {type(target).__name__}; expected a function or a class")
    _refuse_python(reference, _home(target))
    return target  # type: ignore[no-any-return]  # getattr is Any


def _shadowed(error: ImportError, here: Path) -> str | None:
    """Say that what is looked for lies in a folder of the user's whose name is that of a package of Secateur's."""
    top = (error.name or "").partition(".")[0]
    if top not in OWN_PACKAGES or here.resolve() == _HOME:
        return None
    found = next((place for place in (here / top, here / f"{top}.py") if place.exists()), None)
    if found is None:
        return None
    return (
        f"{top!r} is a package of Secateur's own, so {found} can't be imported by that name while Secateur runs "
        f"({error}); rename it, or move what is needed into a module of another name"
    )


def _in_src(reference: str, here: Path) -> str:
    """Say how to name a package that lies in `src/`, which Python looks into only once the package is installed."""
    place = here / "src" / reference.partition(":")[0].partition(".")[0]
    found = next((path for path in (place, place.with_suffix(".py")) if path.exists()), None)
    if found is None:
        return ""
    return (
        f"; {found.relative_to(here)} is there: install your package (`pip install -e .`), or write 'src.{reference}'"
    )


def _home(target: Callable[..., Any]) -> str:
    """Return the module in which what is called was defined: of a partial what it calls, of an instance its class."""
    while isinstance(target, partial):
        target = target.func
    if isinstance(owner := getattr(target, "__objclass__", None), type):  # a method of a class written in C
        return owner.__module__
    owner = getattr(target, "__self__", None)
    if owner is not None and not inspect.ismodule(owner) and not inspect.isfunction(getattr(target, "__func__", None)):
        return (owner if isinstance(owner, type) else type(owner)).__module__
    return str(getattr(target, "__module__", None) or type(target).__module__)


def _refuse_python(reference: str, module_name: str) -> None:
    """Refuse what belongs to Python's standard library: no model, data or loss is made there, but commands are run."""
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise SettingsError(
            f"{reference!r} is Python's own (module {module_name}); expected a function or a class of a package that "
            "makes what is asked for, such as your own 'package.module:name'"
        )


def call(reference: str, arguments: Mapping[str, Any], offered: Mapping[str, Any] | None = None) -> Any:
    """Call what an import string names.

    Args:
        reference: The import string.
        arguments: Keyword arguments of the settings.
        offered: Further keyword arguments, passed where the signature takes them and the settings don't give them.

    Raises:
        SettingsError: It can't be imported, doesn't take these arguments, or raised.
    """
    target = resolve(reference)
    given = {**_accepted(target, offered or {}), **arguments}
    try:
        inspect.signature(target).bind(**given)
    except TypeError as error:
        takes = ", ".join(inspect.signature(target).parameters) or "none"
        what = sorted(given) if given else "no arguments"
        raise SettingsError(f"{reference!r} was given {what}: {error}; it takes: {takes}") from error
    except ValueError:  # a callable without a readable signature is tried as it is
        pass
    try:
        return target(**given)
    except SecateurError:
        raise
    except (Exception, SystemExit) as error:
        text = f"{reference!r} called with {given} raised {type(error).__name__}: {error}"
        raise SettingsError(text) from error


def _accepted(target: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:
        return {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(offered)
    return {name: value for name, value in offered.items() if name in parameters}


def made(reference: str) -> Any:
    """Return what an import string names: a function, or a metric that adds up batches; a class is made first.

    So `torch.nn:CrossEntropyLoss` is a loss, and one with arguments is an object of the user's own module,
    `loss = torch.nn.CrossEntropyLoss(label_smoothing=0.1)`, named `my_package.losses:loss`.

    Raises:
        SettingsError: It can't be imported, or is a class that this doesn't suit.
    """
    target = resolve(reference)
    if not inspect.isclass(target):
        return target
    mend = f"write `mine = {target.__name__}(...)` into a module of your own and name 'package.module:mine'"
    try:
        instance = target()
    except (Exception, SystemExit) as error:  # a user's class may raise anything
        raise SettingsError(
            f"{reference!r} is a class that can't be made without arguments ({type(error).__name__}: {error}); {mend}"
        ) from error
    if not callable(instance) and not isinstance(instance, StatefulMetric):
        raise SettingsError(f"{reference!r} is a class whose instances can't be called; expected a function, or {mend}")
    return instance
