"""A training that was killed goes on after its last epoch, and ends with the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruning import find_groups
from pruning.dynamic.gates import GatedModel, GateTraining, add_gates
from pruning.errors import ModelError
from pruning.plan.plan import Cost
from pruning.training import trainer
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import OPTIMIZERS, Recipe, Sparsity
from pruning.training.sparsity import SparsityTraining
from pruning.training.step import run_step
from pruning.training.trainer import History, finetune
from tasks.training_state import UNFINISHED, TrainingCheckpointer
from tests.tasks.test_pipeline import BEFORE_THE_LOOP, Project, made, make
from zoo.datasets import Samples

pytestmark = pytest.mark.thorough

Writer = Callable[..., Path]


class Killed(BaseException):
    """What stands for SIGKILL here: nothing catches it."""


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.2), nn.Flatten(), nn.Linear(72, 3))


def _samples() -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.randn(40, 1, 5, 5, generator=generator), torch.arange(40) % 3)


def _plain(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    return {}


def _sparse(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    training = SparsityTraining(find_groups(model, _samples().inputs[:1]), model, recipe)
    return {"after_step": training, "memory": training}


def _gated(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    assert isinstance(model, GatedModel)
    cost = Cost(find_groups(model.model, _samples().inputs[:1]))
    training = GateTraining(model, cost, 0.5 * cost.macs({}))
    return {"penalty": training.penalty, "after_step": training.after_step, "memory": training}


def _judged(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Judge by the state alone, which falls far at times and rises at others; the same for the same state."""

    def judge(now: nn.Module) -> torch.Tensor:
        share = 0.5 + 0.5 * torch.sin(
            1e4 * torch.cat([one.detach().flatten() for one in now.parameters()]).double().sum()
        )
        return (torch.arange(100) < 100 * share).float()

    return {"judge": judge}


