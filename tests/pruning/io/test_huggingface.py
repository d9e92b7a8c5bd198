"""Folders of Hugging Face: read, refused where they lack something or hold what isn't read, written, loaded again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import pruning
import secateur
from benchmarks.architectures.architecture import enliven
from benchmarks.architectures.from_transformers import MODELS
from pruning.containers import Inputs, main_output, named_outputs
from pruning.errors import CheckpointError, SettingsError, VerificationError
from pruning.io.huggingface import INDEX, WEIGHTS, Pretrained, find_folder
from pruning.io.huggingface_folder import check_pretrained, save_per_layer, save_pretrained
from pruning.io.onnx import export_onnx
from pruning.io.parity import check_parity
from pruning.plan.carry_over import TOLERANCE, carry_over
from pruning.plan.config_fields import find_config_fields, with_stated_numbers
from pruning.plan.configuration import changed
from tasks.environment import REPOSITORY

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::pruning.errors.UntriedWarning")  # labels, which nobody gives here


def folder_of(name: str, place: Path) -> tuple[Path, Inputs]:
    """Save a small model with random weights as its class does, and return inputs for it too."""
    kind, options, inputs = MODELS[name]
    made = getattr(transformers, kind)
    torch.manual_seed(0)
    model = made(made.config_class(**options)).eval()
    enliven(model)
    model.save_pretrained(place)
    return place, inputs(torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a small BERT with a head for sequences; not to be changed."""
    place = folder_of("bert", tmp_path_factory.mktemp("bert"))[0]
    (place / "tokenizer.json").write_text('{"version": "1.0"}\n', encoding="utf-8")
    (place / "special.py").write_text("raise SystemExit\n", encoding="utf-8")
    return place


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "bert")


