"""A model of a Hugging Face folder whose weights stay on disk: each module's are read when it is called, then dropped.

model = build_without_values(source)              empty tensors lie on the meta device, what code computes is there
weights = FolderWeights.of(source, model)         name → tensor, read on demand
outputs = run_from(model, weights, inputs)        in the memory of the largest module
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pruning.containers import Inputs, as_call, outputs_in
from pruning.errors import CheckpointError, ModelError
from pruning.graph.dispatch import state_of
from pruning.io.huggingface import INDEX, WEIGHTS, Pretrained, listed

log = logging.getLogger(__name__)


class _EmptyWithoutValues(TorchFunctionMode):
    """Put what `torch.empty` gives on the meta device: it holds nothing yet."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def build_without_values(source: Pretrained, config: Mapping[str, Any] | None = None) -> nn.Module:
    """Build the class with its weights on the meta device, and with what code works out, such as rotary frequencies.

    Args:
        source: Names the class.
        config: Another configuration, as `Pretrained.config_dict` gives it.
    """
    with _EmptyWithoutValues():
        return source.build(config)


@dataclass(frozen=True)
class FolderWeights(Mapping[str, Tensor]):
    """The weights of a folder by the names that a model has for them, tied ones under each; read anew each time.

    Attributes:
        files: name -> file, in the order of the files; of what the model uses.
        names: name in the model -> name in the files, another one where it is tied to what has that.
    """

    files: Mapping[str, Path]
    names: Mapping[str, str]

    @classmethod
    def of(cls, source: Pretrained, model: nn.Module) -> FolderWeights:
        """Find a model's weights in a folder.

        Raises:
            CheckpointError: They have other names, or one is missing, damaged or of another shape.
        """
        listing = source.weight_files()
        files: dict[str, Path] = {}
        for path in listing[1:] or listing:
            try:
                with safe_open(path, framework="pt") as file:
                    files |= dict.fromkeys(file.keys(), path)
            except (SafetensorError, OSError) as fault:
                raise CheckpointError(f"{path} can't be read: {fault}; bring the file again") from fault
        state = state_of(model)
        tied: dict[int, str] = {id(state[name]): name for name in files if name in state}
        kept = model.state_dict().keys()  # not what a class works out when it is built
        names = {name: name if name in files else tied.get(id(state[name]), "") for name in state if name in kept}
        if missing := sorted(name for name, there in names.items() if not there):
            raise CheckpointError(
                f"{source.folder} has no weights by the names of {source.class_name}: {listed(missing)}. Where they "
                "are there by older names, or by those of another head, load the folder with transformers and write it "
                "by save_pretrained once, on a machine that holds it"
            )
        if left := sorted(files.keys() - names.keys()):
            log.info("%s: not used by %s: %s", source.folder, source.class_name, listed(left))
        found = cls({name: path for name, path in files.items() if name in names}, names)
        for name in found:
            if (there := found.shape(name)) != tuple(state[name].shape):
                raise CheckpointError(
                    f"the weights of {source.folder} don't fit its configuration: {name} is {list(there)}, "
                    f"{source.class_name} has {list(state[name].shape)}"
                )
        return found

    def dtype(self) -> torch.dtype:
        """Tell the type that most values of floating point have in the files."""
        counts: dict[torch.dtype, int] = {}
        for name in self.files:
            with self._open(name) as file:
                part = file.get_slice(self.names[name])
                dtype = part[:0].dtype if part.get_shape() else file.get_tensor(self.names[name]).dtype
            counts[dtype] = counts.get(dtype, 0) + prod(self.shape(name))
        return max((one for one in counts if one.is_floating_point), key=counts.__getitem__, default=torch.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """Tell the shape of a tensor without reading it."""
        with self._open(name) as file:
            return tuple(file.get_slice(self.names[name]).get_shape())

    def stored(self, name: str) -> Tensor:
        """Read a tensor as it is stored."""
        with self._open(name) as file:
            found: Tensor = file.get_tensor(self.names[name])
        return found

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor, in float32 if it is one of floating point."""
        found = self.stored(name)
        return found.float() if found.is_floating_point() else found

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def _open(self, name: str) -> Any:
        return safe_open(self.files[self.names[name]], framework="pt")


@contextmanager
def weights_on_demand(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let each module of a model have its weights while it is called, and what it had before at other times.

    A module that reads another module's weights finds none there.
    """
    with ExitStack() as stack:
        for path, module in model.named_modules():
            own = {name: f"{path}.{name}" if path else name for name in (*module._parameters, *module._buffers)}
            own = {name: full for name, full in own.items() if full in weights}
            if own:
                before: list[dict[str, Any]] = []
                stack.enter_context(module.register_forward_pre_hook(partial(_fill, weights, own, before)))
                stack.enter_context(module.register_forward_hook(partial(_empty, before), always_call=True))
        yield


def _fill(
    weights: Mapping[str, Tensor], own: Mapping[str, str], before: list[dict[str, Any]], module: nn.Module, _args: Any
) -> None:
    before.append({name: getattr(module, name) for name in own})
    for name, full in own.items():
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(weights[full], requires_grad=False)
        else:
            module._buffers[name] = weights[full]


def _empty(before: list[dict[str, Any]], module: nn.Module, _args: Any, _outputs: Any) -> None:
    for name, tensor in before.pop().items():
        (module._parameters if name in module._parameters else module._buffers)[name] = tensor


def run_from(model: nn.Module, weights: Mapping[str, Tensor], inputs: Inputs) -> list[Tensor]:
    """Run a model on weights that are read when they are needed.

    Returns:
        The tensors that its outputs hold.

    Raises:
        ModelError: Its code reads weights of a module that isn't called.
    """
    args, kwargs = as_call(inputs)
    with torch.no_grad(), weights_on_demand(model, weights):
        found = outputs_in(model, model(*args, **kwargs), by_value=True)
    if any(tensor.is_meta for tensor in found):
        raise ModelError(
            f"{type(model).__name__} reads weights of a module without calling it, so they can't be read on demand"
        )
    return found


def write_shards(into: Path, names: Iterable[str], tensor: Callable[[str], Tensor], shard_bytes: int) -> None:
    """Write tensors into files as `save_pretrained` names them, with an index where they are several.

    Args:
        into: The folder.
        names: Of the tensors.
        tensor: Gives one of them; none is kept after its file is written.
        shard_bytes: Of a file, at most, unless one tensor has more.
    """
    shards: list[list[str]] = []
    held: dict[str, Tensor] = {}
    total = 0

    def write() -> None:
        shards.append(list(held))
        save_file(held, into / f"{len(shards)}.unfinished", metadata={"format": "pt"})
        held.clear()

    for name in names:
        found = tensor(name).contiguous()
        size = found.numel() * found.element_size()
        if held and size + sum(one.numel() * one.element_size() for one in held.values()) > shard_bytes:
            write()
        held[name], total = found, total + size
    write()
    if len(shards) == 1:
        (into / "1.unfinished").replace(into / WEIGHTS)
        return
    places: dict[str, str] = {}
    for number, held_there in enumerate(shards, start=1):
        place = f"model-{number:05}-of-{len(shards):05}.safetensors"
        (into / f"{number}.unfinished").replace(into / place)
        places |= dict.fromkeys(held_there, place)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (into / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
