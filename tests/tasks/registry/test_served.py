"""Versions with a float and a quantised file: which one is served, what promotion compares, what a restore brings."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
import pytest

from tasks.registry import mlflow_models, promote
from tasks.registry.promote import Case, examine
from tasks.registry.restore import restore
from tasks.registry.served import DENSE, choose_served, file_of, served_in, why_not_quantized
from tasks.registry.trust import fetch_served
from tasks.reporting import quantized
from tasks.stages.benchmark import QUANTIZED
from tests.shop import Shop


def quantize(shop: Shop, **chosen: Any) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings["quantize"] = {"profile": "cpu", **chosen}
        settings["promote"]["serve_quantized"] = True

    shop.change(change)
    shop.run()


def fast(monkeypatch: pytest.MonkeyPatch, slower: bool = False) -> None:
    """So small a network gains nothing from integers, and the clock is noisy: the comparison is told what it found."""
    monkeypatch.setattr(quantized, "is_slower", lambda *_: slower)


def case_of(shop: Shop) -> Case:
    found = examine(shop.settings, shop.workspace)
    assert found is not None
    return found


def test_a_version_serves_the_quantised_file_and_holds_both(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fast(monkeypatch)
    quantize(shop)
    assert choose_served(shop.settings, shop.workspace) == QUANTIZED
    assert shop.register() == "2", "another file, so another version"
    version = mlflow_models.find(shop.settings, number="2")
    assert version.tags[mlflow_models.SERVED] == QUANTIZED
    served = file_of(shop.workspace, QUANTIZED)
    assert version.tags[mlflow_models.ONNX_HASH] == sha256(served.read_bytes()).hexdigest()
    given = fetch_served(shop.settings, version, tmp_path)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(given).graph.node}
    assert shop.register() == "2", "again it is the same"
    restore(shop.settings, version, tmp_path / "back", shop.workspace, without=("code",))
    for stage in (DENSE, QUANTIZED):
        path = file_of(shop.workspace, stage)
        assert (tmp_path / "back" / path).read_bytes() == path.read_bytes()


def test_where_the_quantised_file_is_slower_the_float_one_is_served(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch, slower=True)
    quantize(shop)
    assert choose_served(shop.settings, shop.workspace) == DENSE
    assert shop.register() == "1", "the file that is served is there already"
    assert "is slower on this machine at batch size" in str(why_not_quantized(shop.settings, shop.workspace))


def test_asked_for_and_nothing_quantised_is_said(shop: Shop) -> None:
    shop.change(lambda settings: settings["promote"].update(serve_quantized=True))
    shop.run()
    assert "set quantize.profile" in str(why_not_quantized(shop.settings, shop.workspace))
    assert choose_served(shop.settings, shop.workspace) == DENSE


def test_promotion_compares_what_is_served(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    promote.promote(shop.settings, case_of(shop))
    fast(monkeypatch)
    quantize(shop)
    shop.register()
    case = case_of(shop)
    gates = {gate.name: gate for gate in case.gates}
    size = gates["size"]
    files = [file_of(shop.workspace, stage).stat().st_size for stage in (QUANTIZED, DENSE)]
    assert size.candidate / size.reference == pytest.approx(files[0] / files[1], rel=1e-3)
    assert gates["answers"].passed
    assert gates["parity"].passed
    against = [gate for name, gate in gates.items() if name.startswith("latency against its float file")]
    assert len(against) == len(shop.settings.benchmark.batch_sizes)
    assert not all(gate.passed for gate in against), "so small a network is slower in integers, whatever it was told"
    decision = promote.refuse(shop.settings, case)
    assert any("latency against its float file" in reason for reason in decision.reasons)
    production = mlflow_models.find(shop.settings, alias="production")
    assert (production.number, served_in(shop.workspace, production.tags[mlflow_models.ONNX_HASH])) == ("1", DENSE)


def test_a_hash_of_neither_file_is_the_float_ones(shop: Shop) -> None:
    assert served_in(shop.workspace, None) == DENSE
    assert served_in(shop.workspace, "0" * 64) == DENSE
