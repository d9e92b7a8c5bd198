"""Write a model as a Hugging Face folder that the stock class loads, and prove in a fresh process that it does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning.containers import Inputs, as_call, named_inputs, named_outputs
from pruning.errors import VerificationError
from pruning.io import stock_class
from pruning.io.checkpoint import load_checkpoint, save_checkpoint
from pruning.io.huggingface import CONFIG, Pretrained, listed, quietly, transformers
from pruning.plan.carry_over import TOLERANCE
from pruning.plan.plan import Plan
from pruning.plan.verification import relative_difference

EXAMPLE = "example.safetensors"
MAX_SHARD_SIZE = "5GB"
"""Weights that take more are divided over several files."""

COPIED = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe"})
"""What tokenizers, processors and generation settings are kept in."""

_LARGESTCOPIED = 2**28


def save_pretrained(into: Path, model: nn.Module, config: Mapping[str, Any], source: Pretrained, card: str) -> None:
    """Write a folder that the stock class loads, beside what else the source's folder holds for its use.

    Args:
        into: An empty folder.
        model: An instance of the class, built from `config`.
        config: As `Pretrained.config_dict` gives it, with the sizes that the model has.
        source: Where the original came from; its tokenizer, processor and generation settings are copied.
        card: The model card, `README.md`.
    """
    saved: Any = model
    with quietly():
        saved.save_pretrained(into, max_shard_size=MAX_SHARD_SIZE)
    write_config(into, config, source)
    copy_companions(source, into)
    (into / "README.md").write_text(card, encoding="utf-8")


def write_config(into: Path, config: Mapping[str, Any], source: Pretrained, dtype: torch.dtype = torch.float32) -> None:
    """Write `config.json`, every field of it: what is left out has the class's default, which may be worked out."""
    stated = {"architectures": [source.class_name], "dtype": str(dtype).removeprefix("torch.")}
    document = {**config, **stated, "transformers_version": transformers().__version__}
    text = json.dumps({k: v for k, v in document.items() if not k.startswith("_")}, indent=2, sort_keys=True)
    (into / CONFIG).write_text(f"{text}\n", encoding="utf-8")


def copy_companions(source: Pretrained, into: Path) -> None:
    """Copy tokenizer, processor and generation settings byte for byte; of code only what a person trusts."""
    suffixes = COPIED | ({".py"} if source.trust_remote_code else set())
    for path in sorted(source.folder.iterdir()):
        left = path.name in _NOTCOPIED or path.name.endswith(".index.json") or path.name.startswith((".", "adapter_"))
        if path.is_file() and path.suffix in suffixes and not left and path.stat().st_size <= _LARGESTCOPIED:
            shutil.copyfile(path, into / path.name)


_NOTCOPIED = frozenset(
    {CONFIG, "README.md", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
)
"""What is written anew, and what names folders that state the width of the original's embeddings."""


def save_per_layer(
    into: Path, model: nn.Module, plan: Plan, source: Pretrained, example_inputs: Inputs, card: str
) -> None:
    """Write a folder for a model that no stock class builds, because its layers have sizes of their own.

    It holds the configuration of the original, the plan, and the weights that it leaves; `from_pretrained` loads it.
    The weights don't bear the name that transformers looks for: it says that there are none, instead of loading a part.

    Args:
        into: Where; replaced if it is there.
        model: What the plan leaves.
        plan: Of the class that the configuration builds.
        source: Where the original came from.
        example_inputs: One batch, with which the plan is replayed.
        card: The model card, `README.md`.
    """
    save_checkpoint(into, model, plan)
    write_config(into, source.config_dict(), source)
    copy_companions(source, into)
    given = _named(example_inputs, model)
    attention = source.overrides.get("attn_implementation")
    save_file(given, into / EXAMPLE, metadata={} if attention is None else {"attn_implementation": str(attention)})
    (into / "README.md").write_text(card, encoding="utf-8")


def from_pretrained(folder: str | Path) -> nn.Module:
    """Load a model from a folder that Secateur wrote: one of uniform sizes, or with a size for each layer.

    Args:
        folder: As the pipeline writes it; any other Hugging Face folder with weights in safetensors will do too.

    Returns:
        The model, in float32 and in evaluation mode, with the class that `config.json` names.

    Raises:
        SettingsError: There is no such folder, or transformers isn't installed.
        CheckpointError: The folder lacks something, or is damaged.
    """
    place = Path(folder)
    if not (place / EXAMPLE).is_file():
        source = Pretrained(place)
        model = source.build()
        source.load_weights(model)
        return model
    example, stated = _read_tensors(place / EXAMPLE)
    return load_checkpoint(place, Pretrained(place, overrides=stated).build, example)[0]


def _named(inputs: Inputs, model: nn.Module) -> dict[str, Tensor]:
    """Return inputs by the names that `forward` has for them, on the CPU."""
    given = (inputs,) if isinstance(inputs, Tensor) else inputs
    return {name: one.detach().cpu().contiguous() for name, one in named_inputs(given, model).items()}


def check_pretrained(folder: Path, model: nn.Module, inputs: Inputs, source: Pretrained) -> float:
    """Load a folder with the stock class in a fresh process, and compare what it computes.

    Args:
        folder: What `save_pretrained` wrote.
        model: The narrowed model.
        inputs: What both are given.
        source: Names the class.

    Returns:
        The largest difference, relative to the largest output.

    Raises:
        VerificationError: It doesn't load, keys are missing, unexpected or of another shape, or outputs differ.
    """
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        expected = {
            name: one for name, one in named_outputs(model.eval()(*args, **kwargs))[0].items() if "." not in name
        }
    name = source.auto_class if source.trust_remote_code and source.auto_class else source.class_name
    with tempfile.TemporaryDirectory() as beside:
        given, got = Path(beside, "inputs.safetensors"), Path(beside, "outputs.safetensors")
        save_file(_named(inputs, model), given)
        trust = ["--trust-remote-code"] if source.trust_remote_code else []
        command = [sys.executable, stock_class.__file__, str(folder), name, str(given), str(got), *trust]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise VerificationError(f"{name} doesn't load {folder}: {last}")
        found, stated = _read_tensors(got)
    wrong = {kind: json.loads(stated[kind]) for kind in ("missing", "unexpected", "mismatched")}
    if faults := [f"{kind}: {listed(keys)}" for kind, keys in wrong.items() if keys]:
        raise VerificationError(f"{name} loads {folder} with keys {'; '.join(faults)}; expected none")
    if not expected.keys() <= found.keys():
        raise VerificationError(f"{name} from {folder} gives {sorted(found)}, the narrowed model {sorted(expected)}")
    difference = relative_difference([expected[key].cpu() for key in expected], [found[key] for key in expected])
    if not difference <= TOLERANCE:
        raise VerificationError(
            f"{name} from {folder} differs from the narrowed model by {difference:.2e} of the largest output; expected "
            f"at most {TOLERANCE:.0e}"
        )
    return difference


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - it is no dict
