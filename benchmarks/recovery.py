"""Prune every architecture of the coverage list as the shipped settings do, without training, and see what comes back.

    python -m benchmarks.recovery --only 'timm/*' --json recovery.json

Each architecture, with random weights, loses a share of its MACs by the shipped criterion, fallback and limits, and
channels of residual streams too where the share is out of reach without. Its outputs on inputs that calibration hasn't
seen are compared with the original's, before and after reconstruction. Each runs in a process of its own, with a
time-out and a limit on memory.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import pruning
from benchmarks.architectures import Architecture, find_architectures
from benchmarks.isolation import run_apart
from benchmarks.measure import last_lines
from pruning.allocation.selection import Scope
from pruning.containers import Inputs, count_samples, find_tensors, in_batches, with_tensors
from pruning.errors import SecateurError, TargetError
from pruning.plan.verification import outputs_of
from pruning.recovery.reconstruct import reconstruct
from tasks.config.prune_schema import Structured
from tasks.config.target_schema import Target

OUT_OF_REACH = "out of reach"
_BATCH = 16
_HELD_OUT = 1000  # the first seed of inputs that calibration hasn't seen


@dataclass
class Recovery:
    """What was seen of one architecture.

    Attributes:
        name: Of the architecture.
        status: "better", "worse", "nothing can be pruned", "out of reach", or the step that raised.
        error: The error's text.
        macs_removed: Share of the MACs.
        before: Relative error of the outputs on other inputs, narrowed and not reconstructed.
        after: The same, reconstructed.
        streams: Whether channels of residual streams had to go.
        seconds: For all of it.
    """

    name: str
    status: str = ""
    error: str = ""
    macs_removed: float = math.nan
    before: float = math.nan
    after: float = math.nan
    streams: bool = False
    seconds: float = math.nan


def recover(architecture: Architecture, mac_reduction: float, num_samples: int) -> Recovery:
    """Prune one architecture in this process by the shipped settings, and reconstruct it."""
    row = Recovery(architecture.name)
    shipped = Structured(target=Target(mac_reduction=mac_reduction))
    begin = time.perf_counter()
    step = "the model itself fails"
    try:
        model = architecture.make()
        example = architecture.make_inputs(1)
        others = [architecture.make_inputs(_HELD_OUT + number) for number in range(4)]
        expected = [outputs_of(model, one) for one in others]
        step = "inputs are no samples"
        inputs = _samples(architecture, num_samples)
        step = "find_groups raised"
        groups = pruning.find_groups(model, example)
        if not len(groups):
            row.status = "nothing can be pruned"
            return row
        step = "make_plan raised"
        make_plan = partial(
            pruning.make_plan,
            criterion=(shipped.criterion, shipped.fallback),
            scope=Scope("global", shipped.allocation.normalise),
            limits=shipped.limits,
            mac_reduction=mac_reduction,
            samples=inputs,
        )
        try:
            plan = make_plan(groups)
        except TargetError:
            groups, row.streams = pruning.find_groups(model, example, allow_mixed=True), True
            plan = make_plan(groups)
        row.macs_removed = 1 - pruning.count_macs(groups, plan) / pruning.count_macs(groups)
        step = "narrow raised"
        dense = pruning.narrow(model, plan, example, groups=groups)
        row.before = relative_error(expected, [outputs_of(dense, one) for one in others])
        step = "reconstruct raised"
        reconstruct(dense, model, plan, groups, inputs, ridge=shipped.recover.ridge, batch_size=_BATCH)
        row.after = relative_error(expected, [outputs_of(dense, one) for one in others])
        row.status = "better" if row.after < row.before else "worse" if math.isfinite(row.after) else "not finite"
    except TargetError as fault:  # the error says how far each relaxation gets
        row.status, row.error = OUT_OF_REACH, str(fault)
    except SecateurError as fault:
        row.status, row.error = step, str(fault)
    except Exception as fault:  # noqa: BLE001 - whatever a model raises belongs in its row
        row.status, row.error = step, last_lines(fault)
    row.seconds = time.perf_counter() - begin
    return row


def _samples(architecture: Architecture, number: int) -> Inputs:
    """Join inputs of several seeds along axis 0, and leave out what is over."""
    batches = [architecture.make_inputs(1)]
    each = count_samples(batches[0])
    batches += [architecture.make_inputs(seed) for seed in range(2, 1 + -(-number // each))]
    tensors = [find_tensors(batch) for batch in batches]
    joined = {id(first): torch.cat([one[at] for one in tensors]) for at, first in enumerate(tensors[0])}
    first: Inputs = in_batches(with_tensors(batches[0], lambda tensor: joined[id(tensor)]), number)[0]
    return first


def relative_error(expected: Sequence[list[Tensor]], found: Sequence[list[Tensor]]) -> float:
    """Return √(Σ|found − expected|² / Σ|expected|²) over all tensors of floating point."""
    squares = whole = 0.0
    for wanted, got in zip(expected, found, strict=True):
        for a, b in zip(wanted, got, strict=True):
            if a.is_floating_point():
                squares += float((b.double() - a.double()).square().sum())
                whole += float(a.double().square().sum())
    return math.sqrt(squares / whole) if whole else math.nan


def recover_named(name: str, mac_reduction: float, num_samples: int) -> Recovery:
    """Do it for one architecture by its name, in this process."""
    found = next(one for one in find_architectures(name) if one.name == name)
    return recover(found, mac_reduction, num_samples)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if nothing raised."""
    options = _parser().parse_args(arguments)
    chosen = [one for pattern in options.only or ["*"] for one in find_architectures(pattern)]
    names = list(dict.fromkeys(one.name for one in chosen if one.installed))[:: options.every]
    rows: list[Recovery] = []
    for name in tqdm(names, unit="model"):
        rows.append(_recover_apart(name, options))
        if rows[-1].status != "better":
            tqdm.write(f"{name}: {rows[-1].status} {rows[-1].error[:300]}")
        if options.json:  # after every row, so that nothing is lost when the run is stopped
            options.json.write_text(json.dumps(_summary(rows) | {"rows": [asdict(row) for row in rows]}, indent=1))
    print(json.dumps(_summary(rows), indent=1))
    return int(any(row.status not in ("better", "worse", "nothing can be pruned", OUT_OF_REACH) for row in rows))


def _summary(rows: Sequence[Recovery]) -> dict[str, Any]:
    compared = [row for row in rows if row.status in ("better", "worse")]
    better = sum(row.status == "better" for row in compared)
    return {
        "architectures": len(rows),
        "results": dict(Counter(row.status for row in rows).most_common()),
        "share_better": better / len(compared) if compared else None,
    }


def _recover_apart(name: str, options: argparse.Namespace) -> Recovery:
    limits = {"timeout_s": options.time_out, "memory_gib": options.memory}
    try:
        row: Recovery = run_apart(recover_named, name, options.mac_reduction, options.samples, **limits)
    except TimeoutError as fault:
        return Recovery(name, "time-out", str(fault))
    except ChildProcessError as fault:
        return Recovery(name, "killed", str(fault))
    return row


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recovery", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="names, parts of names or shell patterns")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each N-th of them alone")
    parser.add_argument("--mac-reduction", type=float, default=0.3, metavar="SHARE")
    parser.add_argument("--samples", type=int, default=64, help="inputs to calibrate on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was seen")
    parser.add_argument("--time-out", type=float, default=900.0, metavar="SECONDS", help="for each architecture")
    parser.add_argument("--memory", type=float, default=12.0, metavar="GIB", help="for each architecture")
    return parser


if __name__ == "__main__":
    sys.exit(main())
