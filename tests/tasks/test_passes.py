"""Passes over samples that ranks share: the answers of one process, whatever becomes of the others."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from pruning import apply_masks, find_groups, make_plan, narrow
from tasks.data import read_description
from tasks.determinism import begin
from tasks.loop.recovery import recalibrate, reconstruct
from tasks.models import example_inputs, load_model, make_factory
from tasks.passes import Passes, SamplesOf
from tasks.rank_group import RankGroup, followers, group
from tasks.statistics import collect
from tests.tasks import shared_models
from tests.tasks.shared_models import Counts, DiesElsewhere, Drops, ForgetsElsewhere, RaisesElsewhere, ReadsVariable
from tests.tasks.test_pipeline import Project, made

pytestmark = pytest.mark.slow

VALIDATION, TRAIN = SamplesOf("validation"), SamplesOf("train", 600)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, project_writer: Callable[..., Path]) -> Project:
    def change(settings: dict[str, Any]) -> None:
        settings["run"]["shards"], settings["data"]["kwargs"] = 4, {"step": 1}
        settings["baseline"]["recipe"]["epochs"] = 1
        settings["training"] = {**settings.get("training", {}), "batch_size": 16}

    return made(tmp_path_factory.mktemp("shared"), project_writer, ["prepare", "baseline"], change)


@pytest.fixture
def passes(project: Project, monkeypatch: pytest.MonkeyPatch) -> Passes:
    monkeypatch.chdir(project.root)
    begin(project.settings)
    return Passes("prune", project.settings, project.workspace)


@pytest.fixture
def led(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What became of each pass that was shared."""
    became, lead = list[str](), RankGroup.lead

    def watched(*given: Any, **named: Any) -> Any:
        try:
            found = lead(*given, **named)
        except Exception as fault:
            became.append(type(fault).__name__)
            raise
        became.append("shared")
        return found

    monkeypatch.setattr(RankGroup, "lead", watched)
    return became


@contextmanager
def ready(passes: Passes, ranks: int) -> Iterator[None]:
    machine = passes.settings.machine.model_copy(update={"ranks": ranks})
    with followers(passes.settings.model_copy(update={"machine": machine})):
        end = time.monotonic() + 300
        while not group.is_ready:
            assert time.monotonic() < end, group.why_lost()
            time.sleep(0.1)
        yield


def baseline_of(passes: Passes) -> nn.Module:
    settings, workspace = passes.settings, passes.workspace
    example = example_inputs(workspace, settings)
    return load_model(workspace.folder("baseline"), settings, read_description(workspace), example)[0]


def hash_of(model: nn.Module) -> str:
    found = hashlib.sha256()
    for tensor in model.state_dict().values():
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def answers(passes: Passes) -> dict[str, Any]:
    model, example = baseline_of(passes), example_inputs(passes.workspace, passes.settings)
    evaluated = passes.evaluate(model, VALIDATION, each=True)
    assert evaluated.losses is not None
    groups = find_groups(model, example)
    gathered = collect(passes, groups, {"gradients", "moments"}, TRAIN, "statistics")
    plan = make_plan(groups, "l1_norm", channel_sparsity=0.4)
    dense = narrow(model, plan, example, groups=groups)
    refits = reconstruct(passes, dense, model, plan, groups, TRAIN, 1e-3)
    reconstructed = hash_of(dense)
    recalibrate(passes, dense, TRAIN)
    masked = apply_masks(model, plan, groups=groups)
    told = passes.answers(model, SamplesOf("validation", has_targets=False))
    return {
        "difference": passes.difference(masked, dense, VALIDATION),
        "answers": torch.cat(told).tolist(),
        "evaluated": (evaluated.score, evaluated.loss, evaluated.num_samples, evaluated.losses.tolist()),
        "gathered": {name: tensor.tolist() for name, tensor in gathered.gathered["gradients"].items()},  # type: ignore[union-attr]
        "moments": {name: moment.cpu().mean().tolist() for name, moment in gathered.moments.items()},
        "refits": refits,
        "reconstructed": reconstructed,
        "recalibrated": hash_of(dense),
    }


def test_shared_passes_answer_as_one_process(passes: Passes, led: list[str]) -> None:
    alone = answers(passes)
    assert led == []
    before = torch.get_rng_state()
    for ranks in (2, 4):
        with ready(passes, ranks):
            assert answers(passes) == alone
            children = [one for one in psutil.Process().children() if "tasks.rank_follower" in one.cmdline()]
            assert len(children) == ranks - 1
        assert led == ["shared"] * 6
        led.clear()
        assert not any(child.is_running() for child in children)
    assert torch.equal(torch.get_rng_state(), before)
    assert group.ranks == 1


