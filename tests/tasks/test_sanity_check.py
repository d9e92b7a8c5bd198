"""Wrong factories, losses, metrics, outputs and weights: one message each, before anything is trained."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.errors import SecateurError
from tasks.config.schema import load
from tasks.config.training_schema import Data
from tasks.data import FOLDER as DATA
from tasks.fingerprint import fingerprint
from tasks.stage_table import find_stage
from tasks.stages import baseline, prepare
from tasks.workspace import Workspace, seal

LONGEST_S = 10.0  # of a processor: half of it where no other process is in its caches

WRONG_CODE = """
from types import SimpleNamespace
from dataclasses import dataclass
import itertools
import sys

import numpy
import torch
from torch import nn
from torch.nn import functional

from own_project import few, small
from pruning.task import Classification
from secateur import Task
from zoo.datasets.splits import Samples


def data(**changed):
    whole = few()
    parts = {name: SimpleNamespace(inputs=part.inputs, targets=part.targets) for name, part in whole.named()}
    found = SimpleNamespace(**parts, classes=whole.classes)
    for name, change in changed.items():
        change(getattr(found, name), found)
    return found

def nothing(): return None
def no_classes():
    found = data(); del found.classes; return found
def targets_of_floats(): return data(train=lambda part, _: setattr(part, "targets", part.targets.float()))
def targets_missing(): return data(test=lambda part, _: setattr(part, "targets", None))
def targets_beyond(): return data(test=lambda part, _: setattr(part, "targets", part.targets + 10))
def nan_inputs(): return data(train=lambda part, _: part.inputs.__setitem__(3, float("nan")))
def byte_inputs(): return data(train=lambda part, _: setattr(part, "inputs", part.inputs.byte()))
def other_shape(): return data(test=lambda part, _: setattr(part, "inputs", part.inputs[..., :4]))
def fewer_targets(): return data(train=lambda part, _: setattr(part, "targets", part.targets[:-1]))
def empty_split():
    def change(part, _):
        part.inputs, part.targets = part.inputs[:0], part.targets[:0]
    return data(test=change)
def one_class(): return data(train=lambda _, found: setattr(found, "classes", ("all",)))
def numbered_classes(): return data(train=lambda _, found: setattr(found, "classes", range(10)))
def raising(): raise RuntimeError("the disk is gone")


