from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pruning.allocation.sensitivity import Curve, Point
from tasks.loop.ledger import Ledger, Row
from tasks.models import ModelMetrics
from tasks.reporting.plots import as_png, as_svg, draw_attempts, draw_curves, draw_sensitivity, draw_widths


def curve(name: str, loss: float = 0.1) -> Curve:
    points = tuple(
        Point(rate=rate, removed=round(rate * 64), score=0.9 - loss * rate, loss=1 + rate) for rate in (0.25, 0.5)
    )
    return Curve(group=name, measured_with=(name,), size=64, baseline_score=0.9, baseline_loss=1.0, points=points)


def ledger(verdicts: str) -> Ledger:
    def measured(step: int) -> ModelMetrics:
        return ModelMetrics(score=0.9 - 0.01 * step, loss=1, macs=10**6 // (step + 1), parameters=9, size_bytes=36)

    rows = [
        Row(attempt=i, goal=0.1 * i, reached=0.1 * i, accepted=v == "a", measured=None if v == "n" else measured(i + 1))
        for i, v in enumerate(verdicts)
    ]
    return Ledger(Path(), "f", measured(0), rows)


def test_labels_of_many_groups_do_not_overlap() -> None:
    curves = [curve(f"features.stage{index // 10}.block{index % 10}.expansion.weight:0") for index in range(90)]
    figure = draw_sensitivity(curves, 0.9)
    assert_apart(figure, figure.axes[0], 90)


def test_labels_of_many_layers_do_not_overlap() -> None:
    figure = draw_widths([(f"features.{index}.convolution", 64, 64 - index) for index in range(60)])
    assert_apart(figure, figure.axes[0], 60)


def assert_apart(figure: Figure, axes: Axes, count: int) -> None:
    """Assert that every label is there, inside the picture, and covers no other."""
    figure.canvas.draw()
    labels = [label for label in axes.get_yticklabels() if label.get_text()]
    assert len(labels) == count
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 + 0.5 for below, above in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)


def test_rejected_attempts_are_marked_and_those_without_a_plan_left_out() -> None:
    figure = draw_attempts(ledger("aran"), floor=0.85)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"baseline", "accepted", "rejected", "floor"}
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "2", "3"]


def test_run_without_any_attempt_or_group_can_be_drawn() -> None:
    for figure in (draw_attempts(ledger(""), 0.85), draw_curves([], 0.9), draw_sensitivity([], 0.9), draw_widths([])):
        assert as_png(figure).startswith(b"\x89PNG")


def test_same_figure_gives_the_same_bytes() -> None:
    first, second = (as_png(draw_sensitivity([curve("a"), curve("b", 0.5)], 0.9)) for _ in range(2))
    assert first == second
    assert first != as_png(draw_sensitivity([curve("a"), curve("b", 0.6)], 0.9))


def test_curves_that_fall_are_named_the_worst_first() -> None:
    figure = draw_curves([curve("flat", 0.01), curve("steep", 0.8), curve("middling", 0.4), curve("good", -0.1)], 0.9)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["steep (-40.0)", "middling (-20.0)"]


def test_cells_that_were_not_measured_are_marked() -> None:
    whole, part = curve("a"), curve("b")
    for curves, marked in (
        ([whole, part], False),
        ([whole, part.model_copy(update={"points": part.points[:1]})], True),
    ):
        legend = draw_sensitivity(curves, 0.9).axes[0].get_legend()
        assert (legend is not None) is marked


def test_pictures_take_the_colours_of_the_page_and_come_alone() -> None:
    figure = draw_attempts(ledger("ar"), 0.85)
    drawn = as_svg(figure)
    assert drawn == as_svg(draw_attempts(ledger("ar"), 0.85))
    assert drawn.startswith("<svg")
    assert "http" not in drawn
    for colour in ("var(--ink)", "var(--good)", "var(--bad)"):
        assert colour in drawn
    assert not re.search("#000000|#ffffff", drawn)
