"""What Prefect, DVC and MLflow cost: `python -m benchmarks.orchestration --params FILE`.

The same stages from the data to the report, each time in a clone and a process of its own:

    plain    called one after the other as functions, nothing recorded
    flow     `python -m flows.compress`: DVC's commits, MLflow's run, registration
    again    the same once more, where nothing has changed

What is made once for a machine, MLflow's database, is made before. Prefect's engine runs in neither.
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
PLAIN = "from flows.stages import FLOWS\nfor run in FLOWS.values():\n    run('params.yaml', 'artifacts', False)"
SHARE, START_S = 0.03, 3.0
"""What the flow may take longer on a run of minutes: a share, and the import of DVC and MLflow."""

NOTHING_CHANGED_S = 4.0
"""What a run on which nothing has changed may take, of processor time: it imports neither torch nor MLflow."""


@dataclass(frozen=True)
class Took:
    """What a process took, its children's share included.

    Attributes:
        wall_s: By the clock on the wall.
        processor_s: Of all cores: hardly changed by what else runs on the machine.
    """

    wall_s: float
    processor_s: float


@dataclass(frozen=True)
class Cost:
    """One round."""

    plain: Took
    flow: Took
    again: Took

    @property
    def bound_s(self) -> float:
        """What the flow may take by the clock."""
        return self.plain.wall_s * (1 + SHARE) + START_S


def measure(plain: Path, flow: Path, environment: Mapping[str, str]) -> Cost:
    """Run the pipeline in two folders that hold the same repository and no results.

    Raises:
        CalledProcessError: A run failed.
    """
    compress = [sys.executable, "-m", "flows.compress"]
    _timed([sys.executable, "-c", ONCE], flow, environment)
    _timed([sys.executable, "-m", "flows.prepare"], flow, environment)
    shutil.rmtree(flow / "data")
    return Cost(
        _timed([sys.executable, "-c", PLAIN], plain, {**environment, INSIDE: "benchmark"}),
        _timed(compress, flow, environment),
        _timed(compress, flow, environment),
    )


def _timed(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Took:
    def used() -> float:
        found = resource.getrusage(resource.RUSAGE_CHILDREN)
        return found.ru_utime + found.ru_stime

    began, before = time.monotonic(), used()
    subprocess.run(
        command, cwd=folder, env=dict(environment), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    return Took(time.monotonic() - began, used() - before)


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
    print("| round | plain | flow | longer by | may be | processor: plain | flow | nothing changed | processor |")
    print("|---|---|---|---|---|---|---|---|---|")
    for number in range(1, options.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            kept = {name: value for name, value in os.environ.items() if name not in (INSIDE, "PYTHONPATH")}
            environment = {**kept, "PREFECT_HOME": str(root / "prefect")}
            cost = measure(_clone(root / "plain", options.params), _clone(root / "flow", options.params), environment)
        plain, flow, again = cost.plain, cost.flow, cost.again
        cells = [flow.wall_s - plain.wall_s, cost.bound_s - plain.wall_s]
        shown = [
            plain.wall_s,
            flow.wall_s,
            *cells,
            plain.processor_s,
            flow.processor_s,
            again.wall_s,
            again.processor_s,
        ]
        print(f"| {number} | {' | '.join(f'{seconds:.1f} s' for seconds in shown)} |", flush=True)


if __name__ == "__main__":
    main()
