"""Metrics on ragged batches equal one pass over the whole, and scikit-learn's where it has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, jaccard_score, r2_score
from torch import Tensor, nn

from pruning.errors import ModelError, SettingsError
from pruning.evaluation import evaluate
from pruning.metrics import (
    CoefficientOfDetermination,
    MacroF1,
    MeanIoU,
    Measure,
    MultiLabelF1,
    PeakSignalToNoiseRatio,
    Perplexity,
    RootMeanSquaredError,
    StatefulMetric,
    ValidAccuracy,
    measure_of,
    score_of,
)
from pruning.scoring import MeanOf, Scorer

N = 509  # a prime, in batches of 7
GENERATOR = torch.Generator().manual_seed(0)
LOGITS, CLASSES = torch.randn(N, 5, generator=GENERATOR), torch.randint(5, (N,), generator=GENERATOR)
PIXELS, MASKS = torch.randn(N, 4, 3, 3, generator=GENERATOR), torch.randint(4, (N, 3, 3), generator=GENERATOR)
MASKS[:, 0] = -100
FLAGS = torch.randint(2, (N, 5), generator=GENERATOR)
VALUES = torch.randn(N, 2, generator=GENERATOR)
GUESSES = VALUES + 0.3 * torch.randn(N, 2, generator=GENERATOR)


def valid(found: Tensor, wanted: Tensor) -> tuple[Any, Any]:
    counted = wanted != -100
    return wanted[counted].numpy(), found[counted].numpy()


def perplexity(logits: Tensor, targets: Tensor) -> float:
    return math.exp(nn.functional.cross_entropy(logits.double(), targets).item())


CASES: list[tuple[StatefulMetric, Tensor, Tensor, Callable[[], float]]] = [
    (MacroF1(), LOGITS, CLASSES, lambda: f1_score(CLASSES, LOGITS.argmax(1), average="macro")),
    (MeanIoU(), PIXELS.argmax(1), MASKS, lambda: jaccard_score(*valid(PIXELS.argmax(1), MASKS), average="macro")),
    (ValidAccuracy(), PIXELS, MASKS, lambda: accuracy_score(*valid(PIXELS.argmax(1), MASKS))),
    (MultiLabelF1(), LOGITS, FLAGS, lambda: f1_score(FLAGS, LOGITS > 0, average="macro")),
    (RootMeanSquaredError(), GUESSES, VALUES, lambda: math.sqrt((GUESSES - VALUES).double().square().mean())),
    (CoefficientOfDetermination(), GUESSES, VALUES, lambda: r2_score(VALUES, GUESSES)),
    (
        PeakSignalToNoiseRatio(2.0),
        GUESSES,
        VALUES,
        lambda: 10 * math.log10(4 / (GUESSES - VALUES).double().square().mean()),
    ),
    (Perplexity(), PIXELS, MASKS, lambda: perplexity(PIXELS, MASKS)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: type(case[0]).__name__)
@pytest.mark.parametrize("size", [7, 64, N])
def test_batches_of_any_size_give_what_the_whole_gives(case: Any, size: int) -> None:
    metric, predictions, targets, expected = case
    metric.reset()
    for found, wanted in zip(predictions.split(size), targets.split(size), strict=True):
        metric.update(found, wanted)
    assert score_of(metric) == pytest.approx(float(expected()), rel=1e-6)


def test_a_class_that_occurs_in_a_late_batch_alone_is_counted() -> None:
    metric = MeanIoU()
    metric.update(torch.tensor([0, 0]), torch.tensor([0, 0]))
    metric.update(torch.tensor([0, 3]), torch.tensor([3, 3]))
    assert metric.compute() == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_metric_that_has_seen_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match="RootMeanSquaredError has seen no batch"):
        score_of(RootMeanSquaredError())


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ({"map": 0.5, "map_50": 0.7}, "gives map, map_50, and none is chosen; set training.metric_key"),
        (torch.zeros(3), r"gave a tensor \[3\]; expected one number"),
        (float("nan"), "gave nan; expected a finite number"),
        ("good", "gave a str; expected one number"),
    ],
)
def test_what_is_no_figure_is_refused(figure: object, message: str) -> None:
    class Odd(MeanOf):
        def compute(self) -> Any:
            return figure

    with pytest.raises(ModelError, match=message):
        score_of(Odd(lambda outputs, _: outputs))


def test_one_of_several_figures_is_chosen_by_name() -> None:
    class Several(MeanOf):
        def compute(self) -> Any:
            return {"map": torch.tensor(0.5), "map_50": 0.7}

    assert score_of(Several(lambda outputs, _: outputs), "map") == 0.5


class Theirs:
    """As torchmetrics has them."""

    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    higher_is_better: bool | None = True

    def update(self, predictions: Any, targets: Any) -> None: ...

    def compute(self) -> float:
        return 0.5

    def reset(self) -> None: ...


def test_how_a_score_is_read_comes_from_the_metric() -> None:
    def exact_match(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs == targets).float()

    assert measure_of(exact_match) == Measure("exact match")
    assert measure_of(Theirs()) == Measure("Theirs")
    assert measure_of(RootMeanSquaredError()) == Measure("RMSE", higher_is_better=False, is_share=False)


def test_a_metric_that_does_not_say_which_way_is_up_is_refused() -> None:
    metric = Theirs()
    metric.higher_is_better = None
    with pytest.raises(SettingsError, match="higher_is_better is None; give it an attribute"):
        measure_of(metric, "training.metric 'my:metric'")


def test_a_score_is_written_in_its_unit() -> None:
    accuracy, error = Measure("accuracy"), Measure("RMSE", higher_is_better=False, is_share=False)
    assert (accuracy.show(0.9512), error.show(1.92601)) == ("95.12%", "1.926")
    assert (accuracy.show_change(-0.01), error.show_change(0.25)) == ("-1.00 points", "+0.25")
    assert [accuracy.gain(0.9, 0.8), error.gain(2.0, 1.5)] == pytest.approx([-0.1, 0.5])
    assert [accuracy.worse_by(0.9, 0.1), error.worse_by(2.0, 0.5)] == pytest.approx([0.8, 2.5])


@pytest.mark.parametrize("size", [7, N])
def test_metrics_of_torchmetrics_are_taken_as_they_are(size: int) -> None:
    theirs = pytest.importorskip("torchmetrics").classification
    flags = LOGITS.argsort(1) < 2
    cases: list[tuple[Any, Tensor, str | None, float]] = [
        (theirs.MulticlassF1Score(5), CLASSES, None, f1_score(CLASSES, LOGITS.argmax(1), average="macro")),
        (
            theirs.MultilabelAveragePrecision(5),
            FLAGS,
            None,
            average_precision_score(FLAGS, LOGITS.sigmoid(), average="macro"),
        ),
        (
            pytest.importorskip("torchmetrics").MetricCollection(
                {"f1": theirs.MultilabelF1Score(5), "map": theirs.MultilabelAveragePrecision(5)}
            ),
            flags,
            "map",
            average_precision_score(flags, LOGITS.sigmoid(), average="macro"),
        ),
    ]
    for metric, targets, key, expected in cases:
        scorer = Scorer(metric, lambda outputs: outputs, key)
        assert scorer.measure("my metric").higher_is_better
        assert scorer.measure("my metric").is_share
        samples = SimpleNamespace(inputs=LOGITS, targets=targets)
        found = evaluate(nn.Identity(), samples, loss=lambda *_: torch.zeros(()), metric=scorer, batch_size=size)
        assert found.score == pytest.approx(float(expected), abs=1e-6)


def test_figures_of_one_metric_have_names_of_their_own() -> None:
    """Or a promotion would compare one with the other."""
    metric = SimpleNamespace(update=print, compute=dict, reset=print, higher_is_better=True, name="box score")
    names = [Scorer(metric, lambda outputs: outputs, key).measure("it").name for key in (None, "map_50", "Box score")]
    assert names == ["box score", "box score map 50", "box score"]


def test_a_collection_without_a_key_is_refused() -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    collection = torchmetrics.MetricCollection({"f1": torchmetrics.classification.MulticlassF1Score(5)})
    with pytest.raises(SettingsError, match="higher_is_better is None"):
        Scorer(collection, lambda outputs: outputs).measure("training.metric 'my:metric'")