def test_whatever_becomes_of_the_others_the_pass_is_done(
    passes: Passes, led: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    class OfAFunction(nn.Sequential):
        """Of a class that no other process finds."""

    model = baseline_of(passes)
    alone = passes.evaluate(model, VALIDATION)
    with ready(passes, 2), caplog.at_level(logging.INFO, logger="secateur"):
        for given, became, said in (
            (OfAFunction(model), "CantBeSentError", "computed in this process alone, since it can't be sent: "),
            (ForgetsElsewhere(model), "_UnlikeModelError", "arrived with other weights"),
            (model, "shared", ""),
            (DiesElsewhere(model, 1), "LostRankError", "rank 1 was ended by SIGKILL; what it had a share in"),
        ):
            caplog.clear()
            found = passes.evaluate(given, VALIDATION)
            assert (found.score, found.loss) == (alone.score, alone.loss)
            assert led.pop() == became
            assert said in caplog.text
        passes.evaluate(model, VALIDATION)
        assert led == [], "nobody is there to share with"


def test_model_that_depends_on_who_runs_it_is_passed_by_one_process(
    passes: Passes, led: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_models, "FACTOR", 3.0)  # of this process alone
    model = baseline_of(passes)
    unlike = (
        (ReadsVariable, "a model that was sent to the other ranks answers otherwise there"),
        (Counts, "the model answers otherwise when it is given the same samples again"),
        (Drops, "the model answers otherwise when it is given the same samples again"),
    )
    for make, said in unlike:
        begin(passes.settings)
        alone, after = passes.evaluate(make(model), VALIDATION).loss, torch.get_rng_state()
        with ready(passes, 2), caplog.at_level(logging.WARNING, logger="secateur"):
            caplog.clear()
            begin(passes.settings)
            assert passes.evaluate(make(model), VALIDATION).loss == alone
        assert torch.equal(torch.get_rng_state(), after)
        assert led.pop() == "_UnlikeModelError"
        assert f"prune: computed in this process alone: {said}" in caplog.text


def test_fault_in_a_follower_is_named(passes: Passes, led: list[str], caplog: pytest.LogCaptureFixture) -> None:
    model = baseline_of(passes)
    with ready(passes, 2), caplog.at_level(logging.WARNING, logger="secateur"):
        found = passes.evaluate(RaisesElsewhere(model), VALIDATION)
    assert found.loss == passes.evaluate(model, VALIDATION).loss
    assert led == ["LostRankError"]
    assert "rank 1 ended with exit code 1: " in caplog.text
    assert "ValueError: not at home; what it had a share in" in caplog.text


def test_statistics_are_not_shared_where_their_model_is_another_one(
    passes: Passes, led: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_models, "FACTOR", 3.0)
    groups = find_groups(ReadsVariable(baseline_of(passes)), example_inputs(passes.workspace, passes.settings))
    alone = collect(passes, groups, {"gradients"}, TRAIN, "statistics").gathered["gradients"]
    with ready(passes, 2):
        found = collect(passes, groups, {"gradients"}, TRAIN, "statistics").gathered["gradients"]
    assert {name: values.tolist() for name, values in found.items()} == {  # type: ignore[union-attr]
        name: values.tolist()  # type: ignore[union-attr]
        for name, values in alone.items()
    }
    assert led == ["_UnlikeModelError"]


def test_follower_that_has_nothing_to_add_up_stays(passes: Passes, led: list[str]) -> None:
    groups = find_groups(baseline_of(passes), example_inputs(passes.workspace, passes.settings))
    with ready(passes, 2):
        collect(passes, groups, {"knockoffs"}, TRAIN, "statistics")  # of which it has nothing to do
        assert group.is_ready, group.why_lost()
    assert led == ["shared"]


def test_what_the_factory_sets_outside_of_a_model_is_set_in_all_ranks(
    passes: Passes, led: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_models, "FACTOR", 1.0)
    chosen = {"factory": "tests.tasks.shared_models:make_scaled", "kwargs": {"factor": 3.0}}
    own = passes.settings.model.model_copy(update=chosen)
    scaled = Passes("prune", passes.settings.model_copy(update={"model": own}), passes.workspace)
    model = make_factory(scaled.settings, read_description(passes.workspace))()
    assert shared_models.FACTOR == 3.0
    alone = scaled.evaluate(model, VALIDATION).loss
    with ready(scaled, 2):
        assert scaled.evaluate(model, VALIDATION).loss == alone
    assert led == ["shared"]


def test_what_a_lost_rank_left_half_done_is_done_anew(passes: Passes, led: list[str]) -> None:
    model, example = baseline_of(passes), example_inputs(passes.workspace, passes.settings)
    groups = find_groups(model, example)
    plan = make_plan(groups, "l1_norm", channel_sparsity=0.4)
    dense = narrow(model, plan, example, groups=groups)
    alone, other = deepcopy(dense), DiesElsewhere(dense, 3)
    recalibrate(passes, alone, TRAIN)
    with ready(passes, 2):
        recalibrate(passes, other, TRAIN)
    assert led == ["LostRankError"]
    assert hash_of(dense) == hash_of(alone)


def test_few_batches_are_not_sent(passes: Passes, led: list[str]) -> None:
    with ready(passes, 2):
        passes.evaluate(baseline_of(passes), SamplesOf("validation", 40))
    assert led == []


def test_rank_that_has_ended_since_it_was_ready_is_not_waited_for(passes: Passes, led: list[str]) -> None:
    model = baseline_of(passes)
    alone = passes.evaluate(model, VALIDATION).loss
    with ready(passes, 2), pytest.MonkeyPatch.context() as patch:
        (follower,) = (one for one in psutil.Process().children() if "tasks.rank_follower" in one.cmdline())
        is_ready, asked = vars(RankGroup)["is_ready"].fget, list[bool]()

        def ready_once(one: RankGroup) -> bool:
            asked.append(is_ready(one))
            if len(asked) == 1:
                follower.kill()
                follower.wait()
            return asked[-1]

        patch.setattr(RankGroup, "is_ready", property(ready_once))
        assert passes.evaluate(model, VALIDATION).loss == alone
    assert asked[:2] == [True, False]
    assert led == ["LostRankError"]
