"""The terms of the contest: data, baselines, budget; and what is measured of an entry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.contest.networks import NETWORKS, Network, data_of
from pruning.batches import Samples
from pruning.evaluation import TensorSamples, evaluate
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune
from zoo.datasets.splits import Splits


@dataclass(frozen=True)
class Terms:
    """What holds for all entries.

    Attributes:
        num_samples: Training images.
        baseline_epochs: Of each seed's baseline.
        epochs: Of fine-tuning, for every entry; 0: nothing is trained.
        calibration: Training images, without their labels, that recovery without training may look at.
        statistics: Training images that a criterion may look at.
        cache: Folder of the baselines.
        network: One of `NETWORKS`.
        dataset: See `data_of`.
        folder: Where the data lie that aren't made.
        num_test: Test images.
    """

    num_samples: int
    baseline_epochs: int
    epochs: int
    calibration: int
    statistics: int
    cache: Path
    network: str = "resnet20"
    dataset: str = "glyphs"
    folder: Path | None = None
    num_test: int = 1240

    @cached_property
    def data(self) -> Splits:
        """As many samples as the terms say; 620 for validation."""
        return data_of(self.dataset, self.num_samples, 620, self.num_test, self.folder)

    @property
    def kind(self) -> Network:
        """The network's row."""
        return NETWORKS[self.network]

    def make_model(self) -> nn.Module:
        """Build the network, with weights from the global seed."""
        return self.kind.make(self.data.input_shape, self.data.num_classes)

    def baseline(self, seed: int) -> nn.Module:
        """Train the network, or load what was trained on these terms before."""
        torch.manual_seed(seed)
        model = self.make_model()
        what = f"{self.network}-{self.dataset.replace(' ', '_')}"
        place = self.cache / f"{what}-{self.num_samples}-{self.baseline_epochs}-{seed}.safetensors"
        if place.exists():
            model.load_state_dict(load_file(place))
            return model.eval()
        finetune(model, self.data.train, self.kind.recipe(self.baseline_epochs), seed=seed)
        self.cache.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_suffix(".unfinished")
        save_file(model.state_dict(), unfinished)
        unfinished.replace(place)
        return model.eval()

    @property
    def recipe(self) -> Recipe:
        """How every entry is fine-tuned that doesn't bring a recipe of its own."""
        if self.kind.recipe(1).optimizer == "sgd":
            return Recipe(name="plain", epochs=self.epochs, learning_rate=0.02, optimizer="sgd")
        return Recipe(name="plain", epochs=self.epochs, learning_rate=5e-4, optimizer="adamw", gradient_clip=1.0)

    @property
    def seen(self) -> TensorSamples:
        """What criteria may look at."""
        return self.data.train.take(torch.arange(min(self.statistics, self.num_samples)))

    @property
    def unlabelled(self) -> Tensor:
        """What recovery without training may look at."""
        seen: Tensor = self.data.train.inputs[: self.calibration]
        return seen


@dataclass
class Pruned:
    """What an entry hands over.

    Attributes:
        model: Narrowed, and recovered without training.
        narrowed: What it was before any recovery.
        recipe: How it is to be fine-tuned; None for that of the terms.
        teacher: What it learns from, where the recipe distils.
        note: What else is to be known.
    """

    model: nn.Module
    narrowed: nn.Module
    recipe: Recipe | None = None
    teacher: nn.Module | None = None
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """Somebody's way to prune.

    Attributes:
        tool: Whose.
        name: Of the criterion, or the whole way.
        prune: (terms, baseline, seed, share of the MACs to remove) -> what comes out.
    """

    tool: str
    name: str
    prune: Callable[[Terms, nn.Module, int, float], Pruned]


@dataclass
class Result:
    """What one entry reached once.

    Attributes:
        tool: See `Entry`.
        name: See `Entry`.
        network: See `Terms`.
        dataset: See `Terms`.
        seed: Of baseline, fine-tuning and whatever draws.
        target: Share of the MACs to remove.
        macs_removed: What was removed.
        baseline: Accuracy of the seed's baseline on the test split.
        narrowed: Accuracy straight after narrowing.
        recovered: Accuracy after recovery without training.
        tuned: Accuracy on the test split after fine-tuning.
        curve: Accuracy on the validation split after each epoch, before the first one in front.
        baseline_validation: The baseline's accuracy on the validation split.
        seconds_choose: Time to choose, narrow and recover without training.
        seconds_tune: Time to fine-tune.
        note: See `Pruned`.
        fault: Why there is no result.
    """

    tool: str
    name: str
    seed: int
    target: float
    macs_removed: float = float("nan")
    baseline: float = float("nan")
    narrowed: float = float("nan")
    recovered: float = float("nan")
    tuned: float = float("nan")
    curve: list[float] = field(default_factory=list)
    network: str = "resnet20"
    dataset: str = "glyphs"
    baseline_validation: float = float("nan")
    seconds_choose: float = float("nan")
    seconds_tune: float = float("nan")
    note: str = ""
    fault: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)


def accuracy(model: nn.Module, samples: Samples) -> float:
    """Share of the samples that are classified right."""
    return evaluate(model, samples, batch_size=256).score


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


_ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
"""What PyTorch's counter leaves out, by the formula that it has for CUDA."""


def macs(model: nn.Module, terms: Terms) -> float:
    """Multiply-accumulates of one image, by PyTorch's own counter, so that no tool counts for itself."""
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter, torch.no_grad():
        model.eval()(terms.data.test.inputs[:1])
    return float(counter.get_total_flops()) / 2


def enter(entry: Entry, terms: Terms, seed: int, target: float) -> Result:
    """Let an entry prune, fine-tune the outcome, measure."""
    baseline = terms.baseline(seed)
    test, validation = terms.data.test, terms.data.validation
    result = Result(entry.tool, entry.name, seed, target, network=terms.network, dataset=terms.dataset)
    result.baseline, result.baseline_validation = _of_baseline(terms, seed)
    try:
        with _seconds(result, "seconds_choose"):
            pruned = entry.prune(terms, baseline, seed, target)
    except Exception as fault:  # noqa: BLE001 - whatever a tool raises belongs in its row
        result.fault = f"{type(fault).__name__}: {str(fault).splitlines()[0][:200] if str(fault) else ''}"
        return result
    model = pruned.model
    result.note, result.narrowed = pruned.note, accuracy(pruned.narrowed, test)
    result.macs_removed = 1 - macs(model, terms) / macs(baseline, terms)
    result.recovered = accuracy(model, test)
    result.curve.append(accuracy(model, validation))
    if not terms.epochs:
        return result

    def after_step(step: int, steps: int, _rate: float) -> None:
        recipe = pruned.recipe or terms.recipe
        if step % (steps // recipe.epochs) == 0:
            result.curve.append(accuracy(model, validation))

    with _seconds(result, "seconds_tune"):
        finetune(
            model,
            terms.data.train,
            pruned.recipe or terms.recipe,
            seed=seed,
            teacher=pruned.teacher,
            callbacks=Callbacks(after_step=after_step),
        )
    result.tuned = accuracy(model, test)
    return result


@cache
def _of_baseline(terms: Terms, seed: int) -> tuple[float, float]:
    """Accuracy of a baseline on the test and the validation split."""
    baseline = terms.baseline(seed)
    return accuracy(baseline, terms.data.test), accuracy(baseline, terms.data.validation)


@contextmanager
def _seconds(result: Result, name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    setattr(result, name, time.perf_counter() - begin)
