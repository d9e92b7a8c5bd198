"""Every file of a finished workspace, damaged in every way: one message each, exit code 2, nothing written elsewhere.

Twice: found by the seal of its folder; and with a seal that was made anew, as whoever damages on purpose would, so that
whatever reads the file has to see for itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows import command
from pruning.io.onnx import open_session
from tasks import data, data_sets, frontier, models
from tasks.config.schema import Settings
from tasks.loop import ledger, measurements
from tasks.loop.ledger import read_ledger
from tasks.registry import decisions
from tasks.reporting import report
from tasks.reporting.tables import Summary, compare, compare_latency
from tasks.stages import export, transform
from tasks.workspace import RECORD, Workspace, is_current, seal
from tests.shop import Shop, open_shop

Read = Callable[[Settings, Workspace], object]


@pytest.fixture(scope="module")
def finished(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("finished") / "project"
        shop = open_shop(finished_project, root, patch)
        for place in (root / "data", root / "artifacts"):  # linked to a project that others use
            shutil.copytree(place, root / "copy")
            shutil.rmtree(place)
            (root / "copy").rename(place)
        (root.parent / "elsewhere").write_bytes(b"someone else's")
        yield shop
    for number, handler in handlers.items():
        signal.signal(number, handler)


def checkpoint(folder: str) -> Read:
    def read(settings: Settings, workspace: Workspace) -> object:
        example = models.example_inputs(workspace, settings)
        found = data.read_description(workspace)
        model, _, meta = models.load_model(workspace.root / folder, settings, found, example)
        return model(example), models.measured_in(meta, workspace.root / folder)

    return read


def show(_: Settings, workspace: Workspace) -> object:
    summary = workspace.read_json(report.FOLDER, report.SUMMARY, "report", Summary)
    return compare(summary), compare_latency(workspace), frontier.read_points({"one": workspace})


READERS: dict[str, Read] = {
    "data/meta.json": lambda _, workspace: data.read_description(workspace),
    "data/example.safetensors": lambda _, workspace: data.read_example(workspace),
    **{
        f"data/{split}.safetensors": lambda settings, workspace, split=split: data.read_split(
            settings, workspace, split
        )  # type: ignore[misc]
        for split in data_sets.SPLITS
    },
    **{
        f"artifacts/{folder}/{name}": checkpoint(folder)
        for folder in ("baseline", "iterations/01", "dense")
        for name in ("meta.json", "plan.json", "weights.safetensors")
    },
    "artifacts/iterations/ledger.json": lambda _, workspace: read_ledger(workspace.folder("iterations")),
    "artifacts/iterations/outcome.json": lambda _, workspace: ledger.read_outcome(workspace),
    "artifacts/analysis/curves.json": lambda _, workspace: measurements.read_curves(workspace, "analyze"),
    "artifacts/profile/profile.json": lambda _, workspace: measurements.read_profile(workspace, "profile"),
    "artifacts/measurements/curves.json": lambda _, workspace: measurements.read_curves(workspace),
    "artifacts/measurements/profile.json": lambda _, workspace: measurements.read_profile(workspace),
    "artifacts/onnx/parity.json": lambda _, workspace: export.read_parities(workspace),
    **{
        f"artifacts/onnx/{name}": lambda _, workspace, name=name: open_session(workspace.folder("onnx") / name)  # type: ignore[misc]
        for name in export.FILES.values()
    },
    "artifacts/dense/equivalence.json": lambda _, workspace: transform.read_equivalence(workspace),
    "artifacts/latency/latency.json": show,
    "artifacts/report/summary.json": show,
}


def flipped(path: Path, content: bytes) -> None:
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 0x55]) + content[middle + 1 :])


def as_type(text: str) -> Callable[[Path, bytes], object]:
    return lambda path, _: path.write_text(text, encoding="utf-8")


def inside(change: Callable[[object], object]) -> Callable[[Path, bytes], object]:
    """Change every value of a JSON file that is no object."""

    def changed(value: object) -> object:
        return {name: changed(one) for name, one in value.items()} if isinstance(value, dict) else change(value)

    return lambda path, content: path.write_text(json.dumps(changed(json.loads(content))), encoding="utf-8")


def linked(path: Path, _: bytes) -> None:
    path.symlink_to(Path("../elsewhere").absolute())


DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "flipped": flipped,
    "cut": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "emptied": lambda path, _: path.write_bytes(b""),
    "other bytes": lambda path, _: path.write_bytes(bytes(range(256)) * 4),
    "nested": as_type("[" * 100_000),
    "a list": as_type("[]"),
    "null": as_type("null"),
    "linked elsewhere": linked,
    "a folder": lambda path, _: path.mkdir(),
    "a pipe": lambda path, _: os.mkfifo(path),
}
INSIDE: dict[str, Callable[[Path, bytes], object]] = {
    "values null": inside(lambda _: None),
    "values true": inside(lambda _: True),
    "values huge": inside(lambda value: 10**400 if isinstance(value, int | float) else value),
    "values negative": inside(lambda value: -7 if isinstance(value, int | float) else value),
    "values texts": inside(str),
}


def run(action: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str | None:
    """Do something as a command does; return what it says of a fault, or None."""
    capsys.readouterr()
    code: object = None
    try:
        command.execute("check", argparse.Namespace(debug=False, workspace=Path("artifacts")), action)
    except SystemExit as end:
        code = end.code
    if code is None:
        return None
    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (command.FAULT, 1), said
    assert "Traceback" not in said
    assert "pydantic" not in said
    return said


def surroundings(shop: Shop) -> list[str]:
    around = shop.root.parent
    assert (around / "elsewhere").read_bytes() == b"someone else's"
    return sorted(str(path) for path in around.rglob("*") if shop.root / "artifacts" not in path.parents)


@pytest.mark.parametrize("name", [*DAMAGES, *INSIDE])
def test_every_damage_of_every_file_is_one_message(
    name: str, finished: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, settings, before = {**DAMAGES, **INSIDE}[name], finished.settings, surroundings(finished)
    seals = {path.parent: path.read_bytes() for path in finished.root.rglob(RECORD) if "mlartifacts" not in path.parts}
    fingerprints = {folder: json.loads(content)["fingerprint"] for folder, content in seals.items()}
    faults, count = [], 0
    for folder in seals:
        for path in sorted(folder.rglob("*")):
            place = path.relative_to(finished.root).as_posix()
            if not path.is_file() or (name in INSIDE and path.suffix != ".json"):
                continue
            content = path.read_bytes()
            path.unlink()
            damage(path, content)
            if path.is_file() and path.read_bytes() == content:
                path.unlink()
                path.write_bytes(content)
                continue
            count += 1
            said = run(lambda folder=folder: is_current(folder, fingerprints[folder]), capsys)  # type: ignore[misc]
            if said is None and path.name != RECORD:
                faults.append(f"{place}: the seal says nothing")
            if place in READERS:
                seal(folder, fingerprints[folder])
                said = run(lambda place=place: READERS[place](settings, finished.workspace), capsys)  # type: ignore[misc]
                # A digit of a number is another number, and no curves are measured where there are no groups.
                harmless = name in ("flipped", *INSIDE) or (name == "a list" and path.name == measurements.CURVES)
                if said is None and not harmless:
                    faults.append(f"{place}: its reader says nothing")
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            path.write_bytes(content)
            (folder / RECORD).write_bytes(seals[folder])
    assert faults == []
    assert count > (10 if name in INSIDE else 30)
    assert surroundings(finished) == before


@pytest.mark.parametrize("name", ["flipped", "other bytes", "a folder", "linked elsewhere"])
def test_every_damage_of_decisions_and_locks_is_one_message_or_none(
    name: str, finished: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.workspace import deciding, locked

    before = surroundings(finished)

    def decide() -> None:
        with deciding(), locked(finished.workspace):
            decisions.write_down(
                decisions.Decision(time="", decision="promoted", model="m", version="1", instead_of=None)
            )

    for place in ("promotions.jsonl", ".promotion.lock", "artifacts/.lock", "artifacts/.probe"):
        path = finished.root / place
        path.unlink(missing_ok=True)
        DAMAGES[name](path, b'{"time": ""}\n')
        run(decide, capsys)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        for made in ("promotions.jsonl", ".promotion.lock"):
            (finished.root / made).unlink(missing_ok=True)
    assert surroundings(finished) == before


def test_folder_that_is_a_link_is_not_written_through(finished: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = (finished.root.parent / "other").absolute()
    elsewhere.mkdir()
    Path("trials").mkdir()
    Path("trials/one").symlink_to(elsewhere)
    said = run(Workspace(Path("trials/one")).open, capsys)
    assert said is not None
    assert f"trials/one is, or lies behind, a symbolic link to {elsewhere}" in said
    folder = finished.workspace.folder("latency")
    folder.rename(finished.root / "moved")
    folder.symlink_to(finished.root / "moved")
    said = run(finished.workspace.open, capsys)
    folder.unlink()
    (finished.root / "moved").rename(folder)
    assert said is not None
    assert "artifacts/latency is, or lies behind, a symbolic link" in said
    assert list(elsewhere.iterdir()) == []
