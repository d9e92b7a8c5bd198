"""What several ranks do together in tests: functions of a module, so that a process of its own finds them."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import torch
from torch import Tensor, nn

from pruning import find_groups, make_plan, narrow
from pruning.batches import TensorBatches
from pruning.graph.groups import Groups
from pruning.recovery.calibrate import recalibrate
from pruning.recovery.reconstruct import reconstruct
from pruning.statistics import moments
from pruning.statistics.collect import NEEDS, Statistics, collect
from pruning.training.launch import Report
from pruning.world import World


class Network(nn.Module):
    """Convolutions with batch norms and a residual sum, attention over the places, a layer that reads many columns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.inner, self.inner_norm = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.outer = nn.Conv2d(8, 6, 1)
        self.query, self.key, self.value = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 7)
        self.wide, self.head = nn.Linear(7 * 16, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.outer(torch.relu(self.inner_norm(self.inner(x))))
        x = x.flatten(2).transpose(1, 2)
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        x = torch.softmax(scores, dim=-1) @ self.value(x)
        found: Tensor = self.head(torch.relu(self.wide(x.flatten(1))))
        return found


def network() -> Network:
    torch.manual_seed(0)
    model = Network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
    return model.eval()


def samples(number: int = 187) -> TensorBatches:
    inputs = torch.randn(number, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return TensorBatches(inputs, (inputs.mean((1, 2, 3)) * 40).round().long().remainder(4))


def groups_of(model: nn.Module) -> Groups:
    """Groups that were sent, as they are to ranks."""
    found: Groups = pickle.loads(pickle.dumps(find_groups(model, samples().inputs[:1])))
    return found


def gathered(world: World, batch_size: int = 16) -> Statistics:
    return collect(groups_of(network()), NEEDS, samples(), batch_size=batch_size, world=world)


def hash_of(value: Any) -> str:
    """Hash tensors in dictionaries and dataclasses by their bits."""
    found = hashlib.sha256()

    def look(one: Any) -> None:
        if isinstance(one, Tensor):
            found.update(one.detach().contiguous().numpy().tobytes())
        elif isinstance(one, dict):
            for name in sorted(one, key=str):
                found.update(str(name).encode())
                look(one[name])
        elif isinstance(one, tuple | list):
            for part in one:
                look(part)
        elif hasattr(one, "__dataclass_fields__"):
            look(vars(one))
        else:
            found.update(repr(one).encode())

    look(value)
    return found.hexdigest()


def work(world: World, _report: Report | None = None) -> dict[str, Any]:
    """Gather, reconstruct and recalibrate; return hashes of all that comes out."""
    torch.set_num_threads(1)
    moments.WIDE, moments.MAX_ROWS = 60, 50  # for this process alone
    statistics = gathered(world)
    found: dict[str, Any] = {}
    if world.is_first:
        found = {need: hash_of(dict(statistics.gathered[need])) for need in statistics.gathered}
        found |= {name: hash_of(getattr(statistics, name)) for name in ("moments", "contributions", "gains")}
    model, inputs = network(), samples().inputs
    groups = groups_of(model)
    plan = make_plan(groups, "l1_norm", channel_sparsity=0.4)
    dense = narrow(groups.model, plan, inputs[:2], groups=groups)
    refits = reconstruct(dense, groups.model, plan, groups, inputs, batch_size=12, world=world)
    found |= {"refits": hash_of(refits), "reconstructed": hash_of(dict(dense.state_dict()))}
    recalibrate(dense, inputs, batch_size=20, world=world)
    return found | {"recalibrated": hash_of(dict(dense.state_dict()))}
