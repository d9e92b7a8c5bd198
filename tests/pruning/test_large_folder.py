"""Folders pruned without holding the model: what comes out is what the stock class loads, cut out of the original."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.architectures.architecture import enliven
from pruning.errors import CheckpointError, PlanError, VerificationError
from pruning.io.huggingface import INDEX, Pretrained
from pruning.io.huggingface_folder import check_pretrained
from pruning.io.offload import FolderWeights, build_without_values, run_from
from pruning.large_folder import prune_folder

transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::pruning.errors.UntriedWarning"),
    pytest.mark.filterwarnings("ignore::pruning.errors.UnprovenWarning"),
]

SIZES = {"vocab_size": 90, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
STREAM = "model.layers.0.self_attn.o_proj.weight:0"
TEXT = {"input_ids": torch.tensor([[3, 14, 15, 9, 26, 5, 35]])}


def folder_of(kind: str, config: Any, place: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    enliven(model)
    model.to(dtype).save_pretrained(place, max_shard_size="20KB")
    return place


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied one of bfloat16 in several files; not to be changed."""
    config = transformers.LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True)
    return folder_of("LlamaForCausalLM", config, tmp_path_factory.mktemp("llama"))


def test_a_folder_is_cut_in_its_own_type_and_loads_in_the_stock_class(llama: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    samples = [{"input_ids": torch.randint(90, (2, 12), generator=generator)} for _ in range(2)]
    source, place = Pretrained(llama), tmp_path / "out"
    out = prune_folder(source, place, TEXT, samples=samples, mac_reduction=0.3, shard_bytes=20_000, scope="global")
    assert out.changes.keys() <= {"hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"}
    assert all(after < before for before, after in out.changes.values())
    assert out.changes
    files = Pretrained(tmp_path / "out").weight_files()
    assert files[0].name == INDEX
    assert len(files) > 2
    model, info = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}
    assert model.config.intermediate_size == out.changes["intermediate_size"][1]
    # Every value is one of the original's, to the bit.
    held = {name: tensor for path in files[1:] for name, tensor in load_file(path).items()}
    cut = held["model.layers.0.mlp.down_proj.weight"]
    whole = transformers.LlamaForCausalLM.from_pretrained(llama).model.layers[0].mlp.down_proj.weight
    inner, stream = out.plan.removed["model.layers.0.mlp.gate_proj.weight:0"], out.plan.removed[STREAM]
    rows, columns = ([i for i in range(size) if i not in lost] for size, lost in ((48, stream), (80, inner)))
    assert torch.equal(cut, whole[rows][:, columns])
    assert check_pretrained(tmp_path / "out", model.float(), TEXT, Pretrained(tmp_path / "out")) < 1e-5


def test_a_number_from_which_the_class_works_out_more_is_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=90, n_embd=48, n_layer=1, n_head=3)
    source = Pretrained(folder_of("GPT2LMHeadModel", config, tmp_path / "in"))
    out = prune_folder(source, tmp_path / "out", TEXT, parameter_reduction=0.1)
    assert list(out.changes) == ["n_inner"]
    assert "works out more than sizes" in out.refused["n_embd"]


def test_reading_on_demand_gives_the_outputs_of_the_loaded_model_and_leaves_the_model_empty(llama: Path) -> None:
    source = Pretrained(llama)
    model = build_without_values(source)
    found = run_from(model, FolderWeights.of(source, model), TEXT)
    expected = transformers.LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32)(**TEXT, use_cache=False)
    assert torch.equal(found[0], expected.logits)
    assert model.get_parameter("model.layers.0.mlp.up_proj.weight").is_meta


def test_what_cannot_be_is_refused(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="isn't empty"):
        prune_folder(Pretrained(llama), tmp_path / "full", TEXT, mac_reduction=0.3)
    vit = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=3, image_size=32, patch_size=8
    )
    older = Pretrained(folder_of("ViTForImageClassification", vit, tmp_path / "vit"))
    with pytest.raises(CheckpointError, match=r"no weights by the names of ViT.*save_pretrained"):
        prune_folder(older, tmp_path / "out", {"pixel_values": torch.zeros(1, 3, 32, 32)}, mac_reduction=0.3)
    other = shutil.copytree(llama, tmp_path / "other")
    text = (
        (other / "config.json")
        .read_text(encoding="utf-8")
        .replace('"intermediate_size": 80', '"intermediate_size": 96')
    )
    (other / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"don't fit its configuration: model.layers.0.mlp.*\[80, 48\].*\[96, 48\]"
    ):
        prune_folder(Pretrained(other), tmp_path / "out", TEXT, mac_reduction=0.3)
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_files_that_hold_something_else_than_was_cut_are_noticed(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = FolderWeights.stored
    monkeypatch.setattr(FolderWeights, "stored", lambda self, name: 2 * stored(self, name))
    monkeypatch.setattr(FolderWeights, "__getitem__", lambda self, name: stored(self, name).float())
    with pytest.raises(VerificationError, match="differs from the masked original"):
        prune_folder(Pretrained(llama), tmp_path / "out", TEXT, mac_reduction=0.3)


def test_no_number_that_can_be_changed_is_an_error(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruning.large_folder.TOLERANCE", -1.0)
    with pytest.raises(PlanError, match=r"no number in the configuration of .* can be changed"):
        prune_folder(Pretrained(llama), tmp_path / "out", TEXT, mac_reduction=0.3)
