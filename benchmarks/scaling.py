"""What a run costs beyond one machine, by calculation: ImageNet with ResNet-50, a language model of 8 billion weights.

    python -m benchmarks.scaling --measure docs/scaling-results.json     # minutes of one core; then the tables
    python -m benchmarks.scaling docs/scaling-results.json               # the tables of docs/scaling.md

Every row says where its figure is from: measured (on the machine that the file names), published (by whom), assumed, or
calculated from those above. No GPU and no second machine was at hand: what stands for 8 and 64 GPUs is extrapolated.

A step's time on g devices, its batch of B samples divided among them:

    compute         B / (g r)                           r samples a second on one device
    communication   s / w                               s bytes that each device sends, w bytes a second of its link
    step            compute + max(0, communication − o · compute)      o: the share of compute that hides communication
    efficiency      compute / step
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

from benchmarks.architectures.from_torchvision import declare_operators
from pruning.latency.runner import cpu_name
from pruning.statistics.moments import WIDE
from pruning.training.callbacks import Callbacks
from pruning.training.recipe import Recipe
from pruning.training.trainer import finetune

DEVICES = (1, 8, 64, 256)
NODE = 8  # GPUs that a fast link joins

FAST, SLOW = 230e9, 40e9
"""Bytes a second that a GPU sends within a node, and to others: NVLink of an A100 (300 GB/s a direction) and a network
of 400 Gbit/s a GPU, each at about four fifths of its rate."""

HIDDEN = 0.5
"""Share of a step's compute behind which communication hides: most of the backward pass, which is two thirds."""


@dataclass(frozen=True)
class Measured:
    """What was measured here.

    Attributes:
        machine: Where.
        date: When.
        forward: ResNet-50 at 224 × 224 in evaluation mode: images a second of one core.
        training: The same of a training step of plain torch: forward, backward, SGD.
        pipeline: The same of `finetune`.
        batch_size: Of all three.
    """

    machine: str
    date: str
    forward: float
    training: float
    pipeline: float
    batch_size: int


@dataclass(frozen=True)
class Network:
    """A network and its data.

    Attributes:
        name: What it is.
        parameters: How many.
        samples: Of an epoch.
        batch: Samples of a step, over all devices; it stays the same on more of them.
        rate: Samples a second of one device.
        sent: Bytes that a device sends in each step for one byte of gradients or parameters, on very many devices.
        bytes_each: Of a gradient or parameter as it is sent.
    """

    name: str
    parameters: float
    samples: float
    batch: float
    rate: float
    sent: float
    bytes_each: int


@dataclass(frozen=True)
class Step:
    """A step of training on some devices: seconds, bytes that each sends, and the share of the time that is compute."""

    devices: int
    compute: float
    bytes_sent: float
    communication: float

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.compute + max(0.0, self.communication - HIDDEN * self.compute)

    @property
    def efficiency(self) -> float:
        """The share of it that is compute."""
        return self.compute / self.seconds


def step(network: Network, devices: int) -> Step:
    """Work out a step: a ring sends (g − 1)/g of everything that is summed or gathered, by the slowest link in it."""
    share = (devices - 1) / devices
    sent = network.sent * network.bytes_each * network.parameters * share
    link = FAST if devices <= NODE else SLOW
    return Step(devices, network.batch / devices / network.rate, sent, sent / link)


def epoch_hours(network: Network, devices: int) -> float:
    """Return the hours of a pass over the samples."""
    return network.samples / network.batch * step(network, devices).seconds / 3600


def saturation(network: Network, least: float = 0.5) -> int:
    """Return the largest number of devices, a power of two, at which at least this share of a step is compute."""
    devices = 1
    while step(network, 2 * devices).efficiency >= least and 2 * devices <= network.batch:
        devices *= 2
    return devices


def llama_parameters(layers: int = 32, hidden: int = 4096, inner: int = 14336, vocabulary: int = 128_256) -> int:
    """Count the parameters of Llama 3 8B: 32 heads, keys and values of 8, embedding and output layer apart."""
    attention = 2 * hidden * hidden + 2 * hidden * hidden // 4
    block = attention + 3 * hidden * inner + 2 * hidden
    return layers * block + 2 * vocabulary * hidden + hidden


RESNET = Network("ResNet-50, mixed precision", 25_557_032, 1_281_167, 1024, 2470, sent=2, bytes_each=4)
"""DDP: the gradients are summed by a ring, which sends each twice. Source of the rate: NVIDIA, DeepLearningExamples,
`PyTorch/Classification/ConvNets/resnet50v1.5`: one A100 at 2,470 images a second, eight at 16,621 (mixed precision)."""