class Wrapped(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.inner = small((1, 8, 8), num_classes, width=8)

    def forward(self, inputs):
        return self.change(self.inner(inputs))

BUILT = small((1, 8, 8), 10)

def wrapped(change):
    model = Wrapped()
    model.change = change
    return model

def model_class(): return Wrapped
def model_none(): return None
def model_of_width(width): return small((1, 8, 8), 10, width)
def too_few(): return small((1, 8, 8), 5)
def built_once(): return BUILT
def without_sizes(**given): return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
def built_in_part(): return nn.Sequential(BUILT, nn.Linear(10, 10))
def works_in_place(): return nn.Sequential(nn.ReLU(inplace=True), small((1, 8, 8), 10))
def other_input(): return small((3, 8, 8), 10)
def gives_none(): return wrapped(lambda out: None)
def gives_object(): return wrapped(lambda out: SimpleNamespace(logits=out))
def gives_classes(): return wrapped(lambda out: out.argmax(1))
def gives_map(): return wrapped(lambda out: out[..., None].expand(-1, -1, 4))
def gives_one_for_all(): return wrapped(lambda out: out.mean(0, keepdim=True))
def gives_flat(): return wrapped(lambda out: out[:, 0])
def gives_nan(): return wrapped(lambda out: out * float("nan"))
def gives_detached(): return wrapped(lambda out: out.detach())
def branches_on_values(): return wrapped(lambda out: out if out.sum() > 0 else -out)
def beyond_onnx(): return wrapped(lambda out: out + torch.special.bessel_j0(out))
def forward_raises():
    def change(out): raise KeyError("mask")
    return wrapped(change)
def frozen(): return small((1, 8, 8), 10).requires_grad_(False)
def without_parameters(): return nn.Sequential(nn.Flatten(), nn.LayerNorm(64, elementwise_affine=False))


def loss_of_three(outputs, targets, mask): return outputs.sum()
def loss_of_one(outputs): return outputs.sum()
def loss_unreduced(outputs, targets): return functional.cross_entropy(outputs, targets, reduction="none")
def loss_summed(outputs, targets): return functional.cross_entropy(outputs, targets, reduction="sum")
def loss_of_float(outputs, targets): return functional.cross_entropy(outputs, targets).item()
def loss_of_numpy(outputs, targets): return numpy.float32(1.0)
def loss_none(outputs, targets): return None
def loss_of_pair(outputs, targets): return functional.cross_entropy(outputs, targets), outputs
def loss_nan(outputs, targets): return functional.cross_entropy(outputs, targets) * float("nan")
def loss_detached(outputs, targets): return functional.cross_entropy(outputs.detach(), targets)
def loss_constant(outputs, targets): return torch.tensor(1.0)
def loss_whole(outputs, targets): return (outputs.argmax(1) == targets).sum()
def loss_raises(outputs, targets): raise IndexError("no such class")
def loss_nan_gradient(outputs, targets): return 1 + (outputs - outputs).pow(2).sum().sqrt()
def loss_of_one_output(outputs, targets): return functional.mse_loss(outputs[:, :1], targets.float())
def good_loss(outputs, targets): return functional.cross_entropy(outputs, targets)

class NeedsClasses:
    def __init__(self, num_classes): ...
    def __call__(self, outputs, targets): ...

def metric_of_float(outputs, targets): return (outputs.argmax(1) == targets).float().mean().item()
def metric_of_scalar(outputs, targets): return (outputs.argmax(1) == targets).float().mean()
def metric_of_pairs(outputs, targets): return outputs
def metric_of_list(outputs, targets): return (outputs.argmax(1) == targets).tolist()
def metric_in_percent(outputs, targets): return 100.0 * (outputs.argmax(1) == targets)
def metric_negative(outputs, targets): return -functional.cross_entropy(outputs, targets, reduction="none")
def metric_nan(outputs, targets): return outputs[:, 0] * float("nan")
def metric_none(outputs, targets): return None
def metric_of_three(outputs, targets, weights): return outputs[:, 0]
def metric_raises(outputs, targets): raise ZeroDivisionError("no positives")

def augment_shorter(inputs, generator): return inputs[:, :, 1:]
def augment_none(inputs, generator): return None
def augment_alone(inputs): return inputs
def augment_double(inputs, generator): return inputs.double()
def augment_nan(inputs, generator): return inputs / 0 * 0

def half_trained(model, samples): return model
def no_optimizer(groups, lr): return "an optimizer"

class Undirected:
    higher_is_better = None
    def reset(self): ...
    def update(self, predictions, targets): ...
    def compute(self): return 0.5

class Figures(Undirected):
    higher_is_better = True
    def compute(self): return {"map": 0.5, "map_50": 0.7}

class NotFinite(Figures):
    def compute(self): return float("inf")

class UpdateRaises(Figures):
    def update(self, predictions, targets): raise KeyError("boxes")

class NoTask: ...

class Unfinished(Task): ...

class WithoutMetric(Task):
    def loss(self, outputs, targets): return functional.cross_entropy(outputs, targets)

class NeedsWidth(Classification):
    def __init__(self, width): ...

class InitRaises(Classification):
    def __init__(self): raise RuntimeError("no anchors")

class PredictRaises(Classification):
    def predict(self, outputs): raise ZeroDivisionError("no boxes")
    def metric(self): return Figures()

class Uncounted(Classification):
    def loss(self, outputs, targets): return functional.cross_entropy(outputs, targets, reduction="sum"), torch.ones(16)

class Evaluates(Classification):
    def evaluate(self, model, loader): return {"map": 0.5}

class EvaluatesLess(Classification):
    def evaluate(self, model, loader):
        inputs, targets = next(iter(loader))
        return {"metric": 0.5, "loss": 1.0, "num_samples": len(inputs) - 1}

class LosesKey(Classification):
    def unpack(self, batch): return batch["pixels"], batch["label"]

class Keyed(torch.utils.data.Dataset):
    def __init__(self, samples, change): self.samples, self.change = samples, change
    def __len__(self): return len(self.samples)
    def __getitem__(self, index):
        return self.change({"image": self.samples.inputs[index], "label": self.samples.targets[index]}, index)

def keyed(change=lambda one, index: one):
    whole = few()
    return {name: Keyed(part, change) for name, part in whole.named()}

def ragged():
    return keyed(lambda one, index: {**one, "image": one["image"][:, : 8 - index % 2]})

def vanished():
    def read(one, index):
        if index == 70: open("/nowhere/scan_70.png")
        return one
    return keyed(read)

COUNT = itertools.count()

def drawn():
    return keyed(lambda one, index: {**one, "image": one["image"] + next(COUNT)})

def score_of_one(group): return torch.zeros(group.size)
def score_short(group, statistics): return torch.zeros(1)
def score_none(group, statistics): return None
"""

Change = Callable[[dict[str, Any]], object]


def data(name: str) -> Change:
    return lambda s: s["data"].update(factory=f"wrong_code:{name}")


def model(name: str, **arguments: Any) -> Change:
    return lambda s: s["model"].update(factory=f"wrong_code:{name}", kwargs=arguments)


def training(section: str, name: str) -> Change:
    return lambda s: s["training"].update({section: name if ":" in name else f"wrong_code:{name}"})


def loss(name: str) -> Change:
    return training("loss", name)


def metric(name: str) -> Change:
    return training("metric", name)


def augment(name: str, **arguments: Any) -> Change:
    return lambda s: s["training"].update(augment={"function": f"wrong_code:{name}", "kwargs": arguments})


def key(name: str) -> Change:
    return lambda s: s["training"].update(metric_key=name)


def task(name: str, **arguments: Any) -> Change:
    def change(s: dict[str, Any]) -> None:
        s.update(task={"name": f"wrong_code:{name}", "kwargs": arguments}, training={**s["training"], **NO_NAMES})

    return change


NO_NAMES = {"loss": None, "metric": None}


def recipe(**changed: Any) -> Change:
    return lambda s: s["prune"]["recipes"][0].update(changed)


def prune(**changed: Any) -> Change:
    return lambda s: s["prune"].update(changed)


def profile(provider: str) -> Change:
    return lambda s: s["profile"].update(provider=provider, batch_sizes=[1])


def weights(name: str) -> Change:
    return lambda s: s["model"].update(weights=name)


def both(*changes: Change) -> Change:
    return lambda s: [change(s) for change in changes]


CASES: list[tuple[Change, str]] = [
    (data("nothing"), "returned a NoneType"),
    (data("no_classes"), "has no attribute 'classes'"),
    (data("targets_of_floats"), "targets of validation are [90] of torch.int64, those of train"),
    (data("targets_missing"), "test has no targets"),
    (data("targets_beyond"), "targets of test lie in [10, 19], expected [0, 9]"),
    (data("nan_inputs"), "1 of 270 inputs hold values that are not finite"),
    (data("byte_inputs"), "inputs are torch.uint8, expected torch.float32, torch.int64 or torch.bool"),
    (data("other_shape"), "inputs of test have shape [1, 8, 4], those of train [1, 8, 8]"),
    (data("fewer_targets"), "270 inputs for 269 targets"),
    (data("empty_split"), "there are no samples"),
    (data("one_class"), "expected at least two different names"),
    (data("numbered_classes"), "classes hold 0, expected names"),
    (data("raising"), "raised RuntimeError: the disk is gone"),
    (lambda s: s["data"].update(kwargs={"steps": 2}), "it takes: step, seed"),
    (model("model_class"), "returned a type; expected a module"),
    (model("model_none"), "returned a NoneType; expected a module"),
    (model("model_of_width"), "missing a required argument: 'width'"),
    (model("model_of_width", width=-3), "raised RuntimeError"),
    (model("model_of_width", width="8"), "raised TypeError"),
    (model("built_once"), "gives the same parameter"),
    (model("built_in_part"), "gives the same parameter '0."),
    (model("without_sizes"), "model[1] is a lazy layer that has not run, and so has no size yet"),
    (model("works_in_place"), "writes into its inputs"),
    (model("too_few"), "outputs of shape [16, 5], but the data have 10 classes"),
    (model("other_input"), "can't be run on inputs [16, 1, 8, 8] of float32"),
    (model("gives_none"), "returned a NoneType"),
    (model("gives_object"), "returned a SimpleNamespace"),
    (model("gives_classes"), "outputs [16] of int64"),
    (model("gives_map"), "outputs of shape [16, 10, 4]"),
    (model("gives_one_for_all"), "outputs of shape [1, 10] for 16 samples"),
    (model("gives_flat"), "outputs of shape [16], but"),
    (model("gives_nan"), "not finite"),
    (model("gives_detached"), "no gradient flows"),
    (model("forward_raises"), "KeyError: 'mask'"),
    (model("frozen"), "no parameter of the model is trained"),
    (model("without_parameters"), "no parameter of the model is trained"),
    (weights("own_project.py"), "is damaged"),
    (weights("other.pt"), "doesn't fit the model; missing"),
    (weights("pickled.pt"), "holds pickled objects"),
    (loss("loss_of_three"), "missing 1 required positional argument: 'mask'"),
    (loss("loss_of_one"), "takes 1 positional argument but 2 were given"),
    (loss("loss_unreduced"), "gave a tensor [16] of float32"),
    (loss("loss_summed"), "gave the sum over the samples"),
    (loss("loss_of_float"), "gave a float"),
    (loss("loss_of_numpy"), "gave a float32"),
    (loss("loss_none"), "gave a NoneType"),
    (loss("loss_of_pair"), "gave a tuple"),
    (loss("loss_nan"), "gave nan"),
    (loss("loss_detached"), "no gradient flows"),
    (loss("loss_constant"), "no gradient flows"),
    (loss("loss_whole"), "gave a tensor [] of int64"),
    (loss("loss_raises"), "raised IndexError: no such class"),
    (loss("loss_nan_gradient"), "its gradient is not finite"),
    (loss("loss_of_one_output"), "Using a target size"),
    (loss("NeedsClasses"), "is a class that can't be made without arguments"),
    (loss("torch.nn:Linear"), "is a class that can't be made without arguments"),
    (loss("torch.nn:BCEWithLogitsLoss"), "raised ValueError: Target size"),
    (loss("torch.nn.functional:relu"), "training.loss 'torch.nn.functional:relu'"),
    (metric("metric_of_float"), "gave a float for 16 samples; expected a tensor [16]: one value per sample"),
    (metric("metric_of_scalar"), "gave a tensor [] of float32 for 16 samples"),
    (metric("metric_of_pairs"), "gave a tensor [16, 10] of float32 for 16 samples"),
    (metric("metric_of_list"), "gave a list for 16 samples"),
    (metric("metric_in_percent"), "expected them in [0, 1]"),
    (metric("metric_negative"), "expected them in [0, 1]"),
    (metric("metric_nan"), "expected them in [0, 1]"),
    (metric("metric_none"), "gave a NoneType"),
    (metric("metric_of_three"), "missing 1 required positional argument: 'weights'"),
    (metric("metric_raises"), "raised ZeroDivisionError: no positives"),
    (metric("NeedsClasses"), "is a class that can't be made without arguments"),
    (augment("augment_shorter"), "gave a tensor [16, 1, 7, 8] of float32 for inputs [16, 1, 8, 8] of float32"),
    (augment("augment_none"), "gave a NoneType"),
    (augment("augment_alone"), "takes 1 positional argument but 2 were given"),
    (augment("augment_double"), "of float64 for inputs"),
    (augment("augment_nan"), "not finite"),
    (augment("augment_none", strength=3), "unexpected keyword argument 'strength'"),
    (lambda s: s["baseline"]["recipe"].update(distillation=0.5), "baseline.recipe distils, but there is no teacher"),
    (both(loss("good_loss"), recipe(label_smoothing=0.1)), "sets label_smoothing, which only the built-in"),
    (recipe(sparsity={"penalty": "group_lasso", "share": 0.9}), "can't be at zero"),
    (metric("Undirected"), "its higher_is_better is None; give it an attribute"),
    (metric("Figures"), "the metric Figures gives map, map_50, and none is chosen; set training.metric_key"),
    (both(metric("Figures"), key("map_75")), "the metric Figures gives map, map_50, and 'map_75' is none of them"),
    (metric("NotFinite"), "gave inf; expected a finite number"),
    (metric("UpdateRaises"), "raised KeyError: 'boxes'"),
    (task("NoTask"), "gave a NoTask; expected a subclass of secateur.Task"),
    (task("Unfinished"), "task.name 'wrong_code:Unfinished' defines no loss(outputs, targets)"),
    (task("WithoutMetric"), "task.name 'wrong_code:WithoutMetric' defines no metric()"),
    (task("NeedsWidth"), "missing a required argument: 'width'"),
    (task("InitRaises"), "raised RuntimeError: no anchors"),
    (task("Classification", width=3), "it takes"),
    (task("PredictRaises"), "raised ZeroDivisionError: no boxes"),
    (task("Uncounted"), "gave a tuple"),
    (task("Evaluates"), "gave a mapping of map"),
    (task("EvaluatesLess"), "saw 15 of 16 samples"),
    (both(data("keyed"), task("LosesKey")), "can't be unpacked (keys: image, label): KeyError: 'pixels'"),
    (data("ragged"), "can't be joined"),
    (data("vanished"), "sample 70: FileNotFoundError"),
    (data("drawn"), "gives other samples each time"),
    (recipe(optimizer="Adamm"), "prune.recipes[0].optimizer: unknown optimizer 'Adamm'; did you mean 'Adam'"),
    (recipe(optimizer="LBFGS"), "LBFGS evaluates the loss several times in a step"),
    (recipe(optimizer="Muon"), "recipe 'distil': optimizer 'Muon' can't be made"),
    (recipe(optimizer="RAdam", optimizer_kwargs={"beta": 0.9}), "unexpected keyword argument 'beta'"),
    (recipe(optimizer="RAdam", optimizer_kwargs={"lr": 0.9}), "optimizer_kwargs has lr or weight_decay; set"),
    (recipe(optimizer_kwargs={"eps": 0.1}), "optimizer_kwargs needs an optimizer that takes them"),
    (recipe(optimizer="wrong_code:Lion"), "unknown name in wrong_code 'Lion'"),
    (recipe(optimizer="wrong_code:no_optimizer"), "made a str; expected a torch.optim.Optimizer"),
    (recipe(optimizer="os:system"), "'os:system' is Python's own"),
    (recipe(schedule="StepLr2"), "unknown schedule 'StepLr2'; did you mean 'StepLR'"),
    (recipe(schedule="StepLR"), "schedule 'StepLR' can't be made"),
    (recipe(schedule="LambdaLR"), "LambdaLR is made of functions"),
    (recipe(schedule_kwargs={"step_size": 3}), "are for schedulers of torch's; cosine takes none"),
    (recipe(schedule="ReduceLROnPlateau"), "set schedule_interval to epoch"),
    (recipe(schedule="ExponentialLR", warmup_epochs=1.0), "ExponentialLR has its own"),
    (recipe(layer_rates={"layer9": 0.1}), "layer_rates: unknown module or parameter 'layer9'"),
    (recipe(steps=5, epochs=3), "epochs and steps are both given"),
    (recipe(gradient_accumulation=65), "gradient_accumulation (65) must be batch_size (32) at most"),
    (recipe(precision="fp8"), "unknown choice 'fp8'; did you mean 'fp32'"),
    (recipe(channels_last=True), "sets channels_last, which is for CUDA alone; run.device is 'cpu'"),
    (recipe(ema=1.0), "prune.recipes[0].ema: found 1.0"),
    (recipe(early_stopping={"patience": 0}), "early_stopping.patience: found 0"),
    (
        recipe(ema=0.9, sparsity={"penalty": "group_lasso", "share": 0.2}),
        "sparsity has to reach its end, and an average would fill its zeros",
    ),
    (both(recipe(ema=0.9), prune(undo_training=True)), "has ema or early_stopping, and prune.undo_training undoes"),
    (recipe(trainer="trained.py"), "expected an import string"),
    (recipe(trainer="wrong_code:nowhere"), "unknown name in wrong_code 'nowhere'"),
    (
        lambda s: s["baseline"].update(keep_epochs=[2], recipe={"early_stopping": {"patience": 1}}),
        "baseline.keep_epochs counts epochs, but baseline.recipe has steps, a trainer or early_stopping",
    ),
    (prune(ignore=["layer3.*"]), "prune.ignore"),
    (prune(allocation={"strategy": "scoped", "scopes": {"early": ["stem"]}}), "scopes['early']"),
    (prune(criterion="wrong_code:score_of_one"), "raised TypeError"),
    (prune(criterion="wrong_code:score_short"), "expected (16,): one score per channel"),
    (prune(criterion="wrong_code:score_none"), "gave a NoneType"),
    (lambda s: s["analyze"].update(criterion="wrong_code:score_short"), "one score per channel"),
    (profile("CUDAExecutionProvider"), "profile.provider: CUDAExecutionProvider can't be profiled"),
    (profile("CudaExecutionProvider"), "profile.provider: unknown execution provider 'CudaExecutionProvider'"),
    (profile("XnnpackExecutionProvider"), "profile.provider: this ONNX Runtime has no XnnpackExecutionProvider"),
    (model("branches_on_values"), "can't be exported to ONNX: GuardOnDataDependentSymNode"),
    (model("beyond_onnx"), "can't be exported to ONNX: DispatchError: No ONNX function found for"),
    (prune(target={"size_bytes": 10**9}), "prune.target.size_bytes is 1,000,000,000, but"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, project_writer: Callable[..., Path]) -> Path:
    """A project whose data are there."""
    root = tmp_path_factory.mktemp("prepared")
    (root / "wrong_code.py").write_text(WRONG_CODE, encoding="utf-8")
    torch.save({"other.weight": torch.zeros(3)}, root / "other.pt")
    torch.save({"model": object()}, root / "pickled.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        _prepare(project_writer(root))
    for name in ("wrong_code", "own_project"):
        sys.modules.pop(name, None)
    return root


def _prepare(params: Path) -> None:
    settings, workspace = load(params), Workspace(Path("artifacts"))
    prepare.prepare(settings, workspace)
    seal(workspace.folder(DATA), fingerprint(find_stage("prepare"), settings, workspace))


def _begin(params: Path, prepared: Data) -> None:
    """Do what a run does up to the baseline's training."""
    settings = load(params)
    if settings.data != prepared:
        _prepare(params)
    baseline.baseline(settings, Workspace(Path("artifacts")))


@pytest.fixture
def never_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*_: Any, **__: Any) -> None:
        raise AssertionError("training has begun")

    monkeypatch.setattr(baseline, "train", trained)


