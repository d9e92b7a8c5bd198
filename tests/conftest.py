"""What every test shares: one thread, no record outside the test's own folders, and a small project to run.

Flows are plain functions here, as DVC runs them: what is tested is ours, not the engine's start.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["DVC_STAGE"] = "tests"
import flows.prefect_adapter  # noqa: F401  # it looks once, whichever test imports it first

del os.environ["DVC_STAGE"]

import pytest
import torch
import yaml

pytest_plugins = ["tests.clone", "tests.shop"]


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Draw what a test's module draws at import alike, whichever modules came before it."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _drawn_alike() -> None:
    """Draw the same numbers in every test, whichever tests ran before it in its process."""
    torch.manual_seed(0)


OWN_CODE = '''
import torch
from torch import nn

from zoo.datasets import digits
from zoo.datasets.splits import Splits


def few(step=4, seed=0):
    """Every fourth of the scanned digits."""
    whole = digits(seed=seed)
    parts = [samples.take(torch.arange(0, len(samples), step)) for _, samples in whole.named()]
    return Splits(*parts, classes=whole.classes)


class Inputs:
    def __init__(self, inputs):
        self.inputs = inputs


def inputs_alone():
    """The same scans without what they show."""
    whole = few()

    class Found:
        train, validation, test = (Inputs(part.inputs) for _, part in whole.named())
        classes = whole.classes

    return Found


def small(input_shape, num_classes, width=16):
    """Two convolutions and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, num_classes),
    )
'''

PARAMS: dict[str, Any] = {
    "run": {"seed": 0, "threads": 1, "device": "cpu"},
    "data": {"factory": "own_project:few", "kwargs": {}},
    "model": {"factory": "own_project:small", "kwargs": {}, "weights": None},
    "training": {"loss": "cross_entropy", "metric": "accuracy", "augment": None, "batch_size": 256},
    "baseline": {
        "recipe": {"name": "baseline", "epochs": 12, "learning_rate": 0.1, "schedule": "one_cycle", "batch_size": 32}
    },
    "analyze": {"criterion": "l2_norm", "rates": [0.3, 0.6], "sample_fraction": 1.0},
    "profile": {"batch_sizes": []},
    "prune": {
        "target": {"mac_reduction": 0.6},
        "criterion": "l2_norm",
        "schedule": "linear",
        "iterations": 3,
        "smallest_step": 0.02,
        "max_attempts": 12,
        "min_channels": 1,
        "allocation": {"strategy": "sensitivity"},
        "recover": {"method": "recalibrate", "num_samples": 1024},
        "max_accuracy_drop": 0.2,
        "round_to": 1,
        "max_group_rate": 0.9,
        "recipes": [
            {"name": "distil", "epochs": 2, "learning_rate": 0.02, "batch_size": 32, "distillation": 0.5},
            {"name": "plain", "epochs": 2, "learning_rate": 0.02, "batch_size": 32},
        ],
    },
    "export": {"opset": 20},
    "benchmark": {"batch_sizes": [1, 4], "threads": [1], "rounds": 5},
    "tracking": {"uri": "sqlite:///mlflow.db", "experiment": "tests", "model_name": "small"},
    "promote": {"max_accuracy_drop": 0.3, "max_latency_increase": 100.0},  # so small a network gains no time
}

Change = Callable[[dict[str, Any]], object]


def pytest_configure() -> None:
    """Let what tests start heed the signals that a shell has tests in the background ignore, as `nohup` does."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # a handler isn't inherited


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _loggers_as_new() -> None:
    """Undo what a command that ran in this process did to the loggers."""
    for logger in (logging.getLogger(name) for name in ("secateur", "pruning")):
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def write_project(folder: Path, change: Change | None = None, params: str = "params.yaml") -> Path:
    """Write a small project's own code and settings; `change` edits the settings first."""
    settings: dict[str, Any] = yaml.safe_load(yaml.safe_dump(PARAMS))
    if change is not None:
        change(settings)
    (folder / "own_project.py").write_text(OWN_CODE, encoding="utf-8")
    (folder / params).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return folder / params


@pytest.fixture
def write_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Change | None], Path]:
    """Go into a fresh project folder, and return a function that writes its settings."""
    monkeypatch.chdir(tmp_path)
    return lambda change: write_project(tmp_path, change)


@pytest.fixture(scope="session")
def project_writer() -> Callable[..., Path]:
    """Return `write_project`, for fixtures that live longer than a test."""
    return write_project
