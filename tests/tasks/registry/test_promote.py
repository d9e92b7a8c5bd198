"""Promotion and rollback on a registry as it is; what they decide is read from MLflow and from the file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pruning.errors import WorkspaceError
from tasks.config.schema import Promote
from tasks.registry import decisions, mlflow_models, promote
from tasks.registry.promote import Case, examine
from tasks.reporting.tables import Summary
from tasks.reporting.verdict import Figures, judge
from tasks.workspace import deciding

pytestmark = pytest.mark.thorough


def figures(**changes: Any) -> Figures:
    parts = {"score": 0.9, "macs": 1000, "size_bytes": 4000, "parity": 1.0, "answer_difference": 0.0}
    return Figures(**{**parts, "latencies_ms": {1: 1.0, 8: 4.0}, **changes})


def failed(**changes: Any) -> list[str]:
    return [gate.name for gate in judge(figures(**changes), figures(), Promote()) if not gate.passed]


def test_equal_candidate_passes_every_gate() -> None:
    assert failed() == []


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"score": 0.8949}, "accuracy"),
        ({"parity": 0.99}, "parity"),
        ({"macs": 1001}, "MACs"),
        ({"size_bytes": 4001}, "size"),
        ({"latencies_ms": {1: 1.0, 8: 4.41}}, "latency, batch 8"),
        ({"answer_difference": 2e-4}, "answers"),
    ],
)
def test_each_gate_refuses_alone_and_shows_both_figures(changes: dict[str, Any], gate: str) -> None:
    assert failed(**changes) == [gate]
    (found,) = [one for one in judge(figures(**changes), figures(), Promote()) if one.name == gate]
    assert found.candidate != found.reference
    assert found.reason.startswith(f"{gate}: candidate {found.shown[0]}, reference {found.shown[1]}, expected at ")


def test_limit_itself_passes() -> None:
    assert failed(score=0.895, latencies_ms={1: 1.1, 8: 4.4}) == []


def decide(shop: Any) -> Case:
    """Do what the flow does."""
    case = examine(shop.settings, shop.workspace)
    assert case is not None
    if case.reasons:
        promote.refuse(shop.settings, case)
    else:
        promote.promote(shop.settings, case)
    return case


def second_version(shop: Any) -> None:
    shop.same_model_again()
    assert shop.register() == "2"


def number(shop: Any, alias: str) -> str | None:
    found = mlflow_models.at(shop.settings, alias)
    return found.number if found else None


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("promotions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_first_is_compared_with_its_own_baseline_the_second_with_the_first(shop: Any) -> None:
    first = decide(shop)
    assert (first.instead_of, first.reasons) == (None, ())
    macs = next(gate for gate in first.gates if gate.name == "MACs")
    summary = shop.workspace.read_json("report", "summary.json", "report", Summary)
    assert (macs.candidate, macs.reference) == (summary["dense"]["macs"], summary["baseline"]["macs"])
    accuracy = next(gate for gate in first.gates if gate.name == "accuracy")
    assert (accuracy.candidate, accuracy.reference) == tuple(summary[n]["score"] for n in ("dense", "baseline"))
    assert (number(shop, "production"), number(shop, "previous")) == ("1", None)
    assert examine(shop.settings, shop.workspace) is None

    second_version(shop)
    second = decide(shop)
    assert second.instead_of == "1"
    assert {gate.name: gate.candidate == gate.reference for gate in second.gates}["accuracy"]
    assert (number(shop, "production"), number(shop, "previous")) == ("2", "1")
    assert [(line["decision"], line["version"], line["instead_of"]) for line in lines()] == [
        ("promoted", "1", None),
        ("promoted", "2", "1"),
    ]
    assert len(lines()[1]["gates"]) == 7


def test_worse_candidate_stays_out_with_each_reason_as_a_tag(shop: Any) -> None:
    decide(shop)
    shop.whole_model()
    assert shop.register() == "2"
    case = decide(shop)
    assert {reason.partition(":")[0] for reason in case.reasons} >= {"MACs", "size"}
    assert number(shop, "production") == "1"
    tags = mlflow_models.find(shop.settings, number="2").tags
    assert [tags[f"secateur.refused.{n}"] for n in range(1, len(case.reasons) + 1)] == list(case.reasons)
    assert lines()[-1]["reasons"] == list(case.reasons)
    shop.change(lambda s: s["promote"].update(max_macs_increase=9.0, max_size_increase=9.0))
    decide(shop)
    assert number(shop, "production") == "2"
    assert not [key for key in mlflow_models.find(shop.settings, number="2").tags if key.startswith("secateur.refused")]


def test_file_that_computes_something_else_stays_out(shop: Any) -> None:
    folder = shop.workspace.folder("onnx")
    (folder / "model.onnx").unlink()
    shutil.copyfile(folder / "baseline.onnx", folder / "model.onnx")
    shop.seal("export")
    assert shop.register() == "2"
    case = decide(shop)
    assert [reason.partition(":")[0] for reason in case.reasons] == ["parity"]
    assert number(shop, "production") is None


def test_nothing_to_promote_is_one_message(shop: Any) -> None:
    mlflow_models.withdraw(shop.settings, "candidate")
    with pytest.raises(WorkspaceError, match=r"no version with the alias 'candidate'; there are: 1"):
        examine(shop.settings, shop.workspace)


def test_two_at_the_same_time_one_wins_and_the_other_says_so(shop: Any) -> None:
    with deciding(), pytest.raises(WorkspaceError, match="another promotion or rollback is at work"), deciding():
        pass
    one, other = examine(shop.settings, shop.workspace), examine(shop.settings, shop.workspace)
    assert one is not None
    assert other is not None
    promote.promote(shop.settings, one)
    with pytest.raises(WorkspaceError, match=r"changed from version none to 1 .* another promotion won"):
        promote.promote(shop.settings, other)
    assert len(lines()) == 1


def test_rollback_puts_previous_back_and_a_schedule_does_not_undo_it(shop: Any) -> None:
    with pytest.raises(WorkspaceError, match="has no version 99; there are: 1"):
        promote.roll_back(shop.settings, "99")
    decide(shop)
    with pytest.raises(WorkspaceError, match="no version is `previous`"):
        promote.roll_back(shop.settings)
    second_version(shop)
    decide(shop)
    promote.roll_back(shop.settings)
    assert (number(shop, "production"), number(shop, "previous")) == ("1", None)
    case = decide(shop)
    assert (number(shop, "production"), case.gates) == ("1", ())
    assert "rolled back" in case.reasons[0]
    promote.roll_back(shop.settings, "2")
    assert number(shop, "production") == "2"
    assert "secateur.rolled_back" not in mlflow_models.find(shop.settings, number="2").tags
    assert [line["decision"] for line in lines()] == ["promoted", "promoted", "rolled back", "refused", "rolled back"]
    with pytest.raises(WorkspaceError, match="in production already"):
        promote.roll_back(shop.settings, "2")


def test_line_that_a_kill_left_out_is_added_by_the_next_decision(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = examine(shop.settings, shop.workspace)
    assert case is not None

    def die(decision: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promote, "write_down", die)
        with pytest.raises(KeyboardInterrupt):
            promote.promote(shop.settings, case)
    assert not decisions.FILE.exists()
    assert examine(shop.settings, shop.workspace) is None
    assert [(line["decision"], line["version"]) for line in lines()] == [("promoted", "1")]


def test_figures_that_a_person_was_asked_about_are_kept_for_that_run_alone(shop: Any) -> None:
    case = examine(shop.settings, shop.workspace)
    assert case is not None
    promote.keep_waiting(shop.settings, case, "a run")
    second_version(shop)
    assert number(shop, "candidate") == "2"
    assert promote.waited_for(shop.settings, "a run") == case
    assert promote.waited_for(shop.settings, "another run") is None
    assert promote.waited_for(shop.settings, None) is None
