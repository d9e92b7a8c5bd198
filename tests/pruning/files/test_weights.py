from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning.errors import CheckpointError
from pruning.files.weights import load_weights


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