@pytest.mark.parametrize(("change", "text"), CASES, ids=[f"{n}-{case[1][:30]}" for n, case in enumerate(CASES)])
@pytest.mark.usefixtures("never_trained")
def test_one_message_before_anything_is_trained(
    prepared: Path,
    project_writer: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    text: str,
) -> None:
    monkeypatch.chdir(prepared)
    before = load(project_writer(prepared)).data
    start = time.process_time()
    with pytest.raises(SecateurError) as caught:
        _begin(project_writer(prepared, change), before)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - start < LONGEST_S
    assert not (prepared / "artifacts" / "baseline").exists()


def test_there_are_sixty_of_them() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize(
    "change",
    [
        lambda s: None,
        loss("torch.nn:CrossEntropyLoss"),
        loss("good_loss"),
        model("model_of_width", width=8),
    ],
    ids=["plain", "class", "own", "width"],
)
@pytest.mark.usefixtures("never_trained")
def test_what_is_right_is_trained(
    prepared: Path,
    project_writer: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    never_trained: None,
    change: Change,
) -> None:
    monkeypatch.chdir(prepared)
    shutil.rmtree(prepared / "artifacts" / "baseline", ignore_errors=True)
    with pytest.raises(AssertionError, match="training has begun"):
        baseline.baseline(load(project_writer(prepared, change)), Workspace(Path("artifacts")))
