from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups
from pruning.errors import CheckpointError
from pruning.io.checkpoint import check_checkpoint, load_checkpoint, save_checkpoint
from pruning.plan.narrow import narrow
from pruning.plan.plan import Plan

EXAMPLE = torch.zeros(2, 1, 6, 6)


def factory(width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


@pytest.fixture
def narrowed() -> tuple[nn.Module, Plan]:
    torch.manual_seed(0)
    model = factory().eval()
    groups = find_groups(model, EXAMPLE)
    plan = Plan.of(groups, {group.name: [0, 2] for group in groups})
    return narrow(model, plan, EXAMPLE), plan


def test_round_trip_is_exact_and_keeps_the_random_state(tmp_path: Path, narrowed: tuple[nn.Module, Plan]) -> None:
    model, plan = narrowed
    digest = save_checkpoint(tmp_path / "deep" / "one", model, plan, {"accuracy": 0.5, "names": ["a"]})
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    loaded, found, meta = load_checkpoint(tmp_path / "deep" / "one", factory, EXAMPLE)
    assert torch.equal(torch.rand(1), expected)
    assert found == plan
    assert meta == {"accuracy": 0.5, "names": ["a"]}
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    inputs = torch.randn(3, 1, 6, 6)
    assert torch.equal(loaded(inputs), model(inputs))
    assert not loaded.training
    weights = (tmp_path / "deep" / "one" / "weights.safetensors").read_bytes()
    assert digest == hashlib.sha256(weights).hexdigest()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["one"]


def test_whole_model_has_an_empty_plan(tmp_path: Path) -> None:
    model = factory()
    save_checkpoint(tmp_path / "whole", model, Plan(removed={}, sizes={}))
    loaded, plan, meta = load_checkpoint(tmp_path / "whole", factory, EXAMPLE)
    assert (plan.removed, meta) == ({}, {})
    assert torch.equal(loaded.state_dict()["0.weight"], model.state_dict()["0.weight"])


def test_bytes_are_the_same_each_time_and_saving_replaces(tmp_path: Path, narrowed: tuple[nn.Module, Plan]) -> None:
    model, plan = narrowed
    save_checkpoint(tmp_path / "a", factory(), Plan(removed={}, sizes={}), {"old": 1})
    (tmp_path / ".a.partial").mkdir()  # left by a run that was killed
    (tmp_path / ".a.partial" / "weights.safetensors").write_bytes(b"half")
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, model, plan, {"y": 1, "x": 2} if name == "a" else {"x": 2, "y": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    for file in ("weights.safetensors", "plan.json", "meta.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_checkpoint_that_stepped_aside_when_the_process_died_is_put_back(
    tmp_path: Path, narrowed: tuple[nn.Module, Plan]
) -> None:
    save_checkpoint(tmp_path / "a", *narrowed)
    (tmp_path / "a").rename(tmp_path / ".a.replaced")
    _, plan, _ = load_checkpoint(tmp_path / "a", factory, EXAMPLE)
    assert plan == narrowed[1]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.a(x))
            return out

    model = Tied()
    save_checkpoint(tmp_path / "tied", model, Plan(removed={}, sizes={}))
    assert (tmp_path / "tied" / "weights.safetensors").stat().st_size < (64 + 16) * 4 + 400
    loaded, _, _ = load_checkpoint(tmp_path / "tied", Tied, torch.zeros(1, 8))
    assert isinstance(loaded, Tied)
    assert loaded.b.weight is loaded.a.weight
    assert torch.equal(loaded.a.weight, model.a.weight)


@pytest.mark.parametrize("name", ["weights.safetensors", "plan.json", "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_damage_names_the_file_and_says_what_to_do(
    tmp_path: Path, narrowed: tuple[nn.Module, Plan], name: str, damage: str
) -> None:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, *narrowed)
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[:-9])
    elif name == "meta.json":
        file.write_text(file.read_text().replace('"weights_sha256": "', '"weights_sha256": "0'))
    else:
        content[-2] ^= 1
        file.write_bytes(content)
    expected = "weights.safetensors" if (name, damage) == ("meta.json", "changed") else name
    with pytest.raises(CheckpointError, match=rf"{expected} .*delete the folder and run the stage"):
        load_checkpoint(folder, factory, EXAMPLE)
    with pytest.raises(CheckpointError, match=rf"{expected} "):
        check_checkpoint(folder)


class Bomb:
    """Pickled, it makes a file when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.place,)


@pytest.mark.parametrize("name", ["weights.safetensors", "plan.json", "meta.json"])
def test_pickle_in_the_place_of_a_checkpoints_file_is_refused_and_never_read(
    tmp_path: Path, narrowed: tuple[nn.Module, Plan], name: str
) -> None:
    folder, exploded = tmp_path / "checkpoint", tmp_path / "exploded"
    save_checkpoint(folder, *narrowed)
    (folder / name).write_bytes(pickle.dumps(Bomb(exploded)))
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder, factory, EXAMPLE)
    torch.save(Bomb(exploded), folder / name)
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder, factory, EXAMPLE)
    assert not exploded.exists()
    pickle.loads(pickle.dumps(Bomb(exploded)))
    assert exploded.exists()  # it would have shown


def test_missing_folder_and_foreign_format_are_refused(tmp_path: Path, narrowed: tuple[nn.Module, Plan]) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none", factory, EXAMPLE)
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, *narrowed)
    header = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(header | {"format": 99}))
    with pytest.raises(CheckpointError, match="format 99; this version reads format 1"):
        load_checkpoint(folder, factory, EXAMPLE)
    (folder / "meta.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"meta.json is damaged: input should be an object, found \[\]"):
        load_checkpoint(folder, factory, EXAMPLE)


def test_factory_of_another_model_is_refused(tmp_path: Path, narrowed: tuple[nn.Module, Plan]) -> None:
    save_checkpoint(tmp_path / "c", *narrowed)
    with pytest.raises(CheckpointError, match="plan doesn't fit the model that the factory builds"):
        load_checkpoint(tmp_path / "c", lambda: factory(7), EXAMPLE)
    save_checkpoint(tmp_path / "d", factory(), Plan(removed={}, sizes={}))
    with pytest.raises(CheckpointError, match=r"of another shape: 0\.weight"):
        load_checkpoint(tmp_path / "d", lambda: factory(7), EXAMPLE)
