"""What a million samples and twenty thousand files cost: bytes in data/, memory, and the second look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow

Writer = Callable[..., Path]
REPOSITORY = Path(__file__).resolve().parents[2]

CODE = '''
import torch
from torch import nn


class Virtual:
    """Images that are worked out from their number."""

    classes = ("even", "odd")

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        image[:, :16] += index % 2
        return image, index % 2


def virtual(count):
    return {"train": Virtual(count), "validation": Virtual(2000), "test": Virtual(2000), "fingerprint": "1"}


def net(num_classes, width=16):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes),
    )
'''

COUNTING = """
import atexit, os, sys

opened, leave = set(), os._exit


def look(event, args):
    if event == "open" and str(args[0]).endswith(".jpg"):
        opened.add(os.path.abspath(args[0]))


sys.addaudithook(look)


def note():
    with open(os.environ["OPENED"], "w") as file:
        file.write(str(len(opened)))


def note_and_leave(code):
    note()
    leave(code)


os._exit = note_and_leave
atexit.register(note)
"""


class Ran:
    """What a command took."""

    def __init__(self, root: Path, *command: str) -> None:
        counting = root / "counting"
        counting.mkdir(exist_ok=True)
        (counting / "sitecustomize.py").write_text(COUNTING, encoding="utf-8")
        place = {"PYTHONPATH": f"{REPOSITORY}:{counting}", "OPENED": str(root / "opened")}
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "secateur", *command, "--no-commit"],
            cwd=root,
            env=os.environ | place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        self.text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        self.seconds, self.peak_mb = time.perf_counter() - start, usage.ru_maxrss / 1024
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, self.text
        self.num_opened = int((root / "opened").read_text())

    def __str__(self) -> str:
        took = f"{self.seconds:.1f} s ({self.cpu_seconds:.1f} of a core), {self.peak_mb:,.0f} MB"
        return f"{took}, {self.num_opened:,} images opened"


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def written(root: Path, writer: Writer, data: dict[str, Any]) -> None:
    (root / "at_size.py").write_text(CODE, encoding="utf-8")

    def change(settings: dict[str, Any]) -> None:
        settings["data"] = data
        settings["model"] = {"factory": "at_size:net", "weights": "weights.safetensors"}
        settings["baseline"]["recipe"] = None
        settings["analyze"]["sample_fraction"] = 0.5
        settings["prune"] |= {"iterations": 1, "recipes": [], "max_accuracy_drop": 0.9}
        settings["prune"]["recover"] = {"method": "reconstruct", "num_samples": 256}

    writer(root, change)


def test_a_million_samples(tmp_path: Path, project_writer: Writer) -> None:
    written(tmp_path, project_writer, {"factory": "at_size:virtual", "kwargs": {"count": 1_000_000}})
    sys.path.insert(0, str(tmp_path))
    try:
        from at_size import net  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(net(2).state_dict(), tmp_path / "weights.safetensors")
    first, second = (Ran(tmp_path, "run", "prepare") for _ in range(2))
    data = json.loads((tmp_path / "data/meta.json").read_text())
    assert (data["num_samples"]["train"], data["copied"], data["identity"]) == (1_000_000, False, "declared")
    rest = {name: Ran(tmp_path, "run", name) for name in ("baseline", "analyze", "profile", "measurements", "prune")}
    print(f"1,000,000 samples: prepare {first}; again {second}; data/ {bytes_in(tmp_path / 'data'):,} bytes")
    print("; ".join(f"{name} {ran}" for name, ran in rest.items()))
    assert bytes_in(tmp_path / "data") < 5e6
    assert max(ran.peak_mb for ran in (first, second, *rest.values())) < 800
    assert second.cpu_seconds < 3


def test_twenty_thousand_files(tmp_path: Path, project_writer: Writer) -> None:
    for number in range(20_000):
        path = tmp_path / "images" / f"class{number % 4}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (number % 256, number // 256, 128)).save(path, quality=80)
    data = {"factory": "zoo.datasets:image_folder", "kwargs": {"folder": "images", "size": 224}}
    written(tmp_path, project_writer, data)
    torch.save({}, tmp_path / "weights.safetensors")
    time.sleep(3)  # files that changed just now are opened again
    first, second = (Ran(tmp_path, "run", "prepare") for _ in range(2))
    print(f"20,000 files: prepare {first}; again {second}; data/ {bytes_in(tmp_path / 'data'):,} bytes")
    assert json.loads((tmp_path / "data/meta.json").read_text())["identity"] == "files"
    assert first.num_opened == 20_000
    assert second.num_opened == 0
    assert bytes_in(tmp_path / "data") < 5e6
    assert max(first.peak_mb, second.peak_mb) < 800
    assert second.cpu_seconds < 3
    (tmp_path / "images" / "class0" / "00000.jpg").write_bytes((tmp_path / "images/class1/19997.jpg").read_bytes())
    third = Ran(tmp_path, "run", "prepare")
    assert "files that the data are read from changed" in third.text
    assert third.num_opened < 1000, "the one that changed, and the samples that are looked at"
