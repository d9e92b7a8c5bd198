from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups
from pruning.allocation.budget import ChannelSparsity, MacReduction, ParameterReduction, Target
from pruning.allocation.selection import Normalise, Scope, make_plan
from pruning.errors import CriterionError, OutOfReachError, SettingsError, TargetError
from pruning.graph.groups import Group, Groups
from pruning.plan.constraints import Limits
from pruning.plan.masks import apply_masks
from pruning.plan.narrow import narrow
from pruning.plan.plan import count_macs, count_parameters
from pruning.statistics.collect import Statistics, collect
from tests.pruning.networks import Halves
from zoo.models import densenet, mobilenet, resnet20

SHAPE = (1, 8, 8)
EXAMPLE = torch.zeros(1, *SHAPE)


@pytest.fixture(scope="module")
def residual() -> Groups:
    torch.manual_seed(0)
    return find_groups(resnet20(input_shape=SHAPE, num_classes=10), EXAMPLE)


def mlp(*widths: int) -> Groups:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)))
    return find_groups(model, torch.zeros(1, widths[0]))


def weighted(rows: dict[str, list[float]]) -> Any:
    """A criterion with the given scores."""
    return lambda group, statistics: torch.tensor(rows[group.name])


def test_local_share_of_every_group_goes_the_smallest_scores_first() -> None:
    groups = mlp(2, 10, 5, 3)
    scores = {"0.weight:0": [9.0, 1, 8, 2, 7, 3, 6, 4, 5, 10], "1.weight:0": [1.0, 1, 1, 0, 1]}
    plan = make_plan(groups, weighted(scores), channel_sparsity=0.3)
    assert plan.removed == {"0.weight:0": (1, 3, 5), "1.weight:0": (0, 3)}


def test_global_threshold_takes_exactly_the_number_asked_for_and_breaks_ties_by_place() -> None:
    groups = mlp(2, 4, 4, 3)
    scores = {"0.weight:0": [2.0, 2, 2, 2], "1.weight:0": [7.0, 7, 7, 7]}
    plan = make_plan(groups, weighted(scores), channel_sparsity=0.5, scope="global")
    assert plan.removed == {"0.weight:0": (0, 1, 2), "1.weight:0": (0,)}


def test_global_scores_are_relative_to_the_group() -> None:
    groups = mlp(2, 4, 4, 3)
    scores = {"0.weight:0": [1.0, 1, 1, 1], "1.weight:0": [100.0, 300, 500, 700]}
    plan = make_plan(groups, weighted(scores), channel_sparsity=0.25, scope="global")
    assert plan.removed == {"1.weight:0": (0, 1)}


def test_global_scope_never_empties_a_group() -> None:
    groups = mlp(2, 4, 40, 3)
    scores = {"0.weight:0": [0.0, 0, 0, 1e-9], "1.weight:0": [1.0 + i for i in range(40)]}
    plan = make_plan(groups, weighted(scores), channel_sparsity=0.8, scope="global", limits=Limits(max_group_rate=1.0))
    assert len(plan.removed["0.weight:0"]) == 3
    assert sum(map(len, plan.removed.values())) == round(0.8 * 44)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_no_group_falls_below_a_quarter_unless_asked(residual: Groups, scope: Literal["local", "global"]) -> None:
    """Scores that differ by magnitudes between groups would take all of some and none of others."""

    def lopsided(group: Group, _statistics: object) -> torch.Tensor:
        return torch.full((group.size,), 10.0 ** -len(group.name) * group.size, dtype=torch.float64)

    plan = make_plan(residual, lopsided, mac_reduction=0.7, scope=Scope(scope, "none"))
    assert all(kept >= 0.25 * residual[name].size for name, kept in plan.kept_sizes(residual).items())


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(
    ("target", "count"), [("mac_reduction", count_macs), ("parameter_reduction", count_parameters)]
)
def test_reduction_is_met_within_one_percent(
    residual: Groups, scope: Literal["local", "global"], share: float, target: str, count: Any
) -> None:
    plan = make_plan(residual, scope=scope, **{target: share})  # type: ignore[arg-type]
    reached = 1 - count(residual, plan) / count(residual)
    assert share <= reached <= share + 0.01


def test_local_reduction_takes_about_the_same_share_everywhere(residual: Groups) -> None:
    plan = make_plan(residual, mac_reduction=0.5)
    shares = [len(plan.removed.get(group.name, ())) / group.size for group in residual]
    assert max(shares) - min(shares) <= 2 / 16


