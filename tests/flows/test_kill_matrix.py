"""Killed anywhere and resumed through either entrance, the pipeline ends with the bytes of one that was not killed.

`pytest tests/flows/test_kill_matrix.py -k "no_alias"` runs one point; at the end a table of all that ran is printed.
What may differ from run to run: measured latencies, and what holds their hash: the stage's record, its entries in
dvc.lock and in a version's record, and the hashes of these two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clone import Clone
from tests.flows.kill_place import Place, warm
from tests.flows.kill_points import BOUNDARIES, STATES, random_points
from tests.live import prefect_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first one waits for the undisturbed run

POINTS = [*BOUNDARIES, *random_points(seed=20261121, num_events=6, num_moments=6)]
ENTRANCES = ("flow", "repro")
STEPS_PER_EPOCH = 9
HEARD = '''

def heard(outputs, targets):
    """Cross entropy; whoever listens hears of each step of training, not of the checks before it, on 16 samples."""
    import sys

    if torch.is_grad_enabled() and len(targets) > 16:
        sys.audit("secateur.step")
    return nn.functional.cross_entropy(outputs, targets)
'''


def _small(settings: dict[str, Any]) -> None:
    settings["training"]["loss"] = "own_project:heard"
    settings["baseline"]["recipe"].update(epochs=3)
    settings["analyze"].update(rates=[0.5])
    settings["prune"].update(iterations=2, recipes=settings["prune"]["recipes"][:1], max_accuracy_drop=0.9)
    settings["benchmark"].update(rounds=1, batch_sizes=[1])
    settings["quantize"] = {"profile": "cpu"}


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, code: Path, project_writer: Callable[..., Path], home: Path
) -> Iterator[Place]:
    """The project in all its states, and a server of Prefect's, which lives on as a team's does."""
    states = tmp_path_factory.mktemp("states")

    def write(root: Path) -> Path:
        found = project_writer(root, _small)
        with (root / "own_project.py").open("a", encoding="utf-8") as own:
            own.write(HEARD)
        return found

    clone = Clone(tmp_path_factory.mktemp("place") / "here", code, write, home)
    with prefect_server(clone.root.parent, clone.environment, states / "server.log") as address:
        clone.environment["PREFECT_API_URL"] = address
        with warm(clone, states / "warm.log") as commands:
            place = Place(clone, states, commands)
            place.make_states()
            yield place


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[tuple[str, ...]]]:
    """What ran, as a table for the documents."""
    rows: list[tuple[str, ...]] = []
    yield rows
    head = ("cut off", "where", "killed", "resumed by", "outcome")
    lines = ["|".join(("", *row, "")) for row in (head, ("---",) * len(head), *rows)]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + "\n".join(lines))


def _names() -> list[str]:
    return [point.name.replace(" ", "_").replace(",", "").replace("'", "") for point in POINTS]


@pytest.mark.parametrize("number", range(len(POINTS)), ids=_names())
def test_killed_anywhere_ends_with_the_same_bytes(place: Place, table: list[tuple[str, ...]], number: int) -> None:
    point, entrance = POINTS[number], ENTRANCES[number % len(ENTRANCES)]
    place.put_back(point.after)
    where = place.kill(point, seed=number)
    killed = {"flow": "flow", "repro": "`dvc repro`"}[point.killed] + (", the stage alone" if point.alone else "")
    row = (point.name, where.replace("|", "/"), killed, "flow" if entrance == "flow" else "`dvc repro`")
    table.append((*row, "failed"))
    before = place.heard().count("step training") if place.trace.exists() else 0
    place.resume(entrance)
    found = place.found()
    for what, expected in place.expected.items():
        assert found[what] == expected, what
    assert "up to date" in place.clone.status()
    wanted = sum(place.num_steps[state] for state in STATES[STATES.index(point.after) :])
    lost = place.heard().count("step training") - wanted
    if not (point.recomputed and entrance == "repro"):
        assert lost <= STEPS_PER_EPOCH, f"{lost} steps were lost"
    table[-1] = (*row, f"same bytes, {lost} of {before} steps again" if before else "same bytes")
