from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import warnings
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


def _converted(message: str, folder: Path) -> None:
    """Run the command that a message names."""
    command = message[message.index('python -c "') :].partition('", then name')[0] + '"'
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, cwd=folder)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["a module", "a module beside others", "a script"])
def test_pickled_objects_are_refused_with_the_command_that_converts_them(tmp_path: Path, kind: str) -> None:
    trained, path = model(1), tmp_path / "whole.pt"
    if kind == "a script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.script(trained), path)
    else:
        torch.save(trained if kind == "a module" else {"ema": trained, "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(CheckpointError, match=r"whole\.pt .*convert it once: python -c") as caught:
        load_weights(model(), path)
    assert kind == "a script" or "torch.nn.modules.container.Sequential" in str(caught.value)
    _converted(str(caught.value), tmp_path)
    fresh = model(2)
    load_weights(fresh, tmp_path / "whole.weights.pt")
    assert same(fresh, trained)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_half_precision_becomes_the_type_of_the_model(tmp_path: Path, stored: torch.dtype, suffix: str) -> None:
    state = {name: t.to(stored) if t.is_floating_point() else t for name, t in model(1).state_dict().items()}
    path = tmp_path / f"half{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    fresh = model(2)
    load_weights(fresh, path)
    for name, tensor in fresh.state_dict().items():
        assert tensor.dtype == model().state_dict()[name].dtype
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name


def divided(folder: Path, trained: nn.Module, suffix: str, prefix: str = "") -> Path:
    """Write weights as two files and their index."""
    state = {f"{prefix}{name}": tensor for name, tensor in trained.state_dict().items()}
    names, files = sorted(state), [f"model-0000{number}-of-00002{suffix}" for number in (1, 2)]
    for number, file in enumerate(files):
        part = {name: state[name] for name in names[number::2]}
        save_file(part, folder / file) if suffix == ".safetensors" else torch.save(part, folder / file)
    where = {name: files[number % 2] for number, name in enumerate(names)}
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 99}, "weight_map": where}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_that_are_divided_over_several_files_are_read_by_their_index(
    tmp_path: Path, suffix: str, prefix: str
) -> None:
    trained, fresh = model(1), model(2)
    load_weights(fresh, divided(tmp_path, trained, suffix, prefix))
    assert same(fresh, trained)


def test_an_index_that_does_not_fit_its_files_is_refused(tmp_path: Path) -> None:
    index = divided(tmp_path, model(1), ".safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00002\.safetensors, which isn't beside it"):
        load_weights(model(), index)
    (tmp_path / "moved").rename(tmp_path / "model-00002-of-00002.safetensors")
    found = json.loads(index.read_text())
    wrong = {**found["weight_map"], "more": "model-00001-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": wrong}))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors lacks more"):
        load_weights(model(), index)
    for elsewhere in ("../secret.safetensors", "/etc/passwd", "..", ""):
        index.write_text(json.dumps({"weight_map": {"first.weight": elsewhere}}))
        with pytest.raises(CheckpointError, match="beside it"):
            load_weights(model(), index)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json: weight_map: .*expected an index of weights"):
        load_weights(model(), index)


def test_all_faults_are_listed_at_once_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = dict(model(1).state_dict())
    state["firstt.weight"] = state.pop("first.weight")
    state["last.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "wrong.safetensors")
    net, untouched = model(2), model(2)
    with pytest.raises(CheckpointError) as caught:
        load_weights(net, tmp_path / "wrong.safetensors")
    text = str(caught.value)
    assert "missing: first.weight (4, 3) (is it firstt.weight?)" in text
    assert "unexpected: firstt.weight (4, 3)" in text
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
