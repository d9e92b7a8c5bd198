"""How long pruning without training takes on networks of the size in which they are used, and how much memory.

    python -m benchmarks.speed.real_sizes resnet50 vit_b_16 --images 256 --threads 2 --json real_sizes.json
    python -m benchmarks.speed.real_sizes zoo:20 zoo:38 --images 64 --pixels 64          # what twice the depth costs

`zoo:38` is the zoo's residual network of that depth and width 16; other names are torchvision's, which has to be
installed. Weights and images are random; neither changes how much there is to do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

import pruning
from benchmarks.architectures.architecture import enliven
from benchmarks.architectures.from_torchvision import declare_operators
from benchmarks.isolation import run_apart
from benchmarks.measure import peak_mb, reset_peak
from pruning.statistics.collect import collect
from zoo.models import resnet


@dataclass(frozen=True)
class Stage:
    """What one stage took.

    Attributes:
        network: Its name.
        stage: Its name.
        seconds: By the clock.
        cpu_seconds: Of all threads.
        peak_gib: Most memory of the process while it ran, all that is loaded included; NaN where that can't be told.
    """

    network: str
    stage: str
    seconds: float
    cpu_seconds: float
    peak_gib: float


def measure(network: str, images: int, pixels: int, threads: int, share: float, batch_size: int) -> list[Stage]:
    """Gather statistics, plan, narrow and reconstruct.

    Args:
        network: A classifier of torchvision, or `zoo:` and a depth.
        images: How many.
        pixels: Height and width.
        threads: Of PyTorch.
        share: Of the MACs, that goes.
        batch_size: Images per pass.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = _build(network, pixels).eval()
    enliven(model)
    inputs = torch.randn(images, 3, pixels, pixels)
    found: list[Stage] = []

    def timed(name: str, work: Callable[[], Any]) -> Any:
        with _measured(network, name, found):
            return work()

    groups = timed("groups", lambda: pruning.find_groups(model, inputs[:1]))
    statistics = timed("statistics", lambda: collect(groups, {"moments"}, inputs, batch_size=batch_size))
    target = pruning.MacReduction(share)
    plan = timed("plan", lambda: pruning.make_plan(groups, "structured_obs", target, samples=statistics))
    statistics = None
    dense = timed("narrow", lambda: pruning.narrow(model, plan, inputs[:1], groups=groups))
    timed("reconstruct", lambda: pruning.reconstruct(dense, model, plan, groups, inputs, batch_size=batch_size))
    return found


def _build(network: str, pixels: int) -> nn.Module:
    kind, _, depth = network.partition(":")
    if kind == "zoo":
        return resnet((3, pixels, pixels), 10, depth=int(depth), width=16)
    declare_operators()
    model: nn.Module = getattr(import_module("torchvision.models"), network)(weights=None)
    return model


@contextmanager
def _measured(network: str, stage: str, found: list[Stage]) -> Iterator[None]:
    reset_peak()
    clock, cpu = time.perf_counter(), time.process_time()
    yield
    spent, worked = time.perf_counter() - clock, time.process_time() - cpu
    found.append(Stage(network, stage, round(spent, 2), round(worked, 2), round(peak_mb() / 1024, 2)))
    print(found[-1], f"load {os.getloadavg()[0]:.1f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.real_sizes",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("networks", nargs="+", help="classifiers of torchvision, or zoo:DEPTH")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.5, help="of the MACs that goes")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--time-out", type=float, default=7200.0, metavar="SECONDS", help="for each network")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured")
    given = parser.parse_args(arguments)
    rows: list[Stage] = []
    for network in given.networks:
        settings = (network, given.images, given.pixels, given.threads, given.share, given.batch_size)
        rows += run_apart(measure, *settings, timeout_s=given.time_out, memory_gib=64)
        if given.json:
            machine = {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
            found = {"settings": vars(given) | {"json": None}, "machine": machine, "stages": [asdict(r) for r in rows]}
            given.json.write_text(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
