"""What Prefect, DVC and MLflow cost: `python -m benchmarks.orchestration --params FILE`.

The same stages from the data to the report, each time in a clone and a process of its own:

    plain    called one after the other as functions, nothing recorded
    flow     `python -m flows.compress`: DVC's commits, MLflow's run, registration
    again    the same once more, where nothing has changed

What is made once for a machine, MLflow's database, is made before. Prefect's engine runs in neither.

What the stages themselves take is the same work in both, and on a noisy machine differs by more than all of the rest:
so that it is timed inside each process, and what is compared is the time that passes outside of it.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.environment import REPOSITORY
from tasks.registry.dvc_repo import INSIDE

ONCE = (
    "from pathlib import Path\nfrom tasks.config.schema import load\n"
    "from tasks.registry.mlflow_client import open_store\n"
    "open_store(load(Path('params.yaml')).tracking.uri)"
)
TIMED = """
import atexit, functools, sys, time
from pathlib import Path
from flows import stages
inside = [0.0]
def timed(work, sign=1):
    @functools.wraps(work)
    def run(*given, **named):
        if "watch" in named:
            named["watch"] = timed(named["watch"], -1)
        began = time.monotonic()
        try:
            return work(*given, **named)
        finally:
            inside[0] += sign * (time.monotonic() - began)
    return run
body_of = stages.body_of
stages.body_of = lambda name: timed(body_of(name))
atexit.register(lambda: Path(sys.argv[1]).write_text(str(inside[0])))
"""
"""Times the stages' own work, without what the loop tells MLflow, into the file that is named as an argument."""

PLAIN = (
    TIMED
    + """
for run in stages.FLOWS.values():
    run("params.yaml", "artifacts", False)
"""
)
FLOW = (
    TIMED
    + """
from flows import command, compress
command.main(compress.NAME, compress.compress, compress.SUMMARY, [])
"""
)
SHARE, START_S = 0.03, 3.0
"""What the flow may take longer on a run of minutes: a share, and the import of DVC and MLflow."""

INSIDE_S = "inside.txt"

NOTHING_CHANGED_S = 4.0
"""What a run on which nothing has changed may take, of processor time: it imports neither torch nor MLflow."""


@dataclass(frozen=True)
class Took:
    """What a process took, its children's share included.

    Attributes:
        wall_s: By the clock on the wall.
        processor_s: Of all cores: hardly changed by what else runs on the machine.
        outside_s: By the clock, outside of the stages' own work; all of it where no stage runs.
    """

    wall_s: float
    processor_s: float
    outside_s: float


@dataclass(frozen=True)
class Cost:
    """One round."""

    plain: Took
    flow: Took
    again: Took

    @property
    def bound_s(self) -> float:
        """What may pass more outside of the stages in the flow."""
        return self.plain.wall_s * SHARE + START_S


def measure(plain: Path, flow: Path, environment: Mapping[str, str]) -> Cost:
    """Run the pipeline in two folders that hold the same repository and no results.

    Raises:
        CalledProcessError: A run failed.
    """
    _timed([sys.executable, "-c", ONCE], flow, environment)
    _timed([sys.executable, "-m", "flows.prepare"], flow, environment)
    shutil.rmtree(flow / "data")
    return Cost(
        _timed([sys.executable, "-c", PLAIN, INSIDE_S], plain, {**environment, INSIDE: "benchmark"}),
        _timed([sys.executable, "-c", FLOW, INSIDE_S], flow, environment),
        _timed([sys.executable, "-m", "flows.compress"], flow, environment),
    )


def _timed(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Took:
    def used() -> float:
        found = resource.getrusage(resource.RUSAGE_CHILDREN)
        return found.ru_utime + found.ru_stime

    began, before = time.monotonic(), used()
    subprocess.run(
        command, cwd=folder, env=dict(environment), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wall, kept = time.monotonic() - began, folder / INSIDE_S
    inside = float(kept.read_text()) if kept.exists() else 0.0
    kept.unlink(missing_ok=True)
    return Took(wall, used() - before, wall - inside)


def _clone(place: Path, params: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(place)], check=True)
    shutil.copyfile(params, place / "params.yaml")
    return place


def main() -> None:
    """Measure and print one row for each round."""
    given = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__)
    given.add_argument("--params", type=Path, default=REPOSITORY / "params.yaml", metavar="FILE")
    given.add_argument("--rounds", type=int, default=1, metavar="N")
    options = given.parse_args()
    print("| round | plain | flow | plain outside | flow outside | longer by | may be | nothing changed | processor |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number in range(1, options.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            kept = {name: value for name, value in os.environ.items() if name not in (INSIDE, "PYTHONPATH")}
            environment = {**kept, "PREFECT_HOME": str(root / "prefect")}
            cost = measure(_clone(root / "plain", options.params), _clone(root / "flow", options.params), environment)
        plain, flow, again = cost.plain, cost.flow, cost.again
        shown = [
            plain.wall_s,
            flow.wall_s,
            plain.outside_s,
            flow.outside_s,
            flow.outside_s - plain.outside_s,
            cost.bound_s,
            again.wall_s,
            again.processor_s,
        ]
        print(f"| {number} | {' | '.join(f'{seconds:.1f} s' for seconds in shown)} |", flush=True)


if __name__ == "__main__":
    main()
