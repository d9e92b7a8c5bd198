"""The table of the curves is opened in spreadsheets."""

from __future__ import annotations

import csv
import io

import pytest

from pruning.allocation.sensitivity import Curve, Point
from tasks.stages.analyze import _table


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        *(("+1", "'+1"), ("-1", "'-1"), ("@SUM(A1)", "'@SUM(A1)"), (" =1", "' =1"), ("\t=1", "_=1"), ("\r=1", "_=1")),
    ],
)
def test_name_of_a_group_is_no_formula(name: str, cell: str) -> None:
    point = Point(rate=0.5, removed=1, score=0.5, loss=1.0)
    curves = [
        Curve(group=g, measured_with=(g,), size=2, baseline_score=1, baseline_loss=0, points=(point,))
        for g in (name, "a")
    ]
    _, first, second = csv.reader(io.StringIO(_table(tuple(curves))))
    assert (first[0], second[0]) == (cell, "a")