@pytest.mark.parametrize("factory", [resnet20, mobilenet, densenet])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_plan_can_be_carried_out_and_is_exact(factory: Any, scope: Literal["local", "global"]) -> None:
    torch.manual_seed(0)
    model = factory(input_shape=SHAPE, num_classes=10).eval()
    groups = find_groups(model, EXAMPLE)
    plan = make_plan(groups, mac_reduction=0.6, scope=scope)
    inputs = torch.randn(3, *SHAPE)
    dense = narrow(model, plan, inputs)
    torch.testing.assert_close(dense(inputs), apply_masks(model, plan)(inputs), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in dense.parameters()) == count_parameters(groups, plan)


def test_ignored_modules_stay_whole_and_the_target_is_still_met(residual: Groups) -> None:
    whole = make_plan(residual, mac_reduction=0.3)
    first = next(iter(residual)).slices[0].parameter
    plan = make_plan(residual, mac_reduction=0.3, ignore=[first])
    assert next(iter(residual)).name in whole.removed
    assert next(iter(residual)).name not in plan.removed
    assert count_macs(residual, plan) <= 0.7 * count_macs(residual)


def test_a_module_is_ignored_as_it_is_by_its_name(residual: Groups) -> None:
    name = next(iter(residual)).slices[0].parameter.rpartition(".")[0]
    module = residual.model.get_submodule(name)
    by_module = make_plan(residual, mac_reduction=0.3, ignore=[module])
    assert by_module == make_plan(residual, mac_reduction=0.3, ignore=[name])
    with pytest.raises(SettingsError, match="no module of this"):
        make_plan(residual, mac_reduction=0.3, ignore=[torch.nn.Linear(2, 2)])


def test_global_channel_sparsity_is_of_the_groups_not_ignored() -> None:
    groups = mlp(2, 10, 30, 3)
    plan = make_plan(groups, channel_sparsity=0.2, scope="global", ignore=["0"])
    assert {name: len(indices) for name, indices in plan.removed.items()} == {"1.weight:0": 6}


@pytest.mark.parametrize("scope", ["local", "global"])
def test_kept_counts_are_multiples_or_the_whole_group(scope: Literal["local", "global"], residual: Groups) -> None:
    plan = make_plan(residual, mac_reduction=0.5, round_to=8, scope=scope)
    kept = [group.size - len(plan.removed.get(group.name, ())) for group in residual]
    assert all(count % 8 == 0 for count in kept)
    assert count_macs(residual, plan) <= 0.5 * count_macs(residual)


def test_rounding_goes_to_the_nearest_multiple_and_never_to_nothing() -> None:
    groups = mlp(2, 12, 6, 64, 3)
    plan = make_plan(groups, channel_sparsity=0.3, round_to=8)
    kept = [group.size - len(plan.removed.get(group.name, ())) for group in groups]
    assert kept == [8, 6, 48]  # 8.4 → 8, whole, 45 → 48


@pytest.mark.parametrize("scope", ["local", "global"])
def test_tied_groups_lose_equal_counts(scope: Literal["local", "global"]) -> None:
    model = Halves()
    groups = find_groups(model, torch.zeros(1, 4))
    tied = [group for group in groups if group.ties]
    assert len(tied) == 2
    for share in (0.2, 0.45, 0.7):
        plan = make_plan(groups, mac_reduction=share, scope=scope)
        lost = {len(plan.removed.get(group.name, ())) for group in tied}
        assert len(lost) == 1
        narrow(model, plan, torch.randn(3, 4))


def test_duplicates_are_judged_one_after_the_other() -> None:
    groups = mlp(1, 6, 3)
    with torch.no_grad():
        next(groups.model.parameters()).copy_(torch.tensor([[0.0], [0.0], [1.0], [2.0], [9.0], [-8.0]]))
    plan = make_plan(groups, "geometric_median", channel_sparsity=0.34)
    assert plan.removed == {"0.weight:0": (0, 2)}


def test_criterion_that_needs_data_gets_it_from_samples() -> None:
    groups = mlp(4, 8, 3)
    generator = torch.Generator().manual_seed(0)
    samples = SimpleNamespace(
        inputs=torch.randn(30, 4, generator=generator), targets=torch.randint(3, (30,), generator=generator)
    )
    plans = [make_plan(groups, "taylor_weight", channel_sparsity=0.5, samples=samples) for _ in range(2)]
    assert plans[0] == plans[1]
    with pytest.raises(CriterionError, match="pass samples"):
        make_plan(groups, "taylor_weight", channel_sparsity=0.5)


