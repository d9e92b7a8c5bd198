"""Models of Hugging Face's transformers: read from a folder, and written into one that the stock class loads.

    folder/
        config.json                             which class, and its sizes
        model.safetensors                       the weights; or model.safetensors.index.json and the files that it names
        tokenizer.json, preprocessor_config.json, generation_config.json, …     copied as they are

Nothing is downloaded, weights are read from safetensors alone, and code that a folder brings along isn't run unless a
person says so.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruning.errors import (
    CheckpointError,
    SettingsError,
    describe,
    pass_on,
    unknown_name,
)
from pruning.io.files import JsonError, checked_json, shards_of

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "model.ckpt")
FOREIGN = ("tf_model.h5", "flax_model.msgpack", "model.gguf")
_SHOWN = 6

log = logging.getLogger(__name__)


def transformers() -> Any:
    """Import transformers.

    Raises:
        SettingsError: It isn't installed.
    """
    try:
        import transformers as found
    except ModuleNotFoundError as fault:
        raise SettingsError(
            f'models of Hugging Face need {fault.name}, which isn\'t installed; run `pip install "secateur[hf]"`'
        ) from fault
    return found


def find_folder(
    name: str, revision: str | None = None, *, allow_download: bool = False, with_code: bool = False
) -> Path:
    """Return the folder of a path, or of a repository on the hub.

    Args:
        name: A folder; or, if downloads are allowed, `org/name`.
        revision: Of the repository.
        allow_download: Whether what isn't in Hugging Face's cache is downloaded.
        with_code: Whether Python code is downloaded too.

    Raises:
        SettingsError: There is no such folder, and it isn't to be downloaded or can't be.
    """
    if Path(name).exists() or not allow_download:
        return Path(name)
    transformers()
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken", *(["*.py"] if with_code else [])]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as fault:
        pass_on(fault)
        text = str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
        raise SettingsError(f"model.from_pretrained {name!r} is no folder, and can't be downloaded: {text}") from fault


@dataclass(frozen=True)
class Pretrained:
    """A model in a Hugging Face folder.

    Attributes:
        folder: Holds `config.json` and weights in safetensors.
        auto_class: Name of the class, `AutoModelForSequenceClassification` or `BertForSequenceClassification`; None for
            the one that `config.json` names.
        overrides: Fields of the configuration with another value, such as num_labels or attn_implementation.
        trust_remote_code: Whether code that the folder brings along is run.

    Raises:
        SettingsError: There is no such folder, or no such class or field.
        CheckpointError: The folder lacks something, or holds what isn't read.
    """

    folder: Path
    auto_class: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False

    @cached_property
    def config(self) -> Any:
        """The configuration, with the fields that were given."""
        library = transformers()
        document = self._document
        known = library.models.auto.configuration_auto.CONFIG_MAPPING
        kind = document.get("model_type")
        if "auto_map" in document and kind not in known and not self.trust_remote_code:
            files = sorted({str(name).partition(".")[0] for name in document["auto_map"].values()})
            raise SettingsError(
                f"{self.folder / CONFIG} names code of its own ({', '.join(files)}.py), which isn't run. If you have "
                "read it and trust it, set model.trust_remote_code to true"
            )
        if kind not in known and not self.trust_remote_code:
            raise SettingsError(
                f"{self.folder / CONFIG}: transformers {library.__version__} has no "
                f"{unknown_name('model_type', str(kind), known)}"
            )
        plain = {key: value for key, value in self.overrides.items() if key != "attn_implementation"}
        try:
            found, unused = library.AutoConfig.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=self.trust_remote_code,
                return_unused_kwargs=True, **copy.deepcopy(plain),
            )  # fmt: skip
        except Exception as fault:
            pass_on(fault)
            raise SettingsError(
                f"{self.folder / CONFIG} can't be read as a configuration: {describe(fault)}"
            ) from fault
        if unused:
            names = [name for name in found.to_dict() if not name.startswith("_")]
            raise SettingsError(unknown_name(f"field in the configuration of {self.folder}", min(unused), names))
        return found

    @cached_property
    def _document(self) -> dict[str, Any]:
        """What `config.json` holds."""
        if not self.folder.is_dir():
            raise SettingsError(
                f"there is no folder {self.folder}; expected one with {CONFIG} and {WEIGHTS}, as save_pretrained "
                "writes it. Nothing is downloaded unless model.allow_download is true"
            )
        path = self.folder / CONFIG
        try:
            return checked_json(path.read_bytes(), dict[str, Any])
        except FileNotFoundError as fault:
            raise CheckpointError(
                f"{self.folder} has no {CONFIG}; expected a folder that save_pretrained wrote"
            ) from fault
        except JsonError as fault:
            raise CheckpointError(f"{path} is damaged: {fault}; bring the folder again") from fault

    def config_dict(self) -> dict[str, Any]:
        """Return the configuration as nested values, every field of it."""
        found: dict[str, Any] = self.config.to_dict()
        return found

    def build(self, config: Mapping[str, Any] | None = None, shapes_only: bool = False) -> nn.Module:
        """Build the class with fresh weights, in float32.

        Args:
            config: Another configuration, as `config_dict` gives it.
            shapes_only: Whether on the meta device, without values.

        Raises:
            SettingsError: There is no such class for the configuration.
        """
        if config is None:
            try:
                return self._built(copy.deepcopy(self.config), shapes_only)
            except Exception as fault:
                pass_on(fault)
                what = f"{self.class_name} can't be built from {self.folder / CONFIG}"
                raise SettingsError(f"{what}: {describe(fault)}") from fault
        with quietly():
            made = type(self.config).from_dict(copy.deepcopy(dict(config)))
        return self._built(made, shapes_only)

    def _built(self, config: Any, shapes_only: bool) -> nn.Module:
        attention = self.overrides.get("attn_implementation")
        options = {"dtype": torch.float32} | ({} if attention is None else {"attn_implementation": attention})
        with quietly(), torch.device("meta" if shapes_only else "cpu"):
            model: nn.Module = self._class._from_config(config, **options)
        return for_one_pass(model.eval())

    def optional_fields(self) -> list[tuple[str]]:
        """Return the names of fields that the class looks for and the configuration doesn't have."""
        kind = type(self.config)
        asked: dict[str, None] = {}

        def note(_config: Any, name: str) -> Any:
            asked[name] = None
            raise AttributeError(name)

        own = kind.__dict__.get("__getattr__")
        kind.__getattr__ = note
        try:
            self.build(shapes_only=True)
        finally:
            if own is None:
                del kind.__getattr__
            else:
                kind.__getattr__ = own
        return [(name,) for name in asked if not name.startswith("_")]

    @property
    def class_name(self) -> str:
        """The name of the class."""
        return str(self._class.__name__)

    @cached_property
    def _class(self) -> Any:
        library, config = transformers(), self.config
        asked = self.auto_class
        if asked is None:
            named = self._document.get("architectures") or []
            if not named or not hasattr(library, named[0]):
                raise SettingsError(
                    f"{self.folder / CONFIG} names {named[0] if named else 'no class'!r} for its architecture, which "
                    "transformers doesn't have; name one with model.auto_class"
                )
            asked = named[0]
        found = getattr(library, asked, None) if asked.isidentifier() else None
        if found is None or not isinstance(found, type):
            near = get_close_matches(asked, [name for name in dir(library) if "Model" in name or "For" in name], 5)
            raise SettingsError(f"model.auto_class: {unknown_name('class in transformers', asked, near)}")
        mapping = getattr(found, "_model_mapping", None)
        auto: Any = found
        if mapping is None:
            return self._concrete(auto)
        remote = getattr(config, "auto_map", {})
        if type(config) not in mapping and not (self.trust_remote_code and asked in remote):
            raise SettingsError(
                f"model.auto_class: {asked} has no class for {self._held}; it has one with "
                f"{', '.join(self._autos()) or 'no auto class'}"
            )
        with torch.device("meta"), quietly():
            return type(auto.from_config(copy.deepcopy(config), trust_remote_code=self.trust_remote_code))

    @property
    def _held(self) -> str:
        named = self._document.get("architectures") or ["model"]
        return f"the {named[0]} of {self.folder} (model_type {self.config.model_type!r})"

    def _concrete(self, found: Any) -> Any:
        if not issubclass(found, nn.Module) or not isinstance(self.config, getattr(found, "config_class", None) or ()):
            raise SettingsError(
                f"model.auto_class: {found.__name__} doesn't take {self._held}; leave auto_class out, or name "
                f"{' or '.join(self._autos()) or 'the class of the folder'}"
            )
        return found

    def _autos(self) -> list[str]:
        """Return the auto classes that know the configuration, the one of the folder's own class first."""
        library = transformers()
        own = set(self._document.get("architectures") or [])
        found = []
        for name in dir(library):
            mapping = getattr(getattr(library, name), "_model_mapping", None) if name.startswith("AutoModel") else None
            if mapping is not None and type(self.config) in mapping:
                there = mapping[type(self.config)]
                classes = there if isinstance(there, tuple) else (there,)
                found.append((not own & {one.__name__ for one in classes}, name))
        return [name for _, name in sorted(found)][:_SHOWN]

    def weight_files(self) -> list[Path]:
        """Return the files that hold the weights, their index first if they are several.

        Raises:
            CheckpointError: There are none, they are pickled, or one is missing.
        """
        folder = self.folder
        if (folder / WEIGHTS).is_file():
            return [folder / WEIGHTS]
        if not (folder / INDEX).is_file():
            pickled = [name for name in PICKLED if (folder / name).is_file()]
            pickled += sorted(path.name for path in folder.glob("pytorch_model-*.bin"))
            if pickled:
                raise CheckpointError(
                    f"{folder} holds pickled weights alone ({pickled[0]}), which aren't read: to unpickle is to run "
                    f'code. Where you trust it, convert it once: python -c "from transformers import AutoModel; '
                    f"AutoModel.from_pretrained('{folder}', use_safetensors=False).save_pretrained('…')\" (with the "
                    "class of its head in place of AutoModel)"
                )
            foreign = [name for name in FOREIGN if (folder / name).is_file()]
            if (folder / "adapter_config.json").is_file():
                raise CheckpointError(
                    f"{folder} holds an adapter, not a model; merge it into its base model (peft: "
                    "merge_and_unload) and save that"
                )
            raise CheckpointError(
                f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}"
                f"{f', and {foreign[0]} is not read' if foreign else ''}; save the model with save_pretrained"
            )
        try:
            files = shards_of(folder / INDEX)
        except JsonError as fault:
            raise CheckpointError(f"{folder / INDEX} is damaged: {fault}; bring the folder again") from fault
        if missing := [path.name for path in files if not path.is_file()]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(
                f"{folder / INDEX} names {missing[0]}{more} of {len(files)} files, which isn't there; bring all of them"
            )
        return [folder / INDEX, *sorted(files)]

    def load_weights(self, model: nn.Module, *, trains: bool = False) -> None:
        """Load the folder's weights into a model that `build` gave, in place.

        Args:
            model: What they are for.
            trains: Whether the model is trained then, so that a head which the folder doesn't have may be new.

        Raises:
            CheckpointError: Weights are missing, damaged or don't fit.
        """
        self.weight_files()
        found: Any
        try:
            with quietly(), torch.random.fork_rng(devices=[]):
                auto = self._class
                found, info = auto.from_pretrained(
                    self.folder, config=copy.deepcopy(self.config), dtype=torch.float32, use_safetensors=True,
                    local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True,
                )  # fmt: skip
        except Exception as fault:
            pass_on(fault)
            raise CheckpointError(f"the weights of {self.folder} can't be read: {describe(fault)}") from fault
        if reshaped := sorted(info["mismatched_keys"]):
            name, there, wanted = reshaped[0]
            more = f" and {len(reshaped) - 1} more" if len(reshaped) > 1 else ""
            raise CheckpointError(
                f"the weights of {self.folder} don't fit its {CONFIG}: {name} is {list(there)}, {self.class_name} has "
                f"{list(wanted)}{more}; they are those of another model, or model.kwargs changes their sizes"
            )
        missing, left = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if missing and not trains:
            raise CheckpointError(
                f"{self.folder} holds {self._held.removesuffix(f' of {self.folder}')}, and {self.class_name} has what "
                f"isn't in it: {listed(missing)}. Name the class that it holds with model.auto_class, or train what "
                "is new by baseline.recipe"
            )
        if missing:
            log.warning("%s has no weights for %s, which begin with random values", self.folder, listed(missing))
        if left:
            log.info("%s: not used by %s: %s", self.folder, self.class_name, listed(left))
        model.load_state_dict(found.state_dict())


def for_one_pass(model: nn.Module) -> nn.Module:
    """Make a model return what it is for: no cache of keys and values, and of a pair no state of the encoder.

    What a model returns stays whole, and such a state is as wide as the stream that it is.
    """
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        model.register_forward_hook(_without_state_of_encoder)
    return model


def _without_state_of_encoder(_module: nn.Module, _inputs: Any, outputs: Any) -> Any:
    if getattr(outputs, "encoder_last_hidden_state", None) is None or "logits" not in outputs:
        return outputs
    kept = {key: value for key, value in outputs.items() if key != "encoder_last_hidden_state"}
    return type(outputs)(**kept)


def listed(names: list[str]) -> str:
    """Join names for a message, the first few of them."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


@contextmanager
def quietly() -> Iterator[None]:
    """Leave out what transformers logs and shows while it builds and loads: what matters is said by us."""
    logging_of = transformers().utils.logging
    level, bars = logging_of.get_verbosity(), logging_of.is_progress_bar_enabled()
    logging_of.set_verbosity(logging_of.CRITICAL)
    logging_of.disable_progress_bar()
    try:
        yield
    finally:
        logging_of.set_verbosity(level)
        if bars:
            logging_of.enable_progress_bar()
