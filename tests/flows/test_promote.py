"""Promotion, rollback and restore as commands: what they print, and with which code they end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import promote, restore, rollback
from flows.compress import compress
from tasks.config.schema import Promote
from tasks.registry import mlflow_models
from tasks.workspace import deciding


def ended(capsys: Any, command: Callable[[list[str]], None], *arguments: str) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it printed."""
    capsys.readouterr()
    logging.getLogger("secateur").handlers.clear()  # a command is the only one of its process; here several follow
    try:
        command(list(arguments))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed.out, printed.err


def production(shop: Any) -> str | None:
    found = mlflow_models.at(shop.settings, "production")
    return found.number if found else None


@pytest.mark.thorough
def test_promoted_refused_rolled_back_and_restored(shop: Any, capsys: Any) -> None:
    code, out, _ = ended(capsys, promote.main)
    assert (code, production(shop)) == (0, "1")
    assert "against its own baseline" in out
    for gate in ("accuracy", "parity", "MACs", "size", "latency, batch 1", "latency, batch 4", "answers"):
        assert gate in out
    assert "FAILED" not in out
    assert ended(capsys, promote.main)[0] == 0

    shop.whole_model()
    assert shop.register() == "2"
    code, out, err = ended(capsys, promote.main)
    assert (code, production(shop)) == (1, "1")
    assert out.count("FAILED") >= 2
    assert "version 2 stays out of production: MACs: candidate" in err

    code, _, err = ended(capsys, rollback.main)
    assert code == 2
    assert "no version is `previous`" in err
    assert (ended(capsys, rollback.main, "--version", "2")[0], production(shop)) == (0, "2")

    code, _, err = ended(capsys, restore.main, "--alias", "production", "--into", "back")
    assert code == 0
    assert "every hash is as recorded" in err
    assert Path("back/artifacts/onnx/model.onnx").read_bytes() == Path("artifacts/onnx/model.onnx").read_bytes()
    assert ended(capsys, restore.main, "--version", "1", "--into", "back")[0] == 2


@pytest.mark.thorough
def test_a_persons_yes_is_asked_for_after_the_figures(shop: Any, capsys: Any) -> None:
    shop.change(lambda s: s["promote"].update(require_approval=True))
    code, out, err = ended(capsys, promote.main)
    assert (code, production(shop)) == (2, None)
    assert "answers" in out
    assert "--approve" in err
    assert not Path("promotions.jsonl").exists()
    assert (ended(capsys, promote.main, "--approve")[0], production(shop)) == (0, "1")
    assert '"approved":"command line"' in Path("promotions.jsonl").read_text(encoding="utf-8")


def test_second_promotion_at_the_same_time_is_one_message(shop: Any, capsys: Any) -> None:
    with deciding():
        code, _, err = ended(capsys, promote.main)
    assert (code, production(shop)) == (2, None)
    assert "another promotion or rollback is at work here" in err


@pytest.mark.slow
def test_model_that_deserves_it_passes_the_default_gates(write_params: Any, capsys: Any) -> None:
    """A net wide enough that the narrowed one gains time, as any that is worth narrowing."""
    gates = Promote().model_dump()

    def change(settings: dict[str, Any]) -> None:
        settings["data"]["kwargs"] = {"step": 1}  # one test scan of 359 is less than the gate lets go
        settings["model"]["kwargs"] = {"width": 64}
        settings["analyze"]["rates"] = [0.5]
        settings["prune"].update(target={"mac_reduction": 0.5}, iterations=1, max_accuracy_drop=0.005)
        settings["prune"]["recipes"] = [settings["prune"]["recipes"][0] | {"epochs": 6}]
        settings["benchmark"].update(batch_sizes=[1, 32], rounds=50)
        settings["promote"] = gates

    write_params(change)
    compress("params.yaml", "artifacts", False)
    code, out, _ = ended(capsys, promote.main)
    assert code == 0, out
    assert "FAILED" not in out
    assert "latency, batch 32" in out
    shown = json.loads(Path("promotions.jsonl").read_text(encoding="utf-8"))
    assert (shown["decision"], shown["version"]) == ("promoted", "1")