LLAMA = Network("Llama 3 8B, bf16", float(llama_parameters()), 1e9, 2**20, 6667, sent=3, bytes_each=2)
"""FSDP: parameters are gathered twice, gradients scattered once. Samples are tokens; a step has a million of them.
Source of the rate: torchtitan, `benchmarks/llama3_h100_202412_torchtitan.md`: 6,667 tokens a second on each of eight
H100 (FSDP and torch.compile, selective checkpointing)."""

PUBLISHED_EIGHT = 16_621.0
"""Images a second of eight A100, by the same source: what the model above can be held against."""

EPOCHS = 36
"""Of a run with three attempts, two recipes and six epochs each, the defaults."""

BEFORE_TRAINING = {"statistics": (262, 1024), "order": (63, 256), "narrow": (6, 256), "reconstruct": (419, 512)}
"""Of an attempt: CPU seconds of one core for 256 images of 224 × 224, measured (docs/log.md), and the images that the
defaults look at; in proportion, so that it is an upper bound."""

IMAGE_BYTES = 110_000
"""Of a JPEG of ImageNet, on average: 140 GB for 1,281,167."""


def memory_bytes(network: Network, devices: int, *, sharded: bool) -> float:
    """Return what weights, gradients and Adam's state take on each device: 16 bytes a parameter in mixed precision."""
    return 16 * network.parameters / (devices if sharded else 1)


def scaling_rows(network: Network) -> Iterator[tuple[str, ...]]:
    """Yield a row for each number of devices."""
    for devices in DEVICES:
        one = step(network, devices)
        yield (
            str(devices),
            f"{network.batch / devices:,.0f}",
            f"{1e3 * one.compute:,.1f}",
            f"{one.bytes_sent / 1e9:.3g}",
            f"{1e3 * one.communication:,.1f}",
            f"{one.efficiency:.0%}",
            f"{epoch_hours(network, devices):.3g}",
        )


SCALING = ("devices", "samples each", "compute, ms", "sent by each, GB", "link, ms", "efficiency", "epoch, h")


def tables(found: Measured) -> str:
    """Return the tables of the page."""
    core = found.training
    overhead = found.training / found.pipeline - 1
    eight = RESNET.rate * 8 * step(RESNET, 8).efficiency
    ceiling = f"{saturation(RESNET)}: {RESNET.rate * saturation(RESNET):,.0f} images/s"
    facts = [
        ("images a second of one core, ResNet-50 at 224 × 224, evaluation", f"{found.forward:.2f}", "measured"),
        ("the same, a training step of plain torch", f"{core:.2f}", "measured"),
        ("the same by `finetune`: what the pipeline adds to a step", f"{overhead:+.1%}", "measured"),
        ("an epoch of ImageNet on one core", f"{RESNET.samples / core / 86400:,.0f} days", "calculated"),
        ("images a second of one A100 (mixed precision)", f"{RESNET.rate:,.0f}", "published, NVIDIA"),
        ("of eight", f"{PUBLISHED_EIGHT:,.0f}", "published, NVIDIA"),
        ("of eight by the model of this page", f"{eight:,.0f}", "calculated"),
        ("tokens a second of one of eight H100, Llama 3.1 8B", f"{LLAMA.rate:,.0f}", "published, torchtitan"),
        ("a GPU's link within a node, to others, GB/s", f"{FAST / 1e9:.0f}, {SLOW / 1e9:.0f}", "assumed"),
        ("share of compute that hides communication", f"{HIDDEN:g}", "assumed"),
    ]
    run_hours = {devices: EPOCHS * epoch_hours(RESNET, devices) for devices in DEVICES}
    disk, feed = RESNET.samples * IMAGE_BYTES / 1e9, 64 * RESNET.rate * IMAGE_BYTES / 1e9
    before = sum(seconds * samples / 256 for seconds, samples in BEFORE_TRAINING.values())
    sizes = [
        ("ImageNet's training images on disk, read by every stage, not copied", f"{disk:,.0f} GB", "assumed"),
        ("JPEG that 64 GPUs ask for", f"{feed:.1f} GB/s", "extrapolated"),
        ("a run: three attempts, two recipes of six epochs", f"{EPOCHS} epochs", "calculated"),
        *((f"on {g} GPU{'s' * (g > 1)}", f"{run_hours[g]:.3g} h", "extrapolated") for g in (1, 8, 64)),
        ("before training, in three attempts, on one core", f"{3 * before / 3600:.2g} h", "extrapolated"),
        ("checkpoint of ResNet-50", f"{4 * RESNET.parameters / 1e6:.0f} MB", "calculated"),
        ("devices at which half of a step is compute", ceiling, "extrapolated"),
    ]
    model, moments = LLAMA.parameters, f"{8 * WIDE**2 / 1e6:.0f} MB; {8 * 14336**2 / 1e9:.2g} GB"
    whole = _gigabytes(memory_bytes(LLAMA, 8, sharded=False))
    language = [
        ("parameters", f"{model / 1e9:.3f} billion", "calculated"),
        (
            "weights in bf16; in the checkpoint of fp32",
            f"{2 * model / 1e9:.1f}; {4 * model / 1e9:.1f} GB",
            "calculated",
        ),
        ("weights, gradients and Adam's state: on each GPU by DDP", whole, "calculated"),
        ("on each of 8 by FSDP", _gigabytes(memory_bytes(LLAMA, 8, sharded=True)), "calculated"),
        ("on each of 64", _gigabytes(memory_bytes(LLAMA, 64, sharded=True)), "calculated"),
        ("recovery on a billion tokens, 8 GPUs", f"{epoch_hours(LLAMA, 8):.3g} h", "extrapolated"),
        ("the same on 64", f"{epoch_hours(LLAMA, 64):.3g} h", "extrapolated"),
        ("devices at which half of a step is compute", f"{saturation(LLAMA)}", "extrapolated"),
        (
            f"moment of a layer that reads {WIDE:,} columns; of 14,336, of which rows are kept instead",
            moments,
            "calculated",
        ),
    ]
    head = ("what", "figure", "from")
    parts = [
        f"Measured on {found.date} on one core of {found.machine}, batches of {found.batch_size}.",
        _table(head, facts),
        f"### ImageNet, {RESNET.name}, {RESNET.batch:,.0f} images a step",
        _table(SCALING, list(scaling_rows(RESNET))),
        _table(head, sizes),
        f"### {LLAMA.name}, {LLAMA.batch:,.0f} tokens a step",
        _table(SCALING, list(scaling_rows(LLAMA))),
        _table(head, language),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(one)} |" for one in lines)


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.3g} GB"