def test_random_follows_its_seed(residual: Groups) -> None:
    first, again, other = (
        make_plan(residual, "random", channel_sparsity=0.5, samples=collect(residual, ["weights"], seed=seed))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_criterion_is_not_asked_about_ignored_groups() -> None:
    def only_second(group: Group, statistics: Statistics) -> Tensor:
        if group.name.startswith("0."):
            raise CriterionError("asked about an ignored group")
        return torch.ones(group.size)

    plan = make_plan(mlp(2, 4, 4, 3), only_second, channel_sparsity=0.5, ignore=["0"])
    assert set(plan.removed) == {"1.weight:0"}


def test_target_out_of_reach_says_how_far_it_got_and_what_stood_in_the_way(residual: Groups) -> None:
    with pytest.raises(TargetError) as caught:
        make_plan(residual, mac_reduction=0.95, limits=Limits(8, 1.0))
    text = str(caught.value)
    assert "mac_reduction 0.95 can't be met" in text
    assert "% less) is the least" in text
    assert " keeps 8 of 32 (min_channels = 8)" in text


GUARDS = (Limits(8, 0.5), Limits(4, 0.75), Limits(1, 0.95))


@pytest.mark.parametrize(("share", "within"), [(0.5, 0), (0.8, 1), (0.95, 2)])
def test_limits_give_way_in_order_where_the_target_is_out_of_reach_within_them(
    residual: Groups, caplog: pytest.LogCaptureFixture, share: float, within: int
) -> None:
    caplog.clear()
    plan = make_plan(residual, mac_reduction=share, scope="global", limits=GUARDS)
    assert plan == make_plan(residual, mac_reduction=share, scope="global", limits=GUARDS[within])
    said = [record.getMessage() for record in caplog.records]
    assert [f"planned within {GUARDS[within]}" in text for text in said] == [True] * (within > 0)
    for tried in GUARDS[:within]:
        with pytest.raises(OutOfReachError) as caught:
            make_plan(residual, mac_reduction=share, scope="global", limits=tried)
        assert f"{caught.value.least} within {tried}" in said[0]


def test_target_out_of_reach_of_all_limits_says_how_far_each_gets(residual: Groups) -> None:
    with pytest.raises(OutOfReachError) as caught:
        make_plan(residual, mac_reduction=0.99, limits=GUARDS[:2])
    assert "mac_reduction 0.99 can't be met" in str(caught.value)
    assert all(f"is the least within {tried}" in str(caught.value) for tried in GUARDS[:2])
    with pytest.raises(SettingsError, match="limits is empty"):
        make_plan(residual, mac_reduction=0.5, limits=())


def test_a_group_that_stays_whole_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    make_plan(mlp(2, 6, 40, 3), channel_sparsity=0.5, round_to=8)
    assert sum("stays whole" in record.getMessage() for record in caplog.records) == 1


def test_share_too_small_for_any_group_is_an_error(residual: Groups) -> None:
    with pytest.raises(TargetError, match=r"0.005 comes to no channel in any group; the largest .* has 64"):
        make_plan(residual, channel_sparsity=0.005)


def test_model_without_prunable_groups_is_an_error() -> None:
    with pytest.raises(TargetError, match="no group can lose a channel"):
        make_plan(mlp(4, 3), channel_sparsity=0.5)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_share_outside_zero_and_one_is_an_error(residual: Groups, share: float) -> None:
    with pytest.raises(TargetError, match="expected a share between 0 and 1"):
        make_plan(residual, channel_sparsity=share)


def test_not_exactly_one_target_is_an_error(residual: Groups) -> None:
    with pytest.raises(TargetError, match=r"exactly one target.* found none"):
        make_plan(residual)
    with pytest.raises(TargetError, match=r"found channel_sparsity 0.5, mac_reduction 0.5"):
        make_plan(residual, channel_sparsity=0.5, mac_reduction=0.5)
    with pytest.raises(TargetError, match=r"found channel_sparsity 0.5, mac_reduction 0.4"):
        make_plan(residual, "l2_norm", MacReduction(0.4), channel_sparsity=0.5)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'max_sparsity'; .* are channel_sparsity, mac"):
        make_plan(residual, channel_sparsity=0.5, max_sparsity=1.0)  # type: ignore[call-arg]


def test_targets_are_values_and_keywords_are_short_for_them(residual: Groups) -> None:
    targets: list[Target] = [MacReduction(0.4), ParameterReduction(0.4), ChannelSparsity(0.4)]
    for target in targets:
        assert make_plan(residual, "l2_norm", target) == make_plan(residual, **{target.name: 0.4})  # type: ignore[arg-type]


def test_unknown_scope_and_criterion_are_errors(residual: Groups) -> None:
    with pytest.raises(SettingsError, match="did you mean 'global'"):
        make_plan(residual, channel_sparsity=0.5, scope="globl")  # type: ignore[arg-type]
    with pytest.raises(CriterionError, match="did you mean 'l2_norm'"):
        make_plan(residual, "l2norm", channel_sparsity=0.5)


def test_normalisations_rank_groups_by_their_rule() -> None:
    groups = mlp(2, 4, 4, 3)  # MACs per channel: 2 + 4 in the first group, 4 + 3 in the second
    scores = {"0.weight:0": [1.0, 1, 1, 5], "1.weight:0": [1.5, 4, 4, 4]}
    first = {
        rule: make_plan(groups, weighted(scores), channel_sparsity=0.125, scope=Scope("global", rule)).removed
        for rule in get_args(Normalise)
    }
    assert first == {
        "mean": {"1.weight:0": (0,)},  # 1/2 against 1.5/3.375
        "max": {"0.weight:0": (0,)},  # 1/5 against 1.5/4
        "none": {"0.weight:0": (0,)},
        "macs": {"0.weight:0": (0,)},  # 1/6 against 1.5/7
        "lamp": {"1.weight:0": (0,)},  # 1/8 against 1.5/13.5
        "standard": {"1.weight:0": (0,)},  # (1 − 2)/√3 against (1.5 − 3.375)/1.083
    }
    scores["1.weight:0"][0] = 1.1
    plan = make_plan(groups, weighted(scores), channel_sparsity=0.125, scope=Scope("global", "macs"))
    assert plan.removed == {"1.weight:0": (0,)}  # 1/6 against 1.1/7


def test_scoped_thresholds_take_the_same_share_of_each_set() -> None:
    groups = mlp(2, 4, 8, 8, 3)
    scores = {"0.weight:0": [1.0, 2, 3, 4], "1.weight:0": [10.0 + i for i in range(8)], "2.weight:0": [20.0] * 8}
    plan = make_plan(
        groups,
        weighted(scores),
        channel_sparsity=0.5,
        scope=Scope("scoped", "none", {"late": ["1", "2"]}),
        limits=Limits(max_group_rate=1.0),
    )
    assert plan.removed == {"0.weight:0": (0, 1), "1.weight:0": (0, 1, 2, 3, 4, 5, 6), "2.weight:0": (0,)}


def test_scoped_reduction_is_met_and_sets_give_alike(residual: Groups) -> None:
    scopes = {"early": ["conv1", "stage1"], "late": ["stage3"]}
    plan = make_plan(residual, mac_reduction=0.5, scope=Scope("scoped", sets=scopes))
    assert 0.5 <= 1 - count_macs(residual, plan) / count_macs(residual) <= 0.51
    shares = []
    for entries in scopes.values():
        mine = [g for g in residual if g.slices[0].parameter.startswith(tuple(entries))]
        shares.append(sum(len(plan.removed.get(g.name, ())) for g in mine) / sum(g.size for g in mine))
    assert max(shares) - min(shares) < 0.1


def test_guards_keep_layers_from_collapsing_under_any_threshold() -> None:
    groups = mlp(2, 4, 40, 3)
    scores = {"0.weight:0": [0.0] * 4, "1.weight:0": [1.0] * 40}
    cases: list[tuple[Literal["global", "scoped"], Any]] = [("global", {}), ("scoped", {"all": ["0", "1"]})]
    for scope, scopes in cases:
        plan = make_plan(
            groups,
            weighted(scores),
            channel_sparsity=0.5,
            scope=Scope(scope, "none", scopes),
            limits=Limits(min_channels=2),
        )
        assert {name: len(gone) for name, gone in plan.removed.items()} == {"0.weight:0": 2, "1.weight:0": 20}


def test_faults_in_scopes_are_told(residual: Groups) -> None:
    with pytest.raises(SettingsError, match="needs scopes"):
        make_plan(residual, mac_reduction=0.5, scope="scoped")
    with pytest.raises(SettingsError, match=r"scopes\['a'\]: unknown .* 'stage9'; did you mean 'stage"):
        make_plan(residual, mac_reduction=0.5, scope=Scope("scoped", sets={"a": ["stage9"]}))
    with pytest.raises(SettingsError, match="is in the scopes 'a' and 'b'"):
        make_plan(residual, mac_reduction=0.5, scope=Scope("scoped", sets={"a": ["stage1"], "b": ["stage1.*"]}))
    with pytest.raises(SettingsError, match="expected 'scoped'"):
        make_plan(residual, mac_reduction=0.5, scope=Scope(sets={"a": ["stage1"]}))
    with pytest.raises(SettingsError, match="unknown normalisation 'men'; did you mean 'mean'"):
        make_plan(residual, mac_reduction=0.5, scope=Scope("global", "men"))  # type: ignore[arg-type]
