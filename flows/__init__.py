"""What runs, in which order: the stages, `compress` for all of them, and what is done with a finished model.

`python -m flows.NAME` runs each of them. The stages share one file, `stages`: `_StageCommands` finds them there.
"""

import sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path

# Prefect runs a deployment's file as a script, with this folder first on the path: a module would hide Python's own.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

if sys.argv[0] == "-m":  # `python -m flows.NAME`, before it is imported: that takes seconds, in which a signal may come
    from flows.signals import watch

    watch(sys.orig_argv[sys.orig_argv.index("-m") + 1].removeprefix("flows."), patience_s=0)


class _StageCommands(MetaPathFinder, InspectLoader):
    """Finds `flows.NAME` of each stage that has no file of its own, as a module that holds the stage's flow."""

    def find_spec(self, fullname: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Return how a stage's module is loaded; None for all others."""
        package, _, name = fullname.rpartition(".")
        if package != "flows":
            return None
        from tasks.stage_table import CODE, NAMES

        if name not in (CODE, *NAMES):
            return None
        # `python -m` makes the origin the first of the process's arguments, which DVC reads.
        return spec_from_loader(fullname, self, origin=str(Path(__file__).with_name("stages.py")))

    def get_source(self, fullname: str) -> str:
        """Return the text of a stage's module."""
        name = fullname.removeprefix("flows.")
        return f'from flows.stages import run\n\nif __name__ == "__main__":\n    run("{name}")\n'


sys.meta_path.insert(0, _StageCommands())
