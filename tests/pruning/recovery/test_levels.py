"""Models stitched from a database of levels, and the search that they serve."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.allocation.budget import Budget, BudgetSolver
from pruning.allocation.evolution import Evolution
from pruning.allocation.selection import Scope, choose, make_plan
from pruning.batches import TensorBatches
from pruning.errors import CheckpointError, ModelError
from pruning.evaluation import distillation_loss
from pruning.importance import Ranking
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.plan.plan import Cost, Plan
from pruning.recovery.fold import Folded, fold
from pruning.recovery.levels import LevelDatabase, StitchedModels, evolve_plan, relative_error
from pruning.recovery.reconstruct import reconstruct
from pruning.statistics.collect import Statistics, collect


class Known(NamedTuple):
    groups: pruning.Groups
    statistics: Statistics
    inputs: Tensor


@pytest.fixture(scope="module")
def known() -> Known:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, groups=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    inputs = torch.randn(128, 3, 8, 8)
    groups = pruning.find_groups(model, inputs[:1])
    return Known(groups, collect(groups, {"moments"}, inputs), inputs)


def _divergence(outputs: Tensor, answers: Tensor) -> Tensor:
    return distillation_loss(outputs, answers, 1.0)


def _stitched(known: Known, database: LevelDatabase) -> StitchedModels:
    return StitchedModels(known.groups, known.statistics, TensorBatches(known.inputs), database, _divergence)


def _plan(known: Known) -> Plan:
    return make_plan(known.groups, "structured_obs", mac_reduction=0.6, scope="global", samples=known.statistics)


def test_a_stitched_model_is_the_narrowed_and_folded_one(known: Known) -> None:
    plan = _plan(known)
    dense = pruning.narrow(known.groups.model, plan, known.inputs[:1], groups=known.groups, verify=False)
    assert fold(dense, plan, known.groups, known.statistics, "structured_obs") == 3
    found = _stitched(known, LevelDatabase()).stitched(plan)
    for (name, one), other in zip(dense.state_dict().items(), found.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert found(known.inputs).isfinite().all()


def test_levels_are_made_once_and_read_from_the_folder_by_the_next(known: Known, tmp_path: Path) -> None:
    plan = _plan(known)
    first = _stitched(known, LevelDatabase(tmp_path))
    value = first.divergence(first.stitched(plan))
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 3
    again = _stitched(known, LevelDatabase(tmp_path))
    assert again.divergence(again.stitched(plan)) == value  # to the last bit
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_a_damaged_level_is_made_again(known: Known, tmp_path: Path) -> None:
    plan, database = _plan(known), LevelDatabase(tmp_path)
    whole = _stitched(known, database).stitched(plan).state_dict()
    next(tmp_path.iterdir()).write_bytes(b"no weights")
    found = _stitched(known, LevelDatabase(tmp_path)).stitched(plan).state_dict()
    assert all(torch.equal(one, found[name]) for name, one in whole.items())


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_levels_that_were_not_used_for_longest_are_dropped(tmp_path: Path, on_disk: bool) -> None:
    made: list[str] = []
    database = LevelDatabase(tmp_path if on_disk else None, max_bytes=4000)

    def ask(layer: str) -> None:
        def make() -> Folded:
            made.append(layer)
            return Folded(torch.zeros(1, 20, 16), torch.zeros(1, 20))  # 1,360 bytes

        database.get(layer, torch.ones(4, dtype=torch.bool), make)

    for layer in ("a", "b", "a", "c", "a", "b"):  # b is the one to drop when c comes
        ask(layer)
    assert made == ["a", "b", "c", "b"]
    assert len(list(tmp_path.iterdir())) == (2 if on_disk else 0)


def test_relative_error_is_worked_out_by_hand_and_refuses_other_shapes() -> None:
    answers = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0, 1.0]), "ids": torch.tensor([1])}
    outputs = {"a": torch.tensor([3.0, 3.0]), "b": torch.tensor([1.0, 0.0]), "ids": torch.tensor([9])}
    assert float(relative_error(outputs, answers)) == pytest.approx((1 / 25 + 1 / 2) / 2)
    with pytest.raises(ModelError, match="other shapes"):
        relative_error(torch.ones(2, 3), torch.ones(2, 4))


def test_the_evolved_plan_is_no_further_from_the_original_than_its_starts_and_goes_on(
    known: Known, tmp_path: Path
) -> None:
    groups, inputs = known.groups, known.inputs
    cost = Cost(groups)
    bundles = find_tied_groups(groups, Limits(max_group_rate=0.9))
    solver = BudgetSolver(bundles, Budget("MACs", cost.macs, 0.4 * cost.macs({})))
    ranking = Ranking(groups, "structured_obs", known.statistics)
    starts = [choose(ranking, solver, Scope("local")), choose(ranking, solver, Scope("global"))]
    stitched = _stitched(known, LevelDatabase())

    def recovered(plan: Plan) -> nn.Module:
        dense = pruning.narrow(groups.model, plan, inputs[:1], groups=groups, verify=False)
        reconstruct(dense, groups.model, plan, groups, inputs[:64])
        return dense

    def search(generations: int, state: Path | None = None) -> Plan:
        settings = Evolution(generations=generations, offspring=6, survivors=2, num_samples=128)
        return evolve_plan(solver, ranking, starts, stitched, recovered, settings, state=state)[0]

    whole = search(4)
    distances = [stitched.judged(recovered, plan) for plan in (*starts, whole)]
    assert distances[-1] < min(distances[:-1])
    assert cost.macs(whole.kept_sizes(groups)) <= 0.4 * cost.macs({})
    file = tmp_path / "generation.json"
    assert search(2, file) != search(0)
    assert search(4, file) == whole  # after the second generation
    file.write_text('{"number": "two"}')
    with pytest.raises(CheckpointError, match="delete it to start the search over"):
        search(4, file)
