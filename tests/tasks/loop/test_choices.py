"""The whole pipeline by every criterion and every choice of the section `prune`, on the scanned digits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import pruning
from pruning.errors import SettingsError
from pruning.importance import criterion_names
from pruning.io.checkpoint import load_checkpoint
from tasks.config.schema import load
from tasks.data import read_description
from tasks.loop import evolution
from tasks.loop.ledger import read_ledger
from tasks.loop.step_context import WHOLE
from tasks.models import example_inputs, load_model, make_factory
from tasks.stage_table import NAMES
from tasks.stages.transform import read_equivalence
from tasks.training_state import epoch_folder
from tasks.workspace import Workspace, digest_of_files
from tests.tasks.loop.test_methods import made_of_kind
from tests.tasks.test_pipeline import BEFORE_THE_LOOP, Project, made, make

Writer = Callable[..., Path]
GoOn = Callable[..., Project]
ONCE = {
    "target": {"mac_reduction": 0.5},
    "iterations": 1,
    "max_attempts": 1,
    "max_accuracy_drop": 0.9,
    "round_to": 1,
    "criterion": "l2_norm",
    "min_channels": 1,
    "allocation": {"strategy": "sensitivity"},
    "recover": {"method": "recalibrate"},
    "recipes": [{"name": "plain", "epochs": 2, "learning_rate": 0.02, "batch_size": 32}],
}
CHOICES: dict[str, dict[str, Any]] = {
    "local": {"allocation": {"strategy": "local"}},
    "global": {"allocation": {"strategy": "global", "normalise": "macs"}},
    "scoped": {"allocation": {"strategy": "scoped", "scopes": {"first": ["0"], "second": ["3"]}}},
    "search": {"allocation": {"strategy": "search", "candidates": 4}},
    "trial": {
        "allocation": {"strategy": "trial", "tried": ["mean", "lamp", "local", "sensitivity"]},
        "recover": {"method": "reconstruct", "num_samples": 64},
    },
    "evolve": {
        "allocation": {"strategy": "evolve", "evolution": {"generations": 2, "offspring": 4, "num_samples": 64}},
        "recover": {"method": "reconstruct", "num_samples": 64},
    },
    "nothing recovered": {"recover": {"method": "none"}},
    "means absorbed": {"recover": {"method": "absorb_means", "num_samples": 64}},
    "folded": {"recover": {"method": "fold"}, "criterion": "lasso"},
    "reconstructed": {"recover": {"method": "reconstruct", "num_samples": 64}},
    "rewound": {"start": {"weights": "rewind", "epoch": 3}},
    "fresh": {"start": {"weights": "random"}},
    "reversible": {"reversible": True, "iterations": 2, "max_attempts": 2},
    "reversible, reconstructed": {
        "reversible": True, "iterations": 2, "max_attempts": 2, "recover": {"method": "reconstruct", "num_samples": 64}
    },
    "calibrated": {"recipes": [], "recover": {"method": "reconstruct", "num_samples": 64}},
    "sparse, rewound": {
        "kind": "unstructured", "target": {"weight_sparsity": 0.5}, "start": {"weights": "rewind", "epoch": 3}
    },
}  # fmt: skip

TO_THE_END = ("local", "calibrated", "sparse, rewound")
"""After the dense model is made and proven, nothing depends on how it was chosen: export, benchmark and report follow
for one of each kind."""


def _settled(settings: dict[str, Any]) -> None:
    settings["baseline"]["keep_epochs"] = [3]
    settings["prune"] = {**ONCE}


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory, project_writer: Writer) -> Path:
    """A project whose baseline is trained and analysed."""
    root = tmp_path_factory.mktemp("analysed")
    return made(root, project_writer, BEFORE_THE_LOOP, _settled).root


@pytest.fixture
def go_on(analysed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Writer) -> GoOn:
    """Return a function that runs the rest of the pipeline, or so far, with other settings of `prune`."""
    shutil.copytree(analysed, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def run(change: dict[str, Any], last: str = "report") -> Project:
        def settled(settings: dict[str, Any]) -> None:
            _settled(settings)
            made_of_kind(change.get("kind", "structured"), settings["prune"])
            settings["prune"].update(change)

        project = make(tmp_path, project_writer, settled)
        for name in NAMES[NAMES.index("measurements") : NAMES.index(last) + 1]:
            project.run(name)
        return project

    return run


def _accepted(project: Project, target: float = 0.5) -> float:
    """Check that the target was reached and proven; return the accuracy on validation."""
    last = read_ledger(project.workspace.folder("iterations")).accepted[-1]
    assert last.reached >= target - 1e-6
    assert last.measured is not None
    assert 0 <= read_equivalence(project.workspace)["max_relative_difference"] < 1e-4
    if project.workspace.folder("report").exists():
        found = project.json("report", "summary.json")["parity"]
        assert all(0 <= found[name] < 1e-4 for name in ("dense_vs_masked", "onnx_vs_torch"))
        assert found["onnx_close"] == 1.0
    return last.measured.score


@pytest.mark.slow
@pytest.mark.parametrize("criterion", criterion_names())
def test_every_criterion_goes_through_the_whole_pipeline(go_on: GoOn, criterion: str) -> None:
    assert _accepted(go_on({"criterion": criterion})) > 0.5


@pytest.mark.thorough
@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_ends_in_a_proven_model(go_on: GoOn, name: str) -> None:
    project = go_on(CHOICES[name], "report" if name in TO_THE_END else "transform")
    assert _accepted(project) > 0.4
    row = read_ledger(project.workspace.folder("iterations")).accepted[-1]
    assert row.recipe == ("no training" if name == "calibrated" else "plain")


@pytest.mark.thorough
def test_what_was_tried_is_in_the_ledger_and_the_report_and_the_first_that_is_not_worse_goes_on(go_on: GoOn) -> None:
    project = go_on(CHOICES["trial"])
    (row,) = read_ledger(project.workspace.folder("iterations")).rows
    assert [one.name for one in row.tried] == ["mean", "lamp", "local", "sensitivity"]
    (taken,) = [one for one in row.tried if one.chosen]
    judged = [one for one in row.tried if one.loss is not None and one.same_as is None]
    assert len(judged) > 1
    last = [one for one in judged if one.rounds == max(one.rounds for one in judged)]
    assert taken == next(one for one in last if one.worse_by is None or one.worse_by[0] <= 0)
    for one in judged:
        if one.rounds < taken.rounds:
            assert one.worse_by is not None
            assert one.worse_by[0] > 0
    page = (project.workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    for one in row.tried:
        assert f"allocation {one.name}{' (taken)' if one.chosen else ''}: " in page
    data, example = read_description(project.workspace), example_inputs(project.workspace, project.settings)
    iterations = project.workspace.folder("iterations")
    _, plan, _ = load_model(iterations / str(row.checkpoint), project.settings, data, example)
    alone = go_on({"allocation": _as_one(taken.name), "recover": CHOICES["trial"]["recover"]}, "prune")
    again = load_model(alone.workspace.folder("iterations") / "01", alone.settings, data, example)[1]
    assert again.removed == plan.removed


@pytest.mark.thorough
def test_evolution_that_was_interrupted_goes_on_to_the_same_bytes_and_says_what_it_gained(
    go_on: GoOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def interrupted(_title: str) -> Iterator[Callable[[int, int], None]]:
        def progress(done: int, _total: int) -> None:
            if done == 1:
                raise KeyboardInterrupt

        yield progress

    change = {**CHOICES["evolve"], "recipes": []}
    with monkeypatch.context() as patched:
        patched.setattr(evolution, "shown", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go_on(change, "prune")
    (state,) = Path("artifacts").glob(".training.unfinished/*/evolution-*/generation.json")
    assert '"number":1' in state.read_text()
    assert list((state.parent / "levels").iterdir())
    project = go_on(change)
    iterations = project.workspace.folder("iterations")
    (row,) = read_ledger(iterations).rows
    start, end = row.tried
    assert (start.name, end.name, end.measure) == ("global", "evolve", "divergence")
    assert start.loss is not None
    assert end.loss is not None
    assert (end if end.loss < start.loss else start).chosen
    page = (project.workspace.folder("report") / "report.html").read_text(encoding="utf-8")
    assert "divergence from the baseline&#x27;s outputs before training" in page
    kept = digest_of_files(iterations)
    shutil.rmtree(iterations)
    assert digest_of_files(go_on(change, "prune").workspace.folder("iterations")) == kept
    assert not list(Path("artifacts").glob(".training.unfinished"))


def _as_one(name: str) -> dict[str, str]:
    return {"strategy": name} if name in ("local", "sensitivity") else {"strategy": "global", "normalise": name}


def test_the_whole_model_lies_beside_one_whose_channels_may_come_back(
    go_on: GoOn,
) -> None:
    project = go_on(CHOICES["reversible"], "prune")
    iterations, data = project.workspace.folder("iterations"), read_description(project.workspace)
    example = example_inputs(project.workspace, project.settings)
    first, plan, _ = load_model(iterations / "01", project.settings, data, example)
    whole = load_model(iterations / "01" / WHOLE, project.settings, data, example)[0]
    for name, tensor in pruning.narrow(whole, plan, example).state_dict().items():
        assert torch.equal(first.state_dict()[name], tensor), name
    second = load_model(iterations / "02", project.settings, data, example)[1]
    assert second.sizes == plan.sizes  # a plan of the original, not of what the first left


def test_training_begins_with_the_weights_that_the_settings_name(
    analysed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(analysed)
    project = Project(analysed, load(analysed / "params.yaml"), Workspace(Path("artifacts")))
    data, example = read_description(project.workspace), example_inputs(project.workspace, project.settings)
    then, _, _ = load_checkpoint(epoch_folder(project.workspace, 3), make_factory(project.settings, data), example)
    now, _, _ = load_model(project.workspace.folder("baseline"), project.settings, data, example)
    assert any(not torch.equal(a, b) for a, b in zip(then.parameters(), now.parameters(), strict=True))


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"recover": {"method": "fold"}}, "criterion 'l2_norm' has no solution to fold"),
    ({"start": {"weights": "rewind"}}, "expected an epoch where weights is 'rewind'"),
    ({"start": {"weights": "rewind", "epoch": 5}}, "prune.start.epoch is 5, but baseline.keep_epochs keeps 3"),
    ({"start": {"weights": "random"}, "recover": {"method": "reconstruct"}}, "would be undone"),
    ({"start": {"weights": "random"}, "reversible": True}, "reversible false"),
    ({"allocation": {"strategy": "scoped"}}, "scopes are missing"),
    ({"allocation": {"strategy": "evolve"}, "start": {"weights": "random"}}, "judges models before they are trained"),
    ({"allocation": {"strategy": "trial", "tried": ["macs", "local", "macs"]}}, "tried names macs twice"),
    (
        {"kind": "unstructured", "target": {"weight_sparsity": 0.5}, "reversible": True},
        "prune.reversible is a key of kind structured; kind is unstructured: remove it",
    ),
    ({"kind": "dynamic", "target": {"mac_reduction": 0.5}, "recipes": []}, "gates have to be trained"),
]


@pytest.mark.parametrize(("change", "text"), FAULTS, ids=[text[:30] for _, text in FAULTS])
def test_choices_that_contradict_each_other_are_named(
    write_params: Callable[..., Path], change: dict[str, Any], text: str
) -> None:
    def settled(settings: dict[str, Any]) -> None:
        _settled(settings)
        settings["prune"] = change if "kind" in change else settings["prune"] | change

    with pytest.raises(SettingsError) as caught:
        load(write_params(settled))
    assert text in str(caught.value)
