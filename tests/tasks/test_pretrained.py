"""A Hugging Face folder through the pipeline: settings, every stage, the folder that comes out, a version of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from pydantic import ValidationError

import secateur
from benchmarks.architectures.architecture import enliven
from benchmarks.architectures.from_transformers import MODELS
from pruning.containers import main_output
from pruning.errors import CheckpointError, SettingsError, WorkspaceError
from pruning.plan.verification import relative_difference
from secateur.cli import commands
from secateur.inspection import Source, inspect
from tasks.config.schema import Settings, load
from tasks.config.training_schema import Model
from tasks.data import read_description, read_inputs
from tasks.fingerprint import origin
from tasks.models import example_inputs, load_model, pretrained
from tasks.registry.mlflow_models import at
from tasks.registry.register import register
from tasks.registry.restore import restore
from tasks.registry.trust import settings_to_measure_by
from tasks.stage_table import NAMES, find_stage
from tasks.workspace import Workspace
from tests.tasks.test_pipeline import Project, made

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::pruning.errors.UntriedWarning")  # inputs_embeds, which nobody gives

DATA = '''
import torch
from torch.utils.data import Dataset


class Tokens(Dataset):
    """Random tokens, of which every second row is padded; the class is told by the first."""

    def __init__(self, number, count, labels):
        generator = torch.Generator().manual_seed(number)
        self.ids = torch.randint(5, 95, (count, 13), generator=generator)
        self.mask = torch.ones(count, 13, dtype=torch.long)
        self.mask[::2, 9:] = 0
        self.labels = labels

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        ids = self.ids[index]
        if self.labels == "next":
            return {"input_ids": ids, "labels": ids.clone()}
        return {"input_ids": ids, "attention_mask": self.mask[index], "labels": int(ids[0] > 50)}


def load(labels="class"):
    parts = {name: Tokens(n, count, labels) for n, (name, count) in
             enumerate({"train": 128, "validation": 48, "test": 40}.items())}
    return {**parts, "classes": ("low", "high")} if labels == "class" else parts
'''


def folder_of(name: str, place: Path, **options: Any) -> Path:
    kind, given, _ = MODELS[name]
    made_of = getattr(transformers, kind)
    torch.manual_seed(0)
    model = made_of(made_of.config_class(**{**given, **options})).eval()
    enliven(model)
    model.save_pretrained(place)
    (place / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    return place


def project(
    root: Path, writer: Callable[..., Path], name: str, stages: Any = NAMES, labels: str = "class", **prune: Any
) -> Project:
    folder_of(name, root / "given")
    (root / "own_tokens.py").write_text(DATA, encoding="utf-8")

    def change(settings: dict[str, Any]) -> None:
        settings["data"] = {"factory": "own_tokens:load", "kwargs": {"labels": labels}}
        settings["model"] = {"from_pretrained": "given"}
        settings["task"] = {"name": "sequence_classification" if labels == "class" else "causal_lm"}
        settings["training"] = {"batch_size": 64}
        settings["baseline"] = {"recipe": None}
        settings["analyze"] = {"rates": []}
        settings["prune"] = {
            "target": {"mac_reduction": 0.3}, "iterations": 1, "recipes": [], "residual_streams": "always",
            "min_channels": 1, "round_to": 1, "max_accuracy_drop": 0.99, "recover": {"num_samples": 64},
        } | prune  # fmt: skip

    return made(root, writer, stages, change)


def settings_with(model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    return {"data": {"factory": "zoo.datasets:digits"}, "model": model, "baseline": {"recipe": None},
            "prune": {"target": {"mac_reduction": 0.5}}, **sections}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"from_pretrained": "x", "factory": "zoo.models:resnet20"}, "from_pretrained and factory are both given"),
        ({"factory": "zoo.models:resnet20", "auto_class": "AutoModel"}, "auto_class goes with from_pretrained"),
        ({"factory": "pruning.io.huggingface:Pretrained"}, "give from_pretrained, a Hugging Face folder"),
        ({"from_pretrained": "x", "auto_class": "os.system"}, "pattern"),
        ({"from_pretrained": "x", "trust_remote_code": "yes"}, "valid boolean"),
        ({"from_pretrained": "org/x", "allow_download": True}, "allow_download needs revision, the commit"),
        ({"from_pretrained": "org/x", "allow_download": True, "revision": "main"}, "pattern"),
        ({}, "Field required"),
    ],
)
def test_a_model_has_one_source(model: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        Model.model_validate(model)


def test_settings_of_a_folder_need_no_weights_and_survive_their_own_form() -> None:
    found = Settings.model_validate(settings_with({"from_pretrained": "some/bert"}))
    assert (found.keeps_class, found.model.source) == (True, "model.from_pretrained 'some/bert'")
    assert found.subject.endswith("(bert on digits)")
    assert Settings.model_validate(found.model_dump()) == found
    free = settings_with({"from_pretrained": "x"}, prune={"target": {"mac_reduction": 0.5}, "sizes": "per_layer"})
    assert not Settings.model_validate(free).keeps_class


@pytest.mark.parametrize(
    ("model", "prune", "text"),
    [
        ({"factory": "zoo.models:resnet20", "weights": __file__}, {"sizes": "uniform"}, "give model.from_pretrained"),
        ({"from_pretrained": "x"}, {"blocks": "allowed"}, "no config.json can state; set prune.sizes to per_layer"),
        ({"from_pretrained": "x"}, {"allocation": {"strategy": "sensitivity"}}, "set prune.sizes to per_layer"),
    ],
)
def test_uniform_sizes_suit_the_rest_or_are_refused(model: dict[str, Any], prune: dict[str, Any], text: str) -> None:
    given = settings_with(model, prune={"target": {"mac_reduction": 0.5}, **prune})
    with pytest.raises(ValidationError, match=text):
        Settings.model_validate(given)


def test_a_missing_folder_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings_with({"from_pretrained": "org/bert"})))
    settings = load(Path("params.yaml"))
    with pytest.raises(SettingsError, match=r"there is no folder org/bert.* Nothing is downloaded unless"):
        Source.of(settings).load()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, project_writer: Callable[..., Path]) -> Project:
    return project(tmp_path_factory.mktemp("bert"), project_writer, "bert")


@pytest.fixture
def inside(finished: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(finished.root)
    return finished


@pytest.mark.thorough
def test_every_stage_runs_and_the_stock_class_loads_what_comes_out(inside: Project) -> None:
    out = inside.root / "artifacts/dense/huggingface"
    model = transformers.BertForSequenceClassification.from_pretrained(out).eval()
    inputs = read_inputs(inside.settings, inside.workspace, "test").first(40).inputs
    example = example_inputs(inside.workspace, inside.settings)
    data = read_description(inside.workspace)
    dense, plan, meta = load_model(inside.workspace.folder("dense"), inside.settings, data, example)
    with torch.no_grad():
        found, expected = model(**inputs).logits, main_output(dense(**inputs))
        again = secateur.from_pretrained(out)(**inputs).logits
    assert relative_difference([expected], [found]) < 1e-5
    assert torch.equal(found, again)
    assert any("embeddings" in name for name in plan.removed), "the stream is narrower"
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert (config["hidden_size"] < 48, config["intermediate_size"] < 80) == (True, True)
    assert (out / "vocab.txt").read_bytes() == (inside.root / "given/vocab.txt").read_bytes()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{meta['measured']['macs']:,}" in card
    assert f"| data that it learned from | `{data.fingerprint}` |" in card


@pytest.mark.thorough
def test_a_changed_file_of_the_folder_is_a_changed_input(inside: Project) -> None:
    before = origin(find_stage("baseline"), inside.settings, inside.workspace)["files"]
    path = inside.root / "given/vocab.txt"
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}more\n", encoding="utf-8")
    try:
        after = origin(find_stage("baseline"), inside.settings, inside.workspace)["files"]
    finally:
        path.write_text(text, encoding="utf-8")
    assert before.keys() == after.keys() == {"model.from_pretrained"}
    assert before != after


@pytest.mark.thorough
def test_a_version_holds_the_folder_and_restore_brings_it_back(inside: Project, tmp_path: Path) -> None:
    params = Path("params.yaml")
    register(inside.settings, inside.workspace, params, params.read_bytes(), code=lambda: None)
    version = at(inside.settings, "candidate")
    assert version is not None
    restore(inside.settings, version, tmp_path / "restored", inside.workspace)
    there = tmp_path / "restored/artifacts/dense/huggingface"
    for path in (inside.root / "artifacts/dense/huggingface").iterdir():
        assert (there / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "restored/weights/model.safetensors").is_file(), "the original's weights are brought along"


@pytest.mark.thorough
def test_sizes_per_layer_leave_a_folder_that_secateur_loads(
    tmp_path: Path, project_writer: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    done = project(
        tmp_path, project_writer, "llama", NAMES[: NAMES.index("export")], labels="next", sizes="per_layer",
        residual_streams="never",
    )  # fmt: skip
    out = done.root / "artifacts/dense/huggingface"
    assert "transformers, GGUF and vLLM don't take it" in caplog.text
    model = secateur.from_pretrained(out)
    assert type(model).__name__ == "LlamaForCausalLM"
    measured = json.loads((done.root / "artifacts/dense/meta.json").read_text(encoding="utf-8"))["meta"]["measured"]
    assert sum(parameter.numel() for parameter in model.parameters()) == measured["parameters"]
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.LlamaForCausalLM.from_pretrained(out)
    assert "transformers, GGUF and vLLM don't load this folder" in (out / "README.md").read_text(encoding="utf-8")


@pytest.mark.thorough
def test_a_head_that_the_folder_lacks_is_trained_or_refused(
    tmp_path: Path, project_writer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = project(tmp_path, project_writer, "bert-lm", ["prepare"])
    monkeypatch.chdir(tmp_path)

    def load_again(**recipe: Any) -> Settings:
        given = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
        given["model"]["auto_class"] = "AutoModelForSequenceClassification"
        given["baseline"] = {"recipe": recipe or None}
        return Settings.model_validate(given)

    with pytest.raises(CheckpointError, match=r"BertForSequenceClassification has what isn't in it: .*classifier"):
        Project(tmp_path, load_again(), done.workspace).run("baseline")
    Project(tmp_path, load_again(epochs=1, batch_size=32), Workspace(Path("artifacts"))).run("baseline")
    assert (tmp_path / "artifacts/baseline/weights.safetensors").is_file()


@pytest.mark.thorough
def test_init_makes_a_project_around_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of("distilbert", tmp_path / "given")
    (tmp_path / "own_tokens.py").write_text(DATA, encoding="utf-8")
    options = ["--from-pretrained", "given", "--data", "own_tokens:load", "--yes"]
    done = CliRunner().invoke(commands, ["init", *options])
    assert done.exit_code == 0, done.output
    assert "DistilBertForSequenceClassification" in done.output
    settings = load(Path("params.yaml"))
    found = pretrained(settings)
    assert found is not None
    assert (found.class_name, settings.baseline.recipe) == ("DistilBertForSequenceClassification", None)
    source = Source.of(settings)
    model, example = source.load()
    free = inspect(model, example, replace(source.rules, round_to=1, pretrained=None)).predicted[0.3]
    fitting = inspect(model, example, replace(source.rules, round_to=1)).predicted[0.3]
    assert not isinstance(free, str)
    assert not isinstance(fitting, str)
    assert fitting.parameters != free.parameters, "the predicted sizes are those that the class can have"
    done = CliRunner().invoke(commands, ["init", *options, "--model", "net:make"])
    assert (done.exit_code, "takes the place of --model" in done.output) == (2, True)
    done = CliRunner().invoke(commands, ["init", "--auto-class", "AutoModel", "--yes"])
    assert (done.exit_code, "--auto-class goes with --from-pretrained" in done.output) == (2, True)


@pytest.mark.parametrize("name", ["trust_remote_code", "allow_download"])
def test_a_version_of_a_stranger_runs_no_code_and_downloads_nothing(name: str, tmp_path: Path) -> None:
    own = Settings.model_validate(settings_with({"from_pretrained": "given"}))
    path = tmp_path / "params.yaml"
    given = {"from_pretrained": "given", name: True, "revision": "a" * 40}
    path.write_text(yaml.safe_dump({"model": given}), encoding="utf-8")
    with pytest.raises(WorkspaceError, match=rf"set model\.{name} for 'given'; nothing was read"):
        settings_to_measure_by(own, path, None)
    same = Settings.model_validate(settings_with(given))
    assert getattr(settings_to_measure_by(same, path, None).model, name)
