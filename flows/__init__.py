"""What runs, in which order: one file per stage, and `compress` for all of them."""

import sys
from pathlib import Path

# Prefect runs a deployment's file as a script, with this folder first on the path: `profile` would hide Python's own.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

if sys.argv[0] == "-m":  # `python -m flows.NAME`, before it is imported: that takes seconds, in which a signal may come
    from flows.signals import watch

    watch(sys.orig_argv[sys.orig_argv.index("-m") + 1].removeprefix("flows."), patience_s=0)
