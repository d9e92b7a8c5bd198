"""Whoever can write to the registry can make a version of anything: none of it runs here, nothing lands elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from pruning.errors import SecateurError
from pruning.io import onnx_sandbox
from tasks.registry import decisions, mlflow_models, promote, restore
from tasks.registry.mlflow_client import open_store
from tests.shop import Shop, open_shop

pytestmark = pytest.mark.thorough

OWN_EVIL = "from pathlib import Path\nPath('ran').touch()\ndef make(*_, **__):\n    Path('ran').touch()\n"


@pytest.fixture(scope="module")
def stall(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A project with version 1 in production; hostile versions are added to it."""
    with pytest.MonkeyPatch.context() as patch:
        shop = open_shop(finished_project, tmp_path_factory.mktemp("stall") / "shop", patch)
        mlflow_models.assign(shop.settings, mlflow_models.PRODUCTION, "1")
        Path("own_evil.py").write_text(OWN_EVIL, encoding="utf-8")
        yield shop


@dataclass
class Version:
    """A version that is being made up.

    Attributes:
        files: What lies beside its record.
        model: What a server would load.
        record: What `record.json` will hold.
        tags: Its tags; the hash of the record is added.
    """

    files: Path
    model: Path
    record: dict[str, Any]
    tags: dict[str, str]

    def replace(self, place: str, content: bytes) -> None:
        """Put other content in a file's place, with its hash in the record."""
        (self.files / place).unlink(missing_ok=True)
        (self.files / place).parent.mkdir(parents=True, exist_ok=True)
        (self.files / place).write_bytes(content)
        self.record["files"][place] = sha256(content).hexdigest()

    def settings(self, **changes: Any) -> None:
        found = yaml.safe_load((self.files / "params.yaml").read_text(encoding="utf-8"))
        for place, value in changes.items():
            section, _, name = place.partition("__")
            found[section][name] = value
        self.replace("params.yaml", yaml.safe_dump(found).encode())

    def flavours(self, change: Callable[[dict[str, Any]], object]) -> None:
        found = yaml.safe_load((self.model / "MLmodel").read_text(encoding="utf-8"))
        change(found["flavors"])
        (self.model / "MLmodel").write_text(yaml.safe_dump(found), encoding="utf-8")

    def checkpoint(self, name: str, **changes: Any) -> None:
        """Change the header of a checkpoint, and the seal of its folder."""
        place = f"artifacts/{name}/meta.json"
        self.replace(place, json.dumps({**json.loads((self.files / place).read_bytes()), **changes}).encode())

    def onnx(self, model: onnx.ModelProto) -> None:
        self.onnx_bytes(model.SerializeToString())

    def onnx_bytes(self, content: bytes) -> None:
        self.replace("artifacts/onnx/model.onnx", content)
        (self.model / "model.onnx").write_bytes(content)


def made_up(shop: Shop, change: Callable[[Version], object]) -> str:
    """Add a version, changed by someone, as the candidate."""
    client, first = open_store(shop.settings.tracking.uri), mlflow_models.find(shop.settings, number="1")
    run = client.get_run(first.run_id)
    folder = Path(str(client.create_run(run.info.experiment_id).info.artifact_uri).removeprefix("file://"))
    run_id = folder.parent.name
    place = mlflow_models.record_place(first.tags[mlflow_models.ONNX_HASH])
    source = Path(str(run.info.artifact_uri).removeprefix("file://")) / place
    served = Path(client.get_model_version_download_uri("small", "1").removeprefix("file://"))
    shutil.copytree(source, folder / place)
    shutil.copytree(served, folder / "model")
    record = json.loads((source / "record.json").read_bytes())
    tags = {tag: text for tag, text in first.tags.items() if tag != decisions.ROLLED_BACK}
    made = Version(folder / place, folder / "model", record, tags)
    change(made)
    content = json.dumps(made.record).encode()
    (made.files / "record.json").write_bytes(content)
    tags = dict(made.tags)
    if tags[mlflow_models.RECORD_HASH] == first.tags[mlflow_models.RECORD_HASH]:
        tags[mlflow_models.RECORD_HASH] = sha256(content).hexdigest()
    number = str(client.create_model_version("small", (folder / "model").as_uri(), run_id, tags=tags).version)
    mlflow_models.assign(shop.settings, mlflow_models.CANDIDATE, number)
    return number


