"""Load weights into a model, strictly, from a user's file or from a state dict."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pruning.errors import CheckpointError

_SHOWN = 8
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of weights into a model, in place.

    Args:
        model: every one of its parameters and buffers has to be in the file, and nothing else.
        path: `.safetensors`; or `.pt`, `.pth` of a state dict, plain or under the key "state_dict".
            A prefix "module." that stands before every name (of a data-parallel wrapper) is dropped.

    Raises:
        CheckpointError: the file is missing or damaged, holds pickled objects beside tensors, or doesn't fit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no file of weights at {path}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for name, source in _tied_names(model).items():
        if name not in state and source in state:
            state[name] = state[source]
    load_state(model, state, source=str(path))


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict into a model, in place, every name and shape agreeing; faults are collected.

    Raises:
        CheckpointError: names are missing or unexpected, or shapes differ.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = []
    if missing:
        faults.append(f"missing: {_listed([_with_hint(name, unexpected) for name in missing])}")
    if unexpected:
        faults.append(f"unexpected: {_listed(unexpected)}")
    if reshaped:
        faults.append(f"of another shape: {_listed(reshaped)}")
    if faults:
        raise CheckpointError(
            f"{source} doesn't fit the model; {'; '.join(faults)}. "
            "Build the model with the arguments it was trained with"
        )
    model.load_state_dict(dict(state))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error})") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds pickled objects beside tensors, which could run code when read and "
            "is refused; where you trust it, save model.state_dict() alone and load that file"
        ) from error
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or no file of torch.save ({error})") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise CheckpointError(
            f"{path} holds {type(found).__name__}; expected a state dict (names to tensors), "
            "plain or under 'state_dict'"
        )
    return dict(found)


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Map each further name of a shared tensor to its first, and the first to the others' last."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    pairs: dict[str, str] = {}
    for first, *others in names.values():
        for other in others:
            pairs |= {other: first, first: other}
    return pairs


def _with_hint(name: str, unexpected: Sequence[str]) -> str:
    near = get_close_matches(name, unexpected, n=1, cutoff=0.8)
    return f"{name} (is it {near[0]}?)" if near else name


def _listed(entries: Sequence[str]) -> str:
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return ", ".join(entries[:_SHOWN]) + more