def resnet50() -> nn.Module:
    """Return torchvision's ResNet-50 with random weights; torchvision has to be installed."""
    declare_operators()
    made: nn.Module = import_module("torchvision.models").resnet50(weights=None)
    return made


def measure(model: nn.Module, images: torch.Tensor, steps: int = 2) -> tuple[float, float, float]:
    """Return images for each CPU second of a forward pass, of a training step of plain torch, and of `finetune`.

    Plain torch and `finetune` take turns, and the median of each counts. One step of each is not counted.

    Args:
        model: Trained in place.
        images: A batch, [N, C, H, W].
        steps: That are timed.
    """
    number, loss = len(images), nn.CrossEntropyLoss()
    targets = torch.arange(number) % 2
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def forward() -> None:
        model.eval()
        with torch.no_grad():
            model(images)

    def plain() -> None:
        model.train()
        optimizer.zero_grad()
        torch.autograd.backward(loss(model(images), targets))
        optimizer.step()

    forward_times = sorted(_seconds(forward) for _ in range(steps + 1))
    plain_times, own_times = list[float](), list[float]()
    _seconds(plain)

    def between(_done: int, _total: int) -> None:
        own_times.append(time.process_time() - began[0])
        plain_times.append(_seconds(plain))
        model.train()
        began[0] = time.process_time()

    class Samples:
        def __init__(self) -> None:
            self.inputs, self.targets = images, targets

    recipe = Recipe(steps=steps + 1, batch_size=number, optimizer="sgd", learning_rate=1e-3)
    began = [time.process_time()]
    finetune(model, Samples(), recipe, seed=0, callbacks=Callbacks(progress=between))
    own, bare = (sorted(times[1:]) for times in (own_times, plain_times))
    middle = steps // 2
    return number / forward_times[middle], number / bare[middle], number / own[middle]


def _seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, after measuring if that is asked for."""
    given = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    given.add_argument("file", type=Path, help="what was measured")
    given.add_argument("--measure", action="store_true", help="measure first, and write the file")
    given.add_argument("--batch-size", type=int, default=4)
    options = given.parse_args(arguments)
    if options.measure:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        rates = measure(resnet50(), torch.randn(options.batch_size, 3, 224, 224))
        machine = f"{cpu_name()} (Python {platform.python_version()}, torch {torch.__version__})"
        today = time.strftime("%Y-%m-%d", time.gmtime())
        forward, training, pipeline = (round(rate, 3) for rate in rates)
        made = Measured(machine, today, forward, training, pipeline, options.batch_size)
        options.file.write_text(json.dumps(asdict(made), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(tables(Measured(**json.loads(options.file.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