def _judged_and_sparse(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    return _sparse(model, recipe) | _judged(model, recipe)


def _network_with_gates() -> nn.Module:
    torch.manual_seed(1)
    return add_gates(find_groups(_network(), _samples().inputs[:1]))[0]


SGD = Recipe(epochs=4, batch_size=16, learning_rate=0.05)
ADAMW = Recipe(epochs=4, batch_size=16, learning_rate=0.01, optimizer="adamw", schedule="one_cycle")
LASSO = Recipe(epochs=4, batch_size=16, sparsity=Sparsity(penalty="group_lasso", share=0.5))
SCALES = Recipe(epochs=4, batch_size=16, sparsity=Sparsity(penalty="bn_scale", share=0.5, ramp=0.7))
Hooks = Callable[[nn.Module, Recipe], dict[str, Any]]


def _validated(model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    return {"validate": _judged(model, recipe)["judge"]}


def _linear_layers() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(25, 16, bias=False), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3, bias=False)
    return nn.Sequential(nn.Flatten(), *layers)


def _of(**changed: Any) -> Recipe:
    return Recipe.model_validate({"epochs": 4, "batch_size": 16, "learning_rate": 0.02} | changed)


STOPS = {"patience": 2, "min_delta": 0.01, "restore_best": True}
KINDS: dict[str, Recipe] = {
    "bf16": _of(precision="bf16"),
    "fp16": _of(precision="fp16", gradient_clip=1.0),
    "accumulation": _of(gradient_accumulation=3),
    "layer rates": _of(layer_rates={"0": 0.1, "4.bias": 2.0}),
    "steps": _of(epochs=6, steps=12, optimizer="adamw"),
    "mixup and cutmix": _of(mixup=0.8, cutmix=1.0, label_smoothing=0.1),
    "average": _of(ema=0.9),
    "early stopping": _of(early_stopping=STOPS),
    "early stopping of an average": _of(early_stopping=STOPS, ema=0.9),
    "OneCycleLR": _of(schedule="OneCycleLR", optimizer="adamw"),
    "StepLR": _of(schedule="StepLR", schedule_kwargs={"step_size": 2, "gamma": 0.5}, schedule_interval="epoch"),
    "CyclicLR": _of(schedule="CyclicLR", schedule_kwargs={"base_lr": 0.001}, layer_rates={"0": 0.5}),
    "plateau": _of(
        schedule="ReduceLROnPlateau",
        schedule_kwargs={"patience": 0, "threshold": 0.5},
        schedule_interval="epoch",
    ),
    **{name: _of(optimizer=name) for name in sorted(OPTIMIZERS.keys() - {"LBFGS", "SparseAdam"})},
    "amsgrad": _of(optimizer="adamw", optimizer_kwargs={"amsgrad": True, "betas": [0.8, 0.9]}),
    "all at once": _of(
        precision="bf16", gradient_accumulation=2, mixup=0.4, ema=0.9, schedule="CosineAnnealingWarmRestarts",
        schedule_kwargs={"T_0": 5}, optimizer="NAdam", layer_rates={"0": 0.1}, gradient_clip=1.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("killed_after", [4, 6, 10])
def test_a_training_that_is_killed_within_an_epoch_ends_with_the_same_bits(
    tmp_path: Path, kind: str, killed_after: int
) -> None:
    steps: list[int] = []
    recipe, make_network = KINDS[kind], _linear_layers if kind == "Muon" else _network

    def noise(inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)

    def train(model: nn.Module, checkpointer: TrainingCheckpointer | None, stop: int | None = None) -> History:
        def progress(done: int, total: int) -> None:
            assert total == 12
            steps.append(done)
            if done == stop:
                raise Killed

        hooks = _validated(model, recipe) if recipe.early_stopping else {}
        callbacks = Callbacks(checkpointer=checkpointer, progress=progress, **hooks)
        return finetune(model, _samples(), recipe, seed=3, augment=noise, callbacks=callbacks)

    undisturbed, killed, resumed = make_network(), make_network(), make_network()
    history = train(undisturbed, None)
    last = len(steps)
    if killed_after >= last:
        pytest.skip(f"training is stopped after {last} steps")
    checkpointer = TrainingCheckpointer(tmp_path / "run.safetensors", seconds=0)
    with pytest.raises(Killed):
        train(killed, checkpointer, killed_after)
    steps.clear()
    torch.manual_seed(99)
    assert train(resumed, checkpointer) == history
    whole_epochs = killed_after - killed_after % 3
    done = killed_after if killed_after % 3 else whole_epochs - 1  # an epoch is kept after its last step was told
    assert steps == list(range(done + 1, last + 1))
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_state_is_kept_within_an_epoch_once_the_time_has_passed(tmp_path: Path) -> None:
    path, kept = tmp_path / "run.safetensors", list[bool]()
    for seconds in (3600.0, 0.0):
        callbacks = Callbacks(
            checkpointer=TrainingCheckpointer(path, seconds=seconds), progress=lambda *_: kept.append(path.exists())
        )
        finetune(_network(), _samples(), SGD.model_copy(update={"epochs": 1}), seed=3, callbacks=callbacks)
        path.unlink()
    assert kept == [False, False, False, True, True, True]


class Forgetful(torch.optim.SGD):
    """Remembers what no file can hold."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        self.param_groups[0]["hook"] = print


def test_an_optimizer_that_remembers_something_else_is_refused(tmp_path: Path) -> None:
    checkpointer = TrainingCheckpointer(tmp_path / "run.safetensors")
    recipe = _of(optimizer=f"{__name__}:Forgetful")
    with pytest.raises(ModelError, match="Forgetful remembers a builtin_function_or_method, which can't be kept"):
        finetune(_network(), _samples(), recipe, seed=3, callbacks=Callbacks(checkpointer=checkpointer))


@pytest.mark.parametrize(
    ("recipe", "hooks", "make_network"),
    [
        pytest.param(SGD, _plain, _network, id="sgd"),
        pytest.param(ADAMW, _plain, _network, id="adamw"),
        pytest.param(SGD.model_copy(update={"momentum": 0.0}), _plain, _network, id="no momentum"),
        pytest.param(LASSO, _sparse, _network, id="group lasso"),
        pytest.param(SCALES, _sparse, _network, id="scales"),
        pytest.param(SGD, _gated, _network_with_gates, id="gates"),
        pytest.param(SGD, _judged, _network, id="judged"),
        pytest.param(LASSO, _judged_and_sparse, _network, id="judged and sparse"),
    ],
)
@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_killed_training_ends_with_the_same_bits(
    tmp_path: Path, recipe: Recipe, hooks: Hooks, make_network: Callable[[], nn.Module], killed_in: int
) -> None:
    steps: list[int] = []

    def train(model: nn.Module, checkpointer: TrainingCheckpointer | None, stop: int | None = None) -> None:
        def progress(done: int, total: int) -> None:
            if stop is not None and done > stop * total // recipe.epochs:
                raise Killed
            steps.append(done)

        callbacks = Callbacks(checkpointer=checkpointer, progress=progress, **hooks(model, recipe))
        finetune(model, _samples(), recipe, seed=3, callbacks=callbacks)

    undisturbed, killed, resumed = make_network(), make_network(), make_network()
    train(undisturbed, None)
    checkpointer = TrainingCheckpointer(tmp_path / "run.safetensors")
    with pytest.raises(Killed):
        train(killed, checkpointer, killed_in)
    steps.clear()
    train(resumed, checkpointer)
    assert steps == list(range(3 * killed_in + 1, 13))
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_state_that_is_cut_off_is_left_alone(tmp_path: Path) -> None:
    model, path = _network(), tmp_path / "run.safetensors"
    checkpointer = TrainingCheckpointer(path)
    finetune(model, _samples(), SGD, seed=3, callbacks=Callbacks(checkpointer=checkpointer))
    path.write_bytes(path.read_bytes()[:-50])
    again = _network()
    finetune(again, _samples(), SGD, seed=3, callbacks=Callbacks(checkpointer=checkpointer))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def _killed_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Kill the process, as it were, when so many epochs have been trained in all; return what lifts it."""
    real, count = trainer._run_epoch, [0]

    def counted(*arguments: Any) -> float:
        if count[0] == epochs:
            raise Killed
        count[0] += 1
        return real(*arguments)

    monkeypatch.setattr(trainer, "_run_epoch", counted)
    return lambda: monkeypatch.setattr(trainer, "_run_epoch", real)


def _keep_epochs(settings: dict[str, Any]) -> None:
    settings["baseline"]["keep_epochs"] = [2, 5]
    settings["prune"].update(iterations=1, max_accuracy_drop=0.9)


def _killed_after_seven_epochs(folder: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Make a project in a folder, and kill the training of its baseline after seven epochs."""
    project = make(folder, project_writer, _keep_epochs)
    project.run("prepare")
    lift = _killed_after(7, monkeypatch)
    with pytest.raises(Killed):
        project.run("baseline")
    lift()
    return project


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, project_writer: Writer) -> Project:
    root = tmp_path_factory.mktemp("undisturbed")
    return made(root, project_writer, (*BEFORE_THE_LOOP, "prune"), _keep_epochs)


def test_baseline_and_attempt_go_on_where_they_were_killed(
    undisturbed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Writer
) -> None:
    monkeypatch.chdir(tmp_path)
    project = _killed_after_seven_epochs(tmp_path, project_writer, monkeypatch)
    trained: list[str] = []
    real = trainer._run_epoch

    def recorded(run: Any, epoch: int, *before: Any) -> float:
        trained.append(run.recipe.name)
        return real(run, epoch, *before)

    monkeypatch.setattr(trainer, "_run_epoch", recorded)
    project.run("baseline")
    assert len(trained) == 12 - 7
    monkeypatch.setattr(trainer, "_run_epoch", real)
    for name in ("analyze", "profile", "measurements"):
        project.run(name)
    trained.clear()
    lift = _killed_after(3, monkeypatch)  # two epochs of the first recipe, one of the second
    with pytest.raises(Killed):
        project.prune()
    lift()
    monkeypatch.setattr(trainer, "_run_epoch", recorded)
    project.run("prune")
    assert trained == ["plain"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(undisturbed.root)
        expected = {name: undisturbed.bytes_of(name) for name in ("baseline", "iterations")}
    for name, files in expected.items():
        assert project.bytes_of(name) == files
    assert not (project.workspace.root / UNFINISHED).exists()


def test_a_run_that_is_killed_within_epochs_ends_with_the_same_bytes(
    undisturbed: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Writer
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainingCheckpointer, "is_due", lambda _self: True)
    project, real, taken = make(tmp_path, project_writer, _keep_epochs), run_step, [0, 0]

    def step(*given: Any) -> float:
        taken[0] += 1
        taken[1] += 1
        if taken[1] == 20:  # of some nine an epoch
            taken[1] = 0
            raise Killed
        return real(*given)

    monkeypatch.setattr(trainer, "run_step", step)
    for name in (*BEFORE_THE_LOOP, "prune"):
        for _ in range(20):
            try:
                project.run(name)
                break
            except Killed:
                continue
    assert taken[0] > 100
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(undisturbed.root)
        expected = {name: undisturbed.bytes_of(name) for name in ("baseline", "iterations")}
    for name, files in expected.items():
        assert project.bytes_of(name) == files


def test_what_was_kept_for_other_settings_is_not_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project_writer: Writer
) -> None:
    monkeypatch.chdir(tmp_path)
    _killed_after_seven_epochs(tmp_path, project_writer, monkeypatch)

    def gentler(settings: dict[str, Any]) -> None:
        _keep_epochs(settings)
        settings["baseline"]["recipe"]["learning_rate"] = 0.05

    other = make(tmp_path, project_writer, gentler)
    epochs: list[int] = []
    real = trainer._run_epoch

    def recorded(run: Any, epoch: int, *before: Any) -> float:
        epochs.append(epoch)
        return real(run, epoch, *before)

    monkeypatch.setattr(trainer, "_run_epoch", recorded)
    other.run("baseline")
    assert epochs == list(range(12))
