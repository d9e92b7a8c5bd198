"""Prune a network inside a training loop of your own: `python train.py`."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import secateur
from zoo.datasets import digits
from zoo.models import resnet20

torch.manual_seed(0)
data = digits()
model = resnet20(input_shape=(1, 8, 8), num_classes=10)
example = data.train.inputs[:2]


def train(model: nn.Module, epochs: int, learning_rate: float) -> None:
    """Your loop: it knows nothing of pruning."""
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(data.train)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(data.train.inputs[batch]), data.train.targets[batch]).backward()
            optimizer.step()
        schedule.step()


def show(stage: str, model: nn.Module) -> None:
    """Print what the model scores and costs."""
    accuracy = secateur.evaluate(model, data.test).score
    macs = secateur.count_macs(secateur.find_groups(model, example))
    print(f"{stage:11} {accuracy:6.1%} of {len(data.test)} test scans right, {macs:9,} MACs")


train(model, epochs=8, learning_rate=0.1)
show("trained", model)

groups = secateur.find_groups(model, example)
plan = secateur.make_plan(groups, "l2_norm", target=secateur.MacReduction(0.5), round_to=4)
dense = secateur.narrow(model, plan, example)  # computes what the masked model computes, or is refused
show("narrowed", dense)

train(dense, epochs=4, learning_rate=0.02)
show("fine-tuned", dense)

file = secateur.export_onnx(dense, example, Path("model.onnx"))
parity = secateur.check_parity(file, dense, data.test.inputs)
print(f"{file}: same class as torch for {parity.top1_agreement:.1%} of the scans")
