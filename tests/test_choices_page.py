"""docs/choices.md names every criterion and every value of the settings that it explains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from pruning.importance import criterion_names
from tasks.config.target_schema import Allocation, Kind, Recover, Start

PAGE = (Path(__file__).parent.parent / "docs" / "choices.md").read_text(encoding="utf-8")


def _values(section: type[Any], name: str) -> tuple[str, ...]:
    return get_args(section.model_fields[name].annotation)


@pytest.mark.parametrize(
    "name",
    [
        *criterion_names(),
        *_values(Allocation, "strategy"),
        *_values(Recover, "method"),
        *_values(Start, "weights"),
        *get_args(Kind),
    ],
)
def test_the_page_explains(name: str) -> None:
    assert f"`{name}`" in PAGE or name == "none"
