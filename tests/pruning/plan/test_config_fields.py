"""Which numbers of a configuration set which sizes, on a class written here: no library is needed to find them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pruning
from pruning.errors import PlanError, TargetError
from pruning.graph.groups import CommonSize
from pruning.plan.carry_over import TOLERANCE, carry_over
from pruning.plan.config_fields import find_config_fields, with_stated_numbers
from pruning.plan.configuration import name_of, numbers_after
from pruning.plan.constraints import Limits, find_tied_groups
from pruning.plan.verification import difference_on

CONFIG: dict[str, Any] = {
    "width": 24, "heads": 3, "inner": None, "layers": 2, "kept": {"classes": 5}, "name": "toy", "even": False,
}  # fmt: skip


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        batch, length, width = y.shape
        shape = (batch, length, self.heads, width // self.heads)
        query, key, value = (one(y).view(shape).transpose(1, 2) for one in (self.query, self.key, self.value))
        seen = nn.functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        found: Tensor = x + self.down(self.up(self.last(x)).relu())
        return found


class Toy(nn.Module):
    """A class that works out the width of a head and, unless it is stated, the inner width, from its width."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, heads = config["width"], config["heads"]
        if width % heads:
            raise ValueError("the width is no multiple of the heads")
        if config["even"] and width % 2:
            raise ValueError("the width is odd")
        inner = config["inner"] or 2 * width
        self.enter = nn.Linear(4, width)
        self.blocks = nn.Sequential(*(Block(width, heads, inner) for _ in range(config["layers"])))
        self.head = nn.Linear(width, config["kept"]["classes"])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.enter(x)).mean(1))
        return out


def build(config: Mapping[str, Any], shapes_only: bool) -> nn.Module:
    with torch.device("meta" if shapes_only else "cpu"):
        return Toy(config)


def groups_of(config: Mapping[str, Any], *, streams: bool = True) -> pruning.Groups:
    torch.manual_seed(0)
    model = Toy(config).eval()
    return pruning.find_groups(model, torch.randn(2, 6, 4), allow_mixed=streams)


@pytest.fixture(scope="module")
def groups() -> pruning.Groups:
    return groups_of({**CONFIG, "inner": 40})


def test_a_number_is_found_with_all_the_groups_that_it_sets_in_steps_that_keep_them_in_proportion(
    groups: pruning.Groups,
) -> None:
    found = find_config_fields(groups, {**CONFIG, "inner": 40}, build)
    assert [field.name for field in found.fields] == ["width", "inner"]
    width, inner = found.fields
    sizes = {name: groups[name].size for name in width.units}
    assert {sizes[name]: unit for name, unit in width.units.items()} == {24: 3, 8: 1}
    assert width.steps == {("width",): 3}
    assert len(width.units) == 5, "the stream, and the width of queries, keys and values in both blocks"
    assert list(inner.units.values()) == [1, 1]
    assert "other parameters" in found.refused["layers"]
    assert "stay whole" in found.refused["kept.classes"]


def test_a_number_that_is_worked_out_is_stated_so_that_it_can_change_alone() -> None:
    groups = groups_of(CONFIG)
    assert "inner" not in str(find_config_fields(groups, CONFIG, build).fields)
    config = with_stated_numbers(groups, CONFIG, build)
    assert config == {**CONFIG, "inner": 48}
    assert [field.name for field in find_config_fields(groups, config, build).fields] == ["width", "inner"]


def test_steps_are_those_that_the_class_can_be_built_with() -> None:
    config = {**CONFIG, "inner": 40, "even": True}
    groups = groups_of(config)
    assert find_config_fields(groups, config, build).fields[0].steps == {("width",): 6}


def test_a_class_that_computes_something_else_at_another_size_is_refused() -> None:
    class Scaled(Toy):
        def __init__(self, config: Mapping[str, Any]) -> None:
            super().__init__(config)
            self.by = config["width"] ** 0.5

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mul(self.by)

    def other(config: Mapping[str, Any], shapes_only: bool) -> nn.Module:
        with torch.device("meta" if shapes_only else "cpu"):
            return Scaled(config)

    config = {**CONFIG, "inner": 40}
    torch.manual_seed(0)
    groups = pruning.find_groups(Scaled(config).eval(), torch.randn(2, 6, 4), allow_mixed=True)
    found = find_config_fields(groups, config, other)
    assert [field.name for field in found.fields] == ["inner"]
    assert "computes something else" in found.refused["width"]


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_class_is_the_narrowed_model_with_scaled_queries_and_keys(groups: pruning.Groups, share: float) -> None:
    config = {**CONFIG, "inner": 40}
    fields = find_config_fields(groups, config, build).fields
    plan = pruning.make_plan(groups.with_common_sizes(fields), scope="global", mac_reduction=share)
    dense = pruning.narrow(groups.model, plan, groups.example_inputs, groups=groups)
    stock, after = carry_over(dense, plan, groups, fields, config, build)
    assert type(stock) is Toy
    assert after["width"] % 3 == 0
    assert after["width"] < 24 or after["inner"] < 40
    torch.manual_seed(5)
    assert difference_on(dense, stock, torch.randn(3, 9, 4)) < TOLERANCE
    assert pruning.count_macs(groups, plan) <= (1 - share) * pruning.count_macs(groups)