def config_of(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def loaded(source: Pretrained) -> torch.nn.Module:
    model = source.build()
    source.load_weights(model)
    return model


def test_a_folder_is_read_with_the_class_that_it_names_or_the_one_asked_for(whole: Path) -> None:
    expected = transformers.BertForSequenceClassification.from_pretrained(whole)
    for asked in (None, "AutoModelForSequenceClassification", "BertForSequenceClassification"):
        source = Pretrained(whole, asked)
        model = loaded(source)
        assert (type(model), source.class_name) == (type(expected), "BertForSequenceClassification")
        assert not model.training
        assert all(torch.equal(one, expected.state_dict()[name]) for name, one in model.state_dict().items())
    assert type(loaded(Pretrained(whole, "AutoModel"))) is transformers.BertModel, "what the head had is left out"


def test_fields_of_the_configuration_can_be_given(whole: Path) -> None:
    model: Any = Pretrained(whole, overrides={"hidden_dropout_prob": 0.0, "attn_implementation": "eager"}).build()
    assert model.config.hidden_dropout_prob == 0
    assert model.config._attn_implementation == "eager"
    with pytest.raises(SettingsError, match=r"'hidden_dropuot_prob'.*did you mean 'hidden_dropout_prob'"):
        Pretrained(whole, overrides={"hidden_dropuot_prob": 0.0}).build()


def test_bfloat16_in_several_files_is_read_as_float32(whole: Path, tmp_path: Path) -> None:
    half = transformers.BertForSequenceClassification.from_pretrained(whole, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(Pretrained(tmp_path).weight_files()) > 3
    model = loaded(Pretrained(tmp_path))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert torch.equal(next(model.parameters()), next(half.parameters()).float())


def test_shapes_alone_take_no_memory_and_no_random_numbers(whole: Path) -> None:
    state = torch.get_rng_state()
    model = Pretrained(whole).build(shapes_only=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_a_missing_file_of_several_is_named(whole: Path, tmp_path: Path) -> None:
    transformers.BertForSequenceClassification.from_pretrained(whole).save_pretrained(tmp_path, max_shard_size="40KB")
    gone = sorted(tmp_path.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(CheckpointError, match=rf"{INDEX} names {gone.name} of \d+ files, which isn't there"):
        loaded(Pretrained(tmp_path))
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "../other.safetensors"}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"is damaged: .* no file beside it"):
        loaded(Pretrained(tmp_path))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda f: shutil.rmtree(f), SettingsError, "there is no folder .* unless model.allow_download is true"),
        (lambda f: (f / "config.json").unlink(), CheckpointError, "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), CheckpointError, "config.json is damaged: no JSON"),
        (lambda f: (f / WEIGHTS).unlink(), CheckpointError, "has no weights: neither model.safetensors nor"),
        (lambda f: (f / WEIGHTS).write_bytes(b"nothing"), CheckpointError, "the weights of .* can't be read"),
        (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), CheckpointError, "pickled weights alone .*n't"),
        (lambda f: (f / WEIGHTS).rename(f / "model.gguf"), CheckpointError, "model.gguf is not read"),
        (
            lambda f: ((f / WEIGHTS).unlink(), (f / "adapter_config.json").write_text("{}")),
            CheckpointError,
            "holds an adapter, not a model; merge it",
        ),
        (
            lambda f: config_of(f, lambda c: c.update(intermediate_size=81)),
            CheckpointError,
            r"don't fit its config.json: .*intermediate.dense.bias is \[80\], .* has \[81\] and 5 more",
        ),
        (lambda f: config_of(f, lambda c: c.update(hidden_size=47)), SettingsError, "47"),
        (lambda f: config_of(f, lambda c: c.update(model_type="brt")), SettingsError, "model_type 'brt'.*'bert'"),
        (
            lambda f: config_of(f, lambda c: c.update(model_type="own", auto_map={"AutoModel": "special.Own"})),
            SettingsError,
            r"names code of its own \(special.py\), which isn't run.*model.trust_remote_code",
        ),
        (
            lambda f: config_of(f, lambda c: c.update(architectures=["OwnModel"])),
            SettingsError,
            "names 'OwnModel' for its architecture, which transformers doesn't have",
        ),
    ],
)  # fmt: skip
def test_a_wrong_folder_is_one_clear_message(
    folder: Path, change: Callable[[Path], object], error: type[Exception], text: str
) -> None:
    change(folder)
    with pytest.raises(error, match=text) as caught:
        loaded(Pretrained(folder))
    assert "\n" not in str(caught.value)


def test_a_class_that_the_folder_does_not_hold_is_refused_with_those_that_fit(whole: Path) -> None:
    with pytest.raises(SettingsError, match=r"AutoModelForImageClassification has no class for .*AutoModelForSequence"):
        Pretrained(whole, "AutoModelForImageClassification").build()
    with pytest.raises(SettingsError, match="GPT2Model doesn't take the BertForSequenceClassification of"):
        Pretrained(whole, "GPT2Model").build()
    with pytest.raises(SettingsError, match=r"'AutoModelForSequenceClasification'.*did you mean"):
        Pretrained(whole, "AutoModelForSequenceClasification").build()
    source = Pretrained(whole, "AutoModelForMaskedLM")
    with pytest.raises(CheckpointError, match=r"BertForMaskedLM has what isn't in it: cls\.predictions"):
        loaded(source)
    source.load_weights(source.build(), trains=True)


OWN = """
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


class OwnConfig(PretrainedConfig):
    model_type = "own-of-a-test"

    def __init__(self, width=12, **kwargs):
        self.width = width
        super().__init__(**kwargs)


class Own(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.first, self.last = nn.Linear(4, config.width), nn.Linear(config.width, 2)
        self.post_init()

    def forward(self, pixels):
        return {"logits": self.last(self.first(pixels).relu())}
"""


