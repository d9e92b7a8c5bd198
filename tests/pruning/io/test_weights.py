from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning.errors import CheckpointError
from pruning.io.weights import load_weights


def model(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(first=nn.Linear(3, width), norm=nn.BatchNorm1d(width), last=nn.Linear(width, 2)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x))
        return out


def same(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def test_safetensors_and_every_usual_form_of_pt_are_read(tmp_path: Path) -> None:
    trained = model(1)
    state = trained.state_dict()
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "parallel.pth")
    for path in sorted(tmp_path.iterdir()):
        fresh = model(2)
        load_weights(fresh, path)
        assert same(fresh, trained), path.name


def test_pickled_model_is_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.save(model(), tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=r"could run code .* save model.state_dict\(\) alone"):
        load_weights(model(), tmp_path / "whole.pt")


def test_all_faults_are_listed_at_once_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = dict(model(1).state_dict())
    state["firstt.weight"] = state.pop("first.weight")
    state["last.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "wrong.safetensors")
    net, untouched = model(2), model(2)
    with pytest.raises(CheckpointError) as caught:
        load_weights(net, tmp_path / "wrong.safetensors")
    text = str(caught.value)
    assert "missing: first.weight (is it firstt.weight?)" in text
    assert "unexpected: firstt.weight" in text
    assert "last.bias is (7,), expected (2,)" in text
    assert same(net, untouched)


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt"])
def test_damaged_file_is_refused(tmp_path: Path, name: str) -> None:
    whole = tmp_path / f"whole{Path(name).suffix}"
    save_file(model().state_dict(), whole) if whole.suffix == ".safetensors" else torch.save(
        model().state_dict(), whole
    )
    (tmp_path / name).write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="damaged"):
        load_weights(model(), tmp_path / name)


def test_missing_file_and_a_file_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file of weights"):
        load_weights(model(), tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds list; expected a state dict"):
        load_weights(model(), tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.pt"):
        load_weights(model(), tmp_path / "text.pt")


def test_tied_tensor_may_be_stored_under_one_name(tmp_path: Path) -> None:
    trained = Tied()
    for dropped in ("a.weight", "b.weight"):
        state = {name: tensor.clone() for name, tensor in trained.state_dict().items() if name != dropped}
        save_file(state, tmp_path / "tied.safetensors")
        fresh = Tied()
        load_weights(fresh, tmp_path / "tied.safetensors")
        assert same(fresh, trained)
        assert fresh.b.weight is fresh.a.weight


def wrapped_files(trained: nn.Module) -> dict[str, object]:
    state = trained.state_dict()
    inside = nn.Sequential(OrderedDict(trained.named_children()))
    inside.register_module("first", cast("nn.Module", torch.compile(trained.get_submodule("first"), backend="eager")))
    return {
        "compiled": cast("nn.Module", torch.compile(trained, backend="eager")).state_dict(),
        "compiled inside": inside.state_dict(),
        "averaged": torch.optim.swa_utils.AveragedModel(trained).state_dict(),
        "compiled, averaged": {f"_orig_mod.module.{name}": t for name, t in state.items()}
        | {"n_averaged": torch.ones(1)},
        "Lightning": {"state_dict": {f"model.{name}": t for name, t in state.items()}, "epoch": 3, "callbacks": {}},
        "any prefix": {f"net.student.{name}": t for name, t in state.items()},
        "ema": {"ema": state, "updates": 7},
        "nested": {"checkpoint": {"weights": {"net": {f"module.{name}": t for name, t in state.items()}}}},
        "beside an optimizer": {
            "model": state,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
        },
        "the same twice": {"model": state, "best": {name: t.clone() for name, t in state.items()}},
        "another shape beside": {"teacher": model(3, width=9).state_dict(), "student": state},
    }


@pytest.mark.parametrize("wrapped", wrapped_files(model(1)))
def test_wrappers_of_weights_are_looked_through(tmp_path: Path, wrapped: str, caplog: pytest.LogCaptureFixture) -> None:
    trained = model(1)
    torch.save(wrapped_files(trained)[wrapped], tmp_path / "file.pt")
    fresh = model(2)
    with caplog.at_level("INFO", "pruning"):
        load_weights(fresh, tmp_path / "file.pt")
    assert same(fresh, trained)
    assert "file.pt: read " in caplog.text


def test_two_sets_of_weights_that_fit_are_refused_by_their_names(tmp_path: Path) -> None:
    torch.save({"model": model(1).state_dict(), "ema": model(3).state_dict()}, tmp_path / "both.pt")
    teacher = {f"teacher.{name}": t for name, t in model(1).state_dict().items()}
    student = {f"student.{name}": t for name, t in model(3).state_dict().items()}
    torch.save(teacher | student, tmp_path / "two.pt")
    net, untouched = model(2), model(2)
    with pytest.raises(CheckpointError, match=r"several sets of weights that fit the model: \['model'\], \['ema'\]"):
        load_weights(net, tmp_path / "both.pt")
    with pytest.raises(CheckpointError, match=r"names without 'student\.'.*unexpected: teacher\.first\.weight"):
        load_weights(net, tmp_path / "two.pt")
    assert same(net, untouched)


def test_what_stands_beside_a_prefix_is_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = {f"model.{name}": t for name, t in model(1).state_dict().items()} | {"loss.weight": torch.ones(2)}
    torch.save({"state_dict": state}, tmp_path / "lightning.pt")
    with pytest.raises(CheckpointError, match=r"names without 'model\.'\) doesn't fit the model; unexpected: loss\.w"):
        load_weights(model(2), tmp_path / "lightning.pt")


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    knot: dict[str, object] = {"epoch": 3}
    knot["self"] = knot
    torch.save(knot, tmp_path / "knot.pt")
    with pytest.raises(CheckpointError, match="holds dict; expected a state dict"):
        load_weights(model(), tmp_path / "knot.pt")
