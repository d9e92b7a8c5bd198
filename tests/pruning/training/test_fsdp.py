"""Ranks that hold parts of every weight: the same bytes as one process that holds the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruning.errors import LaunchError, ModelError, SettingsError
from pruning.training.callbacks import Callbacks
from pruning.training.fsdp import ELEMENTWISE, Divided, check_recipe, find_units
from pruning.training.launch import launch
from pruning.training.recipe import Recipe, Sparsity
from pruning.training.trainer import finetune
from pruning.world import Parallel, World
from tests.pruning.training import in_parts

SHARDS = 4
TOKENS = torch.arange(2 * in_parts.LENGTH).view(2, -1)


def names_of_units(model: nn.Module) -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    return [names[unit] for unit in find_units(model, lambda model: model(TOKENS))]


def test_units_run_once_and_alone_read_their_weights() -> None:
    found = names_of_units(in_parts.made("tied"))
    assert not {"embedding", "head", "twice", "unused", "blocks"} & set(found)
    assert {"blocks.0", "blocks.1.wide", "blocks.2.wide.1"} <= set(found)
    assert not any("attention" in name for name in found), "given the same tensor three times, it computes it at once"
    assert found.index("blocks.0.wide.1") < found.index("blocks.0"), "inner ones come first"
    assert names_of_units(in_parts.made("recurrent")) == ["embedding", "lstm", "head"]


def test_looking_for_units_leaves_no_trace() -> None:
    class Counting(nn.Linear):
        calls: torch.Tensor

        def __init__(self) -> None:
            super().__init__(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(x + torch.rand(()))

    model, state = nn.Sequential(Counting(), nn.ReLU()), torch.get_rng_state()
    assert find_units(model, lambda model: model(torch.ones(2, 4))) == [model[0]]
    assert model[0].calls == 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"optimizer": "Adafactor"},
            "optimizer 'Adafactor', which may look at a weight as a whole; choose one of Adad",
        ),
        ({"optimizer": "Rprop"}, "optimizer 'Rprop'"),
        ({"optimizer": "sgd", "optimizer_kwargs": {"fused": True}}, "fused in optimizer_kwargs, which sgd can't be"),
        ({"precision": "fp16"}, "precision fp16"),
        ({"compile": True}, "compile"),
        ({"channels_last": True}, "channels_last"),
        ({"sparsity": Sparsity(penalty="bn_scale", share=0.5)}, "sparsity"),
        ({"trainer": "package.module:train"}, "a trainer of its own"),
    ],
)
def test_recipes_that_need_whole_weights_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=rf"recipe 'recipe' has {text}.*parallel: ddp"):
        check_recipe(Recipe(**changes))
    check_recipe(Recipe())


@pytest.mark.parametrize("name", sorted(ELEMENTWISE - {"auto", "sgd", "adamw"}))
def test_optimizers_change_each_value_by_its_own_gradients(name: str) -> None:
    """A part that is stepped by itself has the bits of the whole, wherever it is cut."""
    drawn = torch.Generator().manual_seed(0)
    weight, gradients = torch.randn(1001, generator=drawn), torch.randn(5, 1001, generator=drawn)

    def stepped(part: slice) -> torch.Tensor:
        parameter = nn.Parameter(weight[part].clone())
        optimizer = getattr(torch.optim, name)([parameter], lr=0.01)
        for gradient in gradients:
            parameter.grad = gradient[part].clone()
            optimizer.step()
        return parameter.detach()

    for cut in (1, 333, 500, 998):
        assert torch.equal(torch.cat([stepped(slice(cut)), stepped(slice(cut, None))]), stepped(slice(None)))


def test_models_and_callbacks_that_cannot_be_divided_are_refused() -> None:
    world = World(2, 0, 2, parallel="fsdp")
    with pytest.raises(ModelError, match=r"weight is bfloat16 on cpu; .*set the recipe's precision to bf16"):
        Divided(nn.Linear(2, 2).bfloat16(), world, lambda model: model(torch.zeros(1, 2)))
    turned = nn.Linear(2, 3)
    turned.weight = nn.Parameter(torch.zeros(2, 3).t())
    with pytest.raises(ModelError, match=r"^weight \[3, 2\] lies in memory with strides \[1, 3\]; .*contiguous\(\)"):
        Divided(turned, world, lambda model: model(torch.zeros(1, 2)))
    callbacks = Callbacks(after_step=lambda *_: None, world=world)
    with pytest.raises(SettingsError, match="needs whole weights, such as masks, gates"):
        finetune(in_parts.made("tied"), in_parts.texts(), in_parts.RECIPES[0], seed=0, callbacks=callbacks)


@pytest.mark.slow
def test_parts_give_the_bytes_of_one_process() -> None:
    alone = in_parts.work(World(SHARDS))
    assert len(set(alone.values())) == len(alone)
    for ranks in (2, 4):
        assert launch(in_parts.work, ranks=ranks, shards=SHARDS, parallel="fsdp") == alone


@pytest.mark.slow
def test_a_rank_that_is_killed_is_gone_on_from_by_any_number_and_kind(tmp_path: Path) -> None:
    alone = in_parts.keep(World(SHARDS), None, tmp_path / "alone", -1, -1)
    kept = tmp_path / "kept"
    with pytest.raises(LaunchError, match=r"^2 ranks: rank 1 was ended by SIGKILL"):
        launch(in_parts.keep, kept, 1, 4, ranks=2, shards=SHARDS, parallel="fsdp")
    state = kept.read_bytes()
    others: tuple[tuple[int, Parallel], ...] = (1, "ddp"), (2, "ddp"), (4, "fsdp")
    for ranks, parallel in others:
        path = tmp_path / f"{ranks} {parallel}"
        path.write_bytes(state)
        if ranks == 1:
            assert in_parts.keep(World(SHARDS), None, path, -1, -1) == alone
        else:
            assert launch(in_parts.keep, path, -1, -1, ranks=ranks, shards=SHARDS, parallel=parallel) == alone


@pytest.mark.slow
def test_a_rank_holds_its_part_and_judges_all_samples() -> None:
    total, held, state = launch(in_parts.measure, ranks=4, shards=SHARDS, parallel="fsdp")
    assert sum(held) == total + 3 * 3, "three numbers without an axis are held by all four"
    assert max(held) < 0.27 * total
    assert max(state) < 0.27 * 2 * total
    assert launch(in_parts.judge_in_parts, ranks=2, shards=SHARDS, parallel="fsdp")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_state_dicts_leave_out_is_brought_back_too() -> None:
    alone = in_parts.train_odd(World(SHARDS))
    assert any(alone["mean"])
    assert alone["passes"] == [6]
    assert launch(in_parts.train_odd, ranks=2, shards=SHARDS, parallel="fsdp") == alone


@pytest.mark.slow
def test_what_torch_cannot_divide_is_said_with_the_way_out() -> None:
    in_parts.train_penalized(World(SHARDS))
    with pytest.raises(LaunchError, match=r"^2 ranks: rank . raised RuntimeError: .*set parallel to ddp"):
        launch(in_parts.train_penalized, ranks=2, shards=SHARDS, parallel="fsdp")


@pytest.mark.slow
def test_modules_that_samples_choose_are_refused_by_name() -> None:
    told = launch(in_parts.choose, ranks=2, shards=2, parallel="fsdp")
    assert told.startswith("which modules run depends on the samples, or on chance: rank 0 is at ")
    assert told.endswith("let each hold the whole model (parallel: ddp)")