def test_code_of_a_folder_is_run_only_by_who_trusts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    place = tmp_path / "own"
    place.mkdir()
    (place / "modelling.py").write_text(OWN, encoding="utf-8")
    names = {"AutoConfig": "modelling.OwnConfig", "AutoModel": "modelling.Own"}
    config = {"model_type": "own-of-a-test", "auto_map": names, "architectures": ["Own"], "width": 12}
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    state = {"first.weight": torch.randn(12, 4), "first.bias": torch.randn(12), "last.weight": torch.randn(2, 12),
             "last.bias": torch.randn(2)}  # fmt: skip
    save_file(state, place / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(SettingsError, match=r"names code of its own \(modelling\.py\), which isn't run"):
        loaded(Pretrained(place, "AutoModel"))
    assert not (tmp_path / "modules").exists()
    model = loaded(Pretrained(place, "AutoModel", trust_remote_code=True))
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in state.items())


def test_nothing_is_downloaded_unasked(tmp_path: Path) -> None:
    assert find_folder("org/name") == Path("org/name")
    with pytest.raises(SettingsError, match="there is no folder org/name"):
        Pretrained(find_folder("org/name")).build()
    assert find_folder(str(tmp_path), allow_download=True) == tmp_path


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as serves one repository, from a folder."""

    folder: Path

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _answer(self) -> bytes:
        files = sorted(self.folder.iterdir())
        headers = {}
        if "/tree/" in self.path:
            tree = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in files]
            found = json.dumps(tree).encode()
        elif self.path.startswith("/api/models/org/small/"):
            document = {"id": "org/small", "sha": COMMIT, "siblings": [{"rfilename": p.name} for p in files]}
            found = json.dumps(document).encode()
        else:
            found = (self.folder / self.path.rpartition("/")[2]).read_bytes()
            headers = {"etag": f'"{sha256(found).hexdigest()}"', "x-repo-commit": COMMIT}
        self.send_response(200)
        for name, value in {**headers, "content-length": str(len(found))}.items():
            self.send_header(name, value)
        self.end_headers()
        return found

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def do_HEAD(self) -> None:
        self._answer()


LOAD = """
from pruning.io.huggingface import Pretrained, find_folder
folder = find_folder("org/small", "COMMIT", allow_download=True)
source = Pretrained(folder)
source.load_weights(source.build())
print(folder.name, sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.thorough
def test_a_repository_is_downloaded_where_that_is_allowed_and_code_stays_out(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"folder": folder}))
    Thread(target=server.serve_forever, daemon=True).start()
    places = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    plain = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", LOAD.replace("COMMIT", COMMIT)]
    environment = {**os.environ, **places, **plain, "PYTHONPATH": str(REPOSITORY)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == [COMMIT, "['config.json', 'model.safetensors', 'tokenizer.json']\n"]
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert again.stdout == done.stdout, "without the hub it is found in the cache"


IN_MINUTES = ("qwen2", "qwen3", "mistral", "gemma3", "opt", "distilbert", "roberta", "t5", "vit", "whisper")
CHECKED = [
    *(pytest.param(name, marks=pytest.mark.thorough) for name in ("llama", "phi3", "gpt2", "bert")),
    *(pytest.param(name, marks=pytest.mark.slow) for name in IN_MINUTES),
]
EAGER = {"t5": {"attn_implementation": "eager"}}
"""The exporter stops at a `reshape` in T5 with the other attention, pruned or not."""


@pytest.mark.parametrize("name", CHECKED)
def test_a_folder_goes_in_and_a_smaller_one_comes_out_that_the_stock_class_loads(name: str, tmp_path: Path) -> None:
    folder, inputs = folder_of(name, tmp_path / "in")
    source = Pretrained(folder, overrides=EAGER.get(name, {}))
    model = loaded(source)
    groups = pruning.find_groups(model, inputs, allow_mixed=True)
    config = with_stated_numbers(groups, source.config_dict(), source.build, source.optional_fields())
    found = find_config_fields(groups, config, source.build)
    plan = pruning.make_plan(groups.with_common_sizes(found.fields), scope="global", mac_reduction=0.3)
    if name not in ("gemma3", "t5"):  # whose class works a factor out from the width of the stream
        assert any(groups[group].mixed for group in plan.removed), "the stream is narrower too"
    dense = pruning.narrow(model, plan, inputs, groups=groups)
    stock, after = carry_over(dense, plan, groups, found.fields, config, source.build)
    (tmp_path / "out").mkdir()
    save_pretrained(tmp_path / "out", stock, after, source, "a card\n")
    assert check_pretrained(tmp_path / "out", dense, inputs, source) <= TOLERANCE
    there, before = (Pretrained(place).config_dict() for place in (tmp_path / "out", folder))
    differing = {key for key in before if there.get(key) != before[key]}
    sizes = {str(path[0]) for field in found.fields for path in field.steps}
    assert differing <= sizes | {"dtype", "_name_or_path", "transformers_version"}
    assert sum(one.numel() for one in stock.parameters()) < sum(one.numel() for one in model.parameters())
    path = export_onnx(dense, inputs, tmp_path / "model.onnx")
    assert check_parity(path, dense, inputs, by_class=False).max_relative_difference < 1e-4


@pytest.mark.thorough
def test_a_folder_that_differs_from_the_model_is_found_out_in_the_fresh_process(whole: Path, tmp_path: Path) -> None:
    _, _, make_inputs = MODELS["bert"]
    inputs, source = make_inputs(torch.Generator().manual_seed(1)), Pretrained(whole)
    model = loaded(source)
    save_pretrained(tmp_path, model, source.config_dict(), source, "a card\n")
    assert (tmp_path / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()
    assert not (tmp_path / "special.py").exists(), "code isn't copied unless it is trusted"
    assert check_pretrained(tmp_path, model, inputs, source) <= TOLERANCE
    with torch.no_grad():
        model.get_parameter("classifier.bias").add_(1)
    with pytest.raises(VerificationError, match="differs from the narrowed model by"):
        check_pretrained(tmp_path, model, inputs, source)
    config_of(tmp_path, lambda config: config.update(intermediate_size=79))
    with pytest.raises(VerificationError, match=r"mismatched: .*intermediate"):
        check_pretrained(tmp_path, model, inputs, source)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(VerificationError, match="BertForSequenceClassification doesn't load"):
        check_pretrained(tmp_path, model, inputs, source)


@pytest.mark.parametrize("name", ["bert-eager", "vit"])
def test_sizes_of_single_layers_are_loaded_by_secateur_alone(name: str, tmp_path: Path) -> None:
    folder, inputs = folder_of(name, tmp_path / "in")
    source = Pretrained(folder, overrides={"attn_implementation": "eager"} if name == "bert-eager" else {})
    model = loaded(source)
    groups = pruning.find_groups(model, inputs)
    plan = pruning.make_plan(groups, scope="global", parameter_reduction=0.3)
    dense = pruning.narrow(model, plan, inputs, groups=groups)
    save_per_layer(tmp_path / "out", dense, plan, source, inputs, "a card\n")
    again = secateur.from_pretrained(tmp_path / "out")
    assert type(again) is type(model)
    given = inputs if isinstance(inputs, dict) else {"pixel_values": inputs}
    with torch.no_grad():
        assert torch.equal(main_output(again(**given)), main_output(dense(**given)))
        assert named_outputs(again(**given))[0].keys() == {"logits"}
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert sum(p.numel() for p in secateur.from_pretrained(folder).parameters()) == sum(
        p.numel() for p in model.parameters()
    )


def test_a_nested_configuration_is_changed_without_touching_the_first() -> None:
    before = {"text": {"sizes": (1, 2)}, "width": 4}
    assert changed(before, {("text", "sizes", 1): 5}) == {"text": {"sizes": [1, 5]}, "width": 4}
    assert before == {"text": {"sizes": (1, 2)}, "width": 4}