def constant_of(shape: list[int]) -> onnx.ModelProto:
    """Return a small file that makes a tensor of any size when it is run."""
    asked = helper.make_tensor("shape", TensorProto.INT64, [len(shape)], shape)
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["large"]),
            helper.make_node("ReduceSum", ["large"], ["one"], keepdims=0),
            helper.make_node("Mul", ["input", "one"], ["output"]),
        ],
        "large",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [asked],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def loop_without_end() -> onnx.ModelProto:
    """Return a small file that counts to 2⁶² before it answers."""
    condition = helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), condition,
         helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "input"], ["output"], body=body)],
        "loop",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor("times", TensorProto.INT64, [], [2**62])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def external(place: str) -> onnx.ModelProto:
    model = constant_of([1])
    weights = helper.make_tensor("weights", TensorProto.FLOAT, [4], np.zeros(4, np.float32))
    weights.ClearField("float_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=place)
    model.graph.initializer.append(weights)
    return model


def models_from_code(flavours: dict[str, Any]) -> None:
    flavours["python_function"] = {"loader_module": "mlflow.pyfunc.model", "model_code_path": "own_evil.py"}


def link(made: Version) -> None:
    secret = Path("../secret").absolute()
    secret.write_bytes(b"not yours")
    made.replace("artifacts/dense/plan.json", b"not yours")
    (made.files / "artifacts/dense/plan.json").unlink()
    (made.files / "artifacts/dense/plan.json").symlink_to(secret)


def linked_folder(made: Version) -> None:
    made.replace("artifacts/onnx/parity.json", b"{}")
    (made.files / "artifacts/onnx").rename(Path("../onnx_elsewhere").absolute())
    (made.files / "artifacts/onnx").symlink_to(Path("../onnx_elsewhere").absolute())


def place(name: str, content: bytes = b"#!/bin/sh\ntouch ran\n") -> Callable[[Version], object]:
    def change(made: Version) -> None:
        made.record["files"][name] = sha256(content).hexdigest()

    return change


KINDS: dict[str, tuple[Callable[[Version], object], str]] = {
    "factory of Python": (lambda made: made.settings(model__factory="os:system"), "'os:system' for model.factory"),
    "factory of a module that is here": (
        lambda made: made.settings(model__factory="own_evil:make"),
        "'own_evil:make' for model.factory, which was not imported",
    ),
    "factory of our own packages": (
        lambda made: made.settings(
            model__factory="pruning.io.files:replace_file", model__kwargs={"path": "ran", "content": "x"}
        ),
        "'pruning.io.files:replace_file' for model.factory",
    ),
    "loss": (lambda made: made.settings(training__loss="own_evil:make"), "'own_evil:make' for training.loss"),
    "settings of another type": (lambda made: made.replace("params.yaml", b"model: [1]\n"), "model is a list"),
    "models from code": (lambda made: made.flavours(models_from_code), "is no plain ONNX model"),
    "code beside the model": (
        lambda made: made.flavours(lambda flavours: flavours["python_function"].update(code="code")),
        "is no plain ONNX model",
    ),
    "pickle flavour": (
        lambda made: made.flavours(lambda flavours: flavours.update(sklearn={"pickled_model": "model.pkl"})),
        "is no plain ONNX model",
    ),
    "model elsewhere": (
        lambda made: made.flavours(
            lambda flavours: (
                flavours["onnx"].update(data="../x.onnx"),
                flavours["python_function"].update(data="../x.onnx"),
            )
        ),
        "expected one .onnx file",
    ),
    "hook of Git": (place(".git/hooks/post-checkout"), "'.git/hooks/post-checkout' is no place"),
    "settings of Git": (place("data/../.git/config"), "is no place that a version's files may have"),
    "path outside": (place("../outside"), "'../outside' is no place"),
    "absolute path": (place("/tmp/outside"), "'/tmp/outside' is no place"),
    "code of ours": (place("tasks/models.py"), "'tasks/models.py' is no place"),
    "link to a file": (link, "artifacts/dense/plan.json: nowhere with sha256"),
    "link to a folder": (linked_folder, "artifacts/onnx/parity.json: nowhere with sha256"),
    "commit that is an option": (lambda made: made.record.update(commit="--output=ran"), "commit: "),
    "tree that is an option": (lambda made: made.record.update(commit="0" * 40, tree="--output=ran"), "tree: "),
    "folder of DVC outside": (lambda made: made.record.update(outputs={"data": "../../x"}), r"outputs\.data: "),
    "file that was changed": (
        lambda made: (made.files / "batch.safetensors").write_bytes(b"changed"),
        "batch.safetensors: nowhere with sha256",
    ),
    "record that was changed": (
        lambda made: made.tags.update({mlflow_models.RECORD_HASH: "0" * 64}),
        "record.json .* was changed",
    ),
    "hash that is a path": (
        lambda made: made.tags.update({mlflow_models.ONNX_HASH: "../../../x"}),
        "malformed tag secateur.onnx_sha256",
    ),
    "record nested without end": (
        lambda made: made.record.update(files=json.loads("[" * 500 + "]" * 500)),
        "is damaged: .*recursion",
    ),
    "ONNX file with weights outside": (
        lambda made: made.onnx(external("../../secret")),
        "keeps 'weights' in another file",
    ),
    "ONNX file with a huge tensor": (
        lambda made: made.onnx(constant_of([10**6, 10**7])),
        "its ONNX file .* can't be used",
    ),
    "ONNX file with a loop without end": (
        lambda made: made.onnx(loop_without_end()),
        "its ONNX file .* can't be used: it was ended after 5 s of a processor",
    ),
    "ONNX file that is none": (
        lambda made: made.onnx_bytes(b"\x08" * 999),
        "its ONNX file .* can't be used: DecodeError",
    ),
    "batch of other tensors": (
        lambda made: made.replace("batch.safetensors", b"x" * 100),
        "batch.safetensors can't be",
    ),
    "huge tensor in a checkpoint": (
        lambda made: made.checkpoint("dense", packed={"0.weight": [10**6, 10**6]}),
        "packed tensor '0.weight'",
    ),
    "huge network": (lambda made: made.settings(model__kwargs={"width": 10**9}), "own_project:small.* called with"),
    "weights tied to nothing": (lambda made: made.checkpoint("dense", tied={"0.weight": "x"}), "ties tensors to"),
    "description that is a bomb": (
        lambda made: (made.model / "MLmodel").write_text(
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
        ),
        "aliases repeat",
    ),
}


def outside(shop: Shop) -> dict[str, float]:
    """Return what lies in the project and around it, but for MLflow's own."""
    files = [path for path in shop.root.parent.rglob("*") if not path.is_dir()]
    return {str(path): path.stat().st_mtime for path in files if "mlflow.db" not in path.name}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_a_hostile_version_runs_or_is_written_and_the_reason_is_said(
    kind: str, stall: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_sandbox, "SECONDS", 5)
    monkeypatch.setattr(onnx_sandbox, "PATIENCE", 60)
    change, reason = KINDS[kind]
    number = made_up(stall, change)
    before = outside(stall)
    with pytest.raises(SecateurError, match=reason) as caught:
        promote.examine(stall.settings, stall.workspace)
    assert "pydantic" not in str(caught.value)
    version = mlflow_models.find(stall.settings, number=number)
    try:
        restore.restore(stall.settings, version, Path("back"), stall.workspace, ("code",))
    except SecateurError:
        assert not Path("back").exists()
    else:
        assert not [path for path in Path("back").rglob("*") if path.suffix == ".py" or path.name.startswith(".")]
        shutil.rmtree("back")
    try:
        promote.roll_back(stall.settings, number)
    except SecateurError:
        found = mlflow_models.at(stall.settings, mlflow_models.PRODUCTION)
        assert found
        assert found.number == "1"
        assert outside(stall) == before
    else:
        Path("promotions.jsonl").unlink()
        mlflow_models.assign(stall.settings, mlflow_models.PRODUCTION, "1")
    assert not Path("ran").exists()
    assert not Path("../outside").exists()
    assert not Path("/tmp/outside").exists()
