"""What runs, in which order: one file per stage, and `compress` for all of them."""

import sys
from pathlib import Path

# Prefect runs a deployment's file as a script, with this folder first on the path: `profile` would hide Python's own.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
