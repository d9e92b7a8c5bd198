"""Data sets that aren't copied: the same bytes as of tensors, told by files or samples, refused once they changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.stages import FLOWS
from pruning.batches import TensorBatches
from pruning.errors import DataError
from pruning.streams import StreamBatches
from tasks.data import read_description, read_split
from tasks.environment import REPOSITORY
from tasks.source_files import hash_sources, sources_unchanged
from tasks.workspace import Workspace
from tests.conftest import OWN_CODE
from tests.tasks.test_pipeline import Project, made, make

Writer = Callable[..., Path]

CODE = '''
import os
import random
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from own_project import few


class Scans(Dataset):
    """The scanned digits, one at a time; perhaps with noise."""

    def __init__(self, samples, named=False, noise=0.0, offset=0.0):
        self.samples, self.named, self.noise, self.offset = samples, named, noise, offset

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        drawn = self.noise * (torch.rand(1) + random.random() + float(np.random.rand()))
        image, label = self.samples.inputs[index] + drawn + self.offset, int(self.samples.targets[index])
        return {"image": image, "label": label} if self.named else (image, label)


def scans(noise=0.0, declared="1", offset=0.0, everywhere=False, classes=True, **more):
    whole = few()
    parts = {name: Scans(part, offset=offset, noise=noise if everywhere or name == "train" else 0.0, **more)
             for name, part in whole.named()}
    return {**parts, "classes": whole.classes if classes else None, "fingerprint": declared}


class Passing(IterableDataset):
    """The same, one after the other; perhaps others each time."""

    def __init__(self, samples, offset=0.0, moves=0.0):
        self.samples, self.offset, self.moves = samples, offset, moves

    def __iter__(self):
        moved = self.offset + self.moves * float(np.random.default_rng().random())
        for image, label in zip(self.samples.inputs, self.samples.targets):
            yield image + moved, int(label)


def streams(declared="1", only=("train", "validation", "test"), **more):
    whole = few()
    parts = {name: Passing(part, **more) if name in only else Scans(part) for name, part in whole.named()}
    return {**parts, "classes": whole.classes, "fingerprint": declared}


def loaders():
    found = scans()
    return {name: DataLoader(part, batch_size=19, shuffle=True) if isinstance(part, Scans) else part
            for name, part in found.items()}


class Mortal(Scans):
    """The same; a worker process notes what it reads, and is killed once so much is noted as a file allows."""

    def __getitem__(self, index):
        if get_worker_info() is not None and Path("lives").exists():
            with open("read", "ab") as file:
                file.write(b".")
            if os.path.getsize("read") > int(Path("lives").read_text()):
                os.kill(os.getpid(), 9)
        return super().__getitem__(index)


def mortal():
    found = scans()
    return {**found, "train": Mortal(found["train"].samples)}


def of_parts(parts):
    return torch.from_numpy(parts["npy"]), parts["cls"]


def of_file(path="scans.pt"):
    """All digits in a file of one's own."""
    whole = torch.load(path)
    return {name: Scans(Of(*pair)) for name, pair in whole.items()} | {
        "classes": [str(n) for n in range(10)], "sources": [path, "folder"]}


class Of:
    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)