def test_sizes_that_differ_between_layers_are_none_of_the_class(groups: pruning.Groups) -> None:
    config = {**CONFIG, "inner": 40}
    fields = find_config_fields(groups, config, build).fields
    inner = list(fields[1].units)
    plan = pruning.Plan.of(groups, {inner[0]: range(4), inner[1]: range(5)})
    dense = pruning.narrow(groups.model, plan, groups.example_inputs, groups=groups)
    with pytest.raises(PlanError, match="inner sets have lost unequal shares"):
        carry_over(dense, plan, groups, fields, config, build)
    with pytest.raises(PlanError, match="no number of the configuration sets the size of"):
        carry_over(dense, plan, groups, fields[:1], config, build)


def test_a_configuration_of_another_model_is_refused(groups: pruning.Groups) -> None:
    with pytest.raises(PlanError, match="builds another model"):
        find_config_fields(groups, {**CONFIG, "inner": 41}, build)


def test_groups_that_no_number_sets_stay_whole_and_a_target_beyond_says_so(groups: pruning.Groups) -> None:
    fields = find_config_fields(groups, {**CONFIG, "inner": 40}, build).fields
    without = find_tied_groups(groups.with_common_sizes(fields[1:]), Limits())
    assert {bundle.names[0]: len(bundle.counts) > 1 for bundle in without}[next(iter(fields[1].units))]
    assert {bundle.obstacle for bundle in without if len(bundle.counts) == 1} == {
        "no number of the configuration sets its size alone"
    }
    with pytest.raises(TargetError, match="no number of the configuration"):
        pruning.make_plan(groups.with_common_sizes(fields[1:]), mac_reduction=0.9)


def test_without_streams_a_number_that_sets_one_is_out_of_reach() -> None:
    config = {**CONFIG, "inner": 40}
    groups = groups_of(config, streams=False)
    found = find_config_fields(groups, config, build)
    assert [field.name for field in found.fields] == ["inner"]
    assert "stay whole" in found.refused["width"]


def test_counts_are_steps_of_which_each_group_takes_its_unit(groups: pruning.Groups) -> None:
    fields = find_config_fields(groups, {**CONFIG, "inner": 40}, build).fields
    offered = groups.with_common_sizes(fields[:1])
    [bundle] = find_tied_groups(offered, Limits(max_group_rate=0.5))[:1]
    assert bundle.num_steps == 8
    assert max(bundle.counts) == 4
    kept = bundle.kept(2)
    assert {groups[name].size: size for name, size in kept.items()} == {24: 18, 8: 6}
    [rounded] = find_tied_groups(offered, Limits(), round_to=4)[:1]
    assert rounded.counts == (0, 4), "24 − 12 and 8 − 4 are multiples of 4"


def test_numbers_that_several_fields_change_are_products(groups: pruning.Groups) -> None:
    del groups
    config = {"heads": 12, "groups": 4}
    one = replace(_field("groups"), steps={("groups",): 1, ("heads",): 3})
    other = replace(_field("heads"), steps={("heads",): 4})
    assert numbers_after(config, [(one, 2), (other, 1)]) == {("groups",): 2, ("heads",): 4}
    with pytest.raises(PlanError, match="heads would be"):
        numbers_after({"heads": 12, "groups": 5}, [(replace(other, steps={("heads",): 5}), 1), (one, 1)])
    assert name_of(("text", "heads", 0)) == "text.heads.0"


def _field(name: str) -> Any:
    from pruning.plan.configuration import ConfigField

    return ConfigField(name, {"a": 1}, {})


def test_a_group_that_is_lacking_holds_what_is_tied_to_it(groups: pruning.Groups) -> None:
    inner = next(group.name for group in groups if group.size == 40)
    [bundle] = [
        one
        for one in find_tied_groups(groups.with_common_sizes([CommonSize("inner", {inner: 1, "gone": 1})]), Limits())
        if inner in one.names
    ]
    assert (bundle.counts, bundle.obstacle) == ((0,), "tied to gone, which can't be pruned")
