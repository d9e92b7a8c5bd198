from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from pruning.recovery.calibrate import recalibrate


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 3)
    )


def samples(num: int) -> SimpleNamespace:
    return SimpleNamespace(
        inputs=torch.randn(num, 2, 5, 5, generator=torch.Generator().manual_seed(1)), targets=torch.zeros(num)
    )


def test_statistics_become_those_of_the_data() -> None:
    net, data = model(), samples(24)
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.running_mean.fill_(7)  # type: ignore[union-attr]
    recalibrate(net, data, num_samples=24, batch_size=24)
    values = net[0](data.inputs).detach()
    torch.testing.assert_close(norm.running_mean, values.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, values.var((0, 2, 3)))


def test_mean_is_exact_over_uneven_batches() -> None:
    net, data = model(), samples(24)
    recalibrate(net, data, num_samples=24, batch_size=6)
    torch.testing.assert_close(net[1].running_mean, net[0](data.inputs).detach().mean((0, 2, 3)))


def test_nothing_else_changes() -> None:
    net = model()
    net.train()
    net[3].eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert recalibrate(net, samples(30), num_samples=17, batch_size=4) == 1
    assert torch.equal(torch.rand(2), expected)
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert [module.training for module in net] == [True, True, True, False, True, True]
    assert net[1].momentum == 0.1


def test_samples_are_spread_over_the_whole_set() -> None:
    net, data = model(), samples(20)
    data.inputs[10:] += 100
    recalibrate(net, data, num_samples=10, batch_size=10)
    torch.testing.assert_close(net[1].running_mean, net[0](data.inputs[::2]).detach().mean((0, 2, 3)))


def test_model_without_batch_norms_is_left_alone() -> None:
    assert recalibrate(nn.Linear(2, 2), samples(4)) == 0