'''

STAGES = ("prepare", "baseline", "analyze", "profile", "measurements", "prune", "transform", "export")


def changed(factory: str, **kwargs: Any) -> Callable[[dict[str, Any]], None]:
    """Return a change of the settings: this data set, which isn't copied, and a short run."""
    identity, num_workers = kwargs.pop("identity", "declared"), kwargs.pop("num_workers", 0)
    most = {"copy_below_bytes": kwargs.pop("copy_below_bytes")} if "copy_below_bytes" in kwargs else {}

    def change(settings: dict[str, Any]) -> None:
        settings["data"] = {"factory": factory, "kwargs": kwargs, "identity": identity, **most}
        settings["machine"] = {"num_workers": num_workers}
        settings["baseline"]["recipe"]["epochs"] = 2
        settings["prune"] |= {"iterations": 1, "max_attempts": 1, "max_accuracy_drop": 0.9}
        settings["prune"]["recipes"] = settings["prune"]["recipes"][:1]

    return change


def project(tmp: Path, writer: Writer, names: tuple[str, ...], factory: str, **kwargs: Any) -> Project:
    (tmp / "large.py").write_text(CODE, encoding="utf-8")
    return made(tmp, writer, names, changed(factory, **kwargs))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, project_writer: Writer) -> dict[str, bytes]:
    return artefacts(
        project(tmp_path_factory.mktemp("tensors"), project_writer, STAGES, "own_project:few", identity="auto")
    )


def artefacts(found: Project) -> dict[str, bytes]:
    """Return the bytes of weights, plans, curves, ONNX files and reports of a run; of the ledger what isn't its origin.

    What a stage was made by differs: it names the data set.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found.root)
        files = {
            f"{folder}/{name}": content
            for folder in ("baseline", "iterations", "dense", "measurements", "onnx")
            for name, content in found.bytes_of(folder).items()
            if Path(name).name not in ("stage.json", "ledger.json", "meta.json", "profile.json")
        }
        ledger = found.json("iterations", "ledger.json")
    for name in ("origin", "fingerprint", "digest"):
        del ledger[name]
    return {**files, "ledger": json.dumps(ledger, sort_keys=True).encode()}


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    return [name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)]


def write_shards(folder: Path) -> None:
    """Write the samples of `own_project.few` as WebDataset does: 100 to a tar file, an array and a class each."""
    scope: dict[str, Any] = {}
    exec(OWN_CODE, scope)
    for split, samples in scope["few"]().named():
        for number, (image, label) in enumerate(zip(samples.inputs, samples.targets, strict=True)):
            with tarfile.open(folder / f"{split}-{number // 100}.tar", "a") as shard:
                array = BytesIO()
                np.save(array, image.numpy())
                for extension, content in (("npy", array.getvalue()), ("cls", str(int(label)).encode())):
                    entry = tarfile.TarInfo(f"{number:04d}.{extension}")
                    entry.size = len(content)
                    shard.addfile(entry, BytesIO(content))


SHARDS = {
    **{split: f"{split}-*.tar" for split in ("train", "validation", "test")},
    "transform": "large:of_parts",
    "classes": [str(number) for number in range(10)],
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("factory", "kwargs"),
    [
        ("large:scans", {"num_workers": 0}),
        ("large:scans", {"num_workers": 2, "named": True}),
        ("large:loaders", {"num_workers": 1}),
        ("zoo.datasets:webdataset", {**SHARDS, "num_workers": 2, "identity": "files"}),
    ],
    ids=["a data set", "dicts, two workers", "loaders, one worker", "shards, two workers"],
)
def test_the_same_bytes_for_tensors_and_data_sets_and_any_number_of_workers(
    factory: str, kwargs: dict[str, Any], expected: dict[str, bytes], tmp_path: Path, project_writer: Writer
) -> None:
    assert {name.rpartition(".")[2] for name in expected} >= {"safetensors", "onnx", "json", "ledger"}
    if factory.startswith("zoo"):
        write_shards(tmp_path)
    found = project(tmp_path, project_writer, STAGES, factory, **kwargs)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"meta.json", "example.safetensors", "stage.json"}
    assert not differing(artefacts(found), expected)


@pytest.mark.thorough
def test_a_training_whose_worker_was_killed_goes_on_to_the_same_bytes(
    expected: dict[str, bytes], tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = prepared(tmp_path, project_writer, "large:mortal", num_workers=2)
    count = read_description(found.workspace).num_samples["train"]
    lives, read = tmp_path / "lives", tmp_path / "read"
    lives.write_text(str(count + count // 2))  # within the second of two epochs
    with pytest.raises(DataError, match="a worker process ended"):
        found.run("baseline")
    assert not (tmp_path / "artifacts/baseline").exists()
    read.unlink()
    lives.write_text(str(9 * count))
    found.run("baseline")
    assert read.stat().st_size < 1.5 * count, "it began where it was"
    weights = (tmp_path / "artifacts/baseline/weights.safetensors").read_bytes()
    assert weights == expected["baseline/weights.safetensors"]


@pytest.mark.thorough
def test_streams_in_passes_give_the_bytes_of_tensors_where_a_window_holds_all(
    expected: dict[str, bytes], tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamBatches, "window", 512)
    cases: list[dict[str, Any]] = [{"identity": "content"}, {"only": ["train"]}]
    for number, kwargs in enumerate(cases):
        place = tmp_path / str(number)
        place.mkdir()
        found = project(place, project_writer, STAGES, "large:streams", copy_below_bytes=10_000, **kwargs)
        assert {path.name for path in (place / "data").iterdir()} == {
            *("meta.json", "example.safetensors", "calibration.safetensors", "stage.json")
        }
        assert not differing(artefacts(found), expected)
        for name in ("quantize", "benchmark", "report"):
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place)
                found.run(name)


@pytest.mark.thorough
def test_a_stream_that_is_large_is_counted_and_some_of_it_is_kept(
    tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = prepared(tmp_path, project_writer, "large:streams", copy_below_bytes=10_000)
    data = read_description(found.workspace)
    assert (data.streams, data.copied) == (("train", "validation", "test"), False)
    train = read_split(found.settings, found.workspace, "train")
    assert isinstance(train, StreamBatches)
    assert isinstance(train.spread(16), TensorBatches)
    listed = tmp_path / "listed"
    listed.mkdir()
    monkeypatch.chdir(listed)
    whole = prepared(listed, project_writer, "own_project:few", identity="auto")
    expected = read_split(whole.settings, whole.workspace, "train")
    assert len(train) == len(expected) == data.num_samples["train"]
    assert train.spread(16).first(16).digest() == expected.spread(16).first(16).digest()
    assert [one.digest() for one in train.ordered(50)] == [one.digest() for one in expected.ordered(50)]


@pytest.mark.thorough
@pytest.mark.parametrize("kwargs", [{"offset": 1e-6}, {"declared": "2"}])
def test_a_large_stream_that_has_changed_is_refused(
    kwargs: dict[str, Any], tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = prepared(tmp_path, project_writer, "large:streams", copy_below_bytes=10_000)
    other = again(found, project_writer, "large:streams", copy_below_bytes=10_000, **kwargs)
    with pytest.raises(DataError, match=r"changed after .*run prepare"):
        read_split(other.settings, other.workspace, "train")


def test_a_large_stream_that_gives_others_each_time_is_refused(
    tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="gives other samples each time it is read"):
        prepared(tmp_path, project_writer, "large:streams", copy_below_bytes=10_000, moves=1e-3)


@pytest.mark.thorough
def test_noise_that_a_data_set_draws_is_the_same_for_any_number_of_workers(
    expected: dict[str, bytes], tmp_path: Path, project_writer: Writer
) -> None:
    found = {}
    for num_workers in (0, 2):
        place = tmp_path / str(num_workers)
        place.mkdir()
        made_by = project(
            place, project_writer, ("prepare", "baseline"), "large:scans", noise=0.1, num_workers=num_workers
        )
        found[num_workers] = (made_by.root / "artifacts/baseline/weights.safetensors").read_bytes()
    assert found[0] == found[2] != expected["baseline/weights.safetensors"]


def prepared(tmp: Path, writer: Writer, factory: str, **kwargs: Any) -> Project:
    (tmp / "large.py").write_text(CODE, encoding="utf-8")
    found = make(tmp, writer, changed(factory, **kwargs))
    found.run("prepare")
    return found


def again(found: Project, writer: Writer, factory: str, **kwargs: Any) -> Project:
    """Return the project with other settings: what the user's function gives has changed unseen."""
    return make(found.root, writer, changed(factory, **kwargs))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"offset": 1e-6}, r"changed after .*run prepare.*: sample 0 of train isn't what it was. Bring back"),
        ({"declared": "2"}, "its fingerprint is '2', it was '1'"),
        ({"classes": False}, "doesn't name the classes; they can be counted only where all samples are copied"),
    ],
)
def test_a_data_set_that_has_changed_is_refused(
    tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch, kwargs: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = prepared(tmp_path, project_writer, "large:scans")
    assert (
        len(read_split(found.settings, found.workspace, "train"))
        == read_description(found.workspace).num_samples["train"]
    )
    other = again(found, project_writer, "large:scans", **kwargs)
    with pytest.raises(DataError, match=message):
        read_split(other.settings, other.workspace, "train")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"noise": 0.1, "everywhere": True},
            "validation gives other samples in each epoch; .*leave random transforms to",
        ),
        ({"identity": "files"}, "data.identity is files, but 'large:scans' names no sources"),
        ({"declared": None}, "data.identity is declared, but 'large:scans' gives no fingerprint"),
        ({"classes": False}, "doesn't name the classes"),
    ],
)
def test_what_can_t_be_told_is_refused(
    tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch, kwargs: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, project_writer, "large:scans", **kwargs)


def test_training_samples_that_are_drawn_at_random_are_not_copied(
    tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = prepared(tmp_path, project_writer, "large:scans", noise=0.1, identity="auto", declared=None)
    data = read_description(found.workspace)
    assert (data.copied, data.identity) == (False, "content")
    samples = read_split(found.settings, found.workspace, "train")
    one, same, other = (next(samples.read([slice(0, 3)], epoch=epoch)).inputs for epoch in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    quiet = prepared(tmp_path, project_writer, "large:scans", identity="auto", declared=None)
    assert read_description(quiet.workspace).copied


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The files that are opened from now on."""
    found: list[str] = []
    active = [True]

    def hook(event: str, args: Any) -> None:
        if active and event == "open" and isinstance(args[0], str):
            found.append(args[0])

    sys.addaudithook(hook)
    yield found
    active.clear()


def age(folder: Path) -> None:
    """Let files look as if they had been there for long: those of the last two seconds are always opened."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (1_000_000_000, 1_000_000_000))


def test_files_are_told_by_their_content_and_opened_once(tmp_path: Path, opened: list[str]) -> None:
    folder, workspace = tmp_path / "images", Workspace(tmp_path / "ws")
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", ".hidden/1.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    age(folder)
    opened.clear()

    def hashed(*sources: Any) -> str:
        return hash_sources([str(source) for source in sources or [folder]], workspace)

    first = hashed()
    assert sum(path.endswith(".jpg") for path in opened) == 3
    opened.clear()
    assert hashed() == first
    assert not any(path.endswith(".jpg") for path in opened)
    (folder / "a/1.jpg").touch()
    assert hashed() == first, "another time is no other content"
    (folder / "a/1.jpg").write_bytes(b"a/9.jpg")
    assert hashed() != first, "one byte"
    (folder / "a/1.jpg").write_bytes(b"a/1.jpg")
    assert hashed() == first
    assert hashed(folder / "*" / "*.jpg") == hashed(f"{folder}/**/*.jpg") == first
    assert hashed(folder / "b" / "1.jpg") != first
    (folder / "a/1.jpg").rename(folder / "a/3.jpg")
    assert hashed() != first
    with pytest.raises(DataError, match=r"names the source '.*nothing', which matches no file; mend its sources"):
        hashed(folder / "nothing")
    (tmp_path / "ws" / ".source_hashes.sqlite").write_bytes(b"no database" * 100)
    assert hashed() == hashed()


KILLED = """
import os, sys
from pathlib import Path
import tasks.source_files as source_files
from tasks.workspace import Workspace

source_files._AT_ONCE, hash_file, count = 10, source_files._hash, [0]

def hash_some(file):
    count[0] += 1
    if count[0] > 35:
        os.kill(os.getpid(), 9)
    return hash_file(file)

source_files._hash = hash_some
source_files.hash_sources([sys.argv[1]], Workspace(Path(sys.argv[2])))
"""


def test_hashing_that_was_killed_goes_on_where_it_was(tmp_path: Path, opened: list[str]) -> None:
    folder, workspace = tmp_path / "images", Workspace(tmp_path / "ws")
    folder.mkdir()
    for number in range(50):
        (folder / f"{number}.jpg").write_bytes(str(number).encode())
    age(folder)
    expected = hash_sources([str(folder)], Workspace(tmp_path / "other"))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(workspace.root)], check=False)
    assert killed.returncode == -signal.SIGKILL
    opened.clear()
    assert hash_sources([str(folder)], workspace) == expected
    assert 15 <= len({path for path in opened if path.endswith(".jpg")}) <= 20


KILLED_PREPARE = """
import os
import tasks.source_files as source_files
from flows.stages import FLOWS

hash_file = source_files._hash

def hash_one(file):
    return hash_file(file) if file.name.endswith("scans.pt") else os.kill(os.getpid(), 9)

source_files._hash = hash_one
FLOWS["prepare"]("params.yaml", "artifacts", False)
"""


@pytest.mark.thorough
def test_prepare_that_was_killed_while_it_hashed_files_ends_with_the_same_bytes(
    tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for name in ("undisturbed", "killed"):
        place = tmp_path / name
        place.mkdir()
        monkeypatch.chdir(place)
        write_scans(place, 0.0)
        (place / "large.py").write_text(CODE, encoding="utf-8")
        make(place, project_writer, changed("large:of_file", identity="files"))
        if name == "killed":
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            done = subprocess.run([sys.executable, "-c", KILLED_PREPARE], env=environment, check=False)
            assert done.returncode == -signal.SIGKILL
            assert not (place / "data").exists()
        FLOWS["prepare"]("params.yaml", "artifacts", False)
        found[name] = {path.name: path.read_bytes() for path in (place / "data").iterdir()}
    assert found["killed"] == found["undisturbed"]


def test_changed_files_make_prepare_run_again(
    tmp_path: Path, project_writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scans(tmp_path, 0.0)
    found = prepared(tmp_path, project_writer, "large:of_file", identity="files")
    before = read_description(found.workspace)
    assert before.identity == "files"
    assert sources_unchanged(found.workspace)
    write_scans(tmp_path, 1e-3)
    assert not sources_unchanged(found.workspace)
    found.run("prepare")
    assert sources_unchanged(found.workspace)
    assert read_description(found.workspace).fingerprint != before.fingerprint
    (tmp_path / "scans.pt").unlink()
    assert not sources_unchanged(found.workspace)


def write_scans(folder: Path, offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"train": 40, "validation": 20, "test": 20}
    parts = {
        name: (torch.rand(count, 1, 8, 8, generator=generator) + offset, torch.arange(count) % 10)
        for name, count in sizes.items()
    }
    torch.save(parts, folder / "scans.pt")
    (folder / "folder").mkdir(exist_ok=True)
    (folder / "folder" / "notes.txt").write_text("read as well")
