"""Load weights into a model, strictly, from a user's file or from a state dict."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pruning.errors import CheckpointError, pass_on
from pruning.io.files import JsonError, shards_of

_SHOWN = 8
_DEEPEST = 4  # how many keys may lead to a state dict
_BESIDE = frozenset({"n_averaged"})  # what AveragedModel counts, beside the names that begin with "module."
# What wrappers of PyTorch put into names, wherever the wrapped module is: torch.compile, FSDP, activation checkpoints.
_INSERTED = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

log = logging.getLogger(__name__)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of weights into a model, in place.

    Args:
        model: every one of its parameters and buffers has to be in the file, and nothing else.
        path: `.safetensors`; or `.pt`, `.pth` of a state dict, plain or under keys ("state_dict", "model", "ema", …);
            or the index of one that is divided over several files (`model.safetensors.index.json`). One prefix that
            stands before every name ("module.", "_orig_mod.", "model.") is dropped, and what torch.compile and FSDP put
            into names; a line of the log says so. Values of another type (bfloat16, float16) become the model's.

    Raises:
        CheckpointError: the file is missing or damaged, holds pickled objects beside tensors, doesn't fit, or holds
            several different sets of weights that fit.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no file of weights at {path}")
    found = _read_sharded(path) if path.suffix == ".json" else _read_file(path)
    states = dict(_states_in(found, "", set()))
    if not states:
        raise CheckpointError(
            f"{path} holds {type(found).__name__}; expected a state dict (names to tensors), "
            "plain or under a key such as 'state_dict'"
        )
    readings = [reading for where, state in states.items() for reading in _readings(model, state, where)]
    fitting = [reading for reading in readings if reading.misses == 0]
    shaped = [reading for reading in fitting if _shapes_fit(model, reading.state)] or fitting
    chosen = shaped or sorted(readings, key=lambda reading: reading.misses)
    for other in shaped[1:]:
        if not _same(chosen[0].state, other.state):
            raise CheckpointError(
                f"{path} holds several sets of weights that fit the model: "
                f"{', '.join(reading.place for reading in shaped)}; save the one that you mean alone, by "
                "torch.save(model.state_dict(), path)"
            )
    reading = chosen[0]
    source = str(path) if reading.place == _WHOLE else f"{path} ({reading.place})"
    load_state(model, reading.state, source=source)
    if reading.place != _WHOLE:
        log.info("%s: read %s", path, reading.place)


_WHOLE = "the whole file"


@dataclass(frozen=True)
class _Reading:
    """One way to read a file: which state dict of it, and which names its tensors then have.

    Attributes:
        place: The keys that lead to it, and what was dropped from the names.
        state: Tensors by the names that remain.
        misses: How many names are missing or unexpected.
    """

    place: str
    state: dict[str, Tensor]
    misses: int


def _states_in(found: Any, where: str, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping of names to tensors, with the keys that lead to it."""
    if not isinstance(found, Mapping) or id(found) in seen:
        return
    seen.add(id(found))
    if found and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()):
        yield where, dict(found)
    elif where.count("[") < _DEEPEST:
        for key, inner in found.items():
            yield from _states_in(inner, f"{where}[{key!r}]", seen)


def _readings(model: nn.Module, state: Mapping[str, Tensor], where: str) -> Iterator[_Reading]:
    """Yield a state dict as it is, and without each prefix that may have been put before all names of the model."""
    expected, tied = set(model.state_dict()), _tied_names(model)
    inserted = _INSERTED.intersection(part for name in state for part in name.split("."))
    inserted -= {part for name in expected for part in name.split(".")}
    plain = {".".join(part for part in name.split(".") if part not in inserted): t for name, t in state.items()}
    if len(plain) < len(state):
        plain, inserted = dict(state), frozenset()
    # The last part of a name tells little, so prefixes are taken from the longest name, the most telling one.
    longest = max(expected, key=lambda name: (name.count("."), len(name), name), default="")
    same = {longest, tied.get(longest, longest)}
    prefixes = {name.removesuffix(end) for name in plain for end in same if name.endswith(f".{end}")}
    for prefix in ("", *sorted(prefixes, key=lambda prefix: (len(prefix), prefix))):
        beside = {name for name in plain if not name.startswith(prefix)}
        named = {name.removeprefix(prefix): t for name, t in plain.items() if name not in beside & _BESIDE}
        for name, source in tied.items():
            if name not in named and source in named:
                named[name] = named[source]
        dropped = [*sorted(f"{part}." for part in inserted), *([f"{prefix}"] if prefix else [])]
        without = f"names without {' and '.join(map(repr, dropped))}" if dropped else ""
        place = ", ".join(filter(None, (where, without))) or _WHOLE
        yield _Reading(place, named, len(expected ^ named.keys()))


def _shapes_fit(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    return all(tensor.shape == state[name].shape for name, tensor in model.state_dict().items())


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict into a model, in place, every name and shape agreeing; faults are collected.

    Raises:
        CheckpointError: names are missing or unexpected, or shapes differ.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    shape = {name: str(tuple(tensor.shape)) for name, tensor in (dict(state) | expected).items()}
    reshaped = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    faults = []
    if missing:
        with_hints = [f"{name} {shape[name]}{_hint(name, unexpected)}" for name in missing]
        faults.append(f"missing: {_listed(with_hints)}")
    if unexpected:
        faults.append(f"unexpected: {_listed([f'{name} {shape[name]}' for name in unexpected])}")
    if reshaped:
        faults.append(f"of another shape: {_listed(reshaped)}")
    if faults:
        raise CheckpointError(
            f"{source} doesn't fit the model; {'; '.join(faults)}. "
            "Build the model with the arguments it was trained with"
        )
    model.load_state_dict(dict(state))


def _read_sharded(index: Path) -> dict[str, Any]:
    """Read all files of an index; a tensor that it names has to be in the file that it names for it."""
    try:
        files = shards_of(index)
    except JsonError as fault:
        raise CheckpointError(
            f"{index}: {fault}; expected an index of weights, such as save_pretrained writes"
        ) from fault
    found: dict[str, Any] = {}
    for file, names in files.items():
        if not file.is_file():
            raise CheckpointError(f"{index} names {file.name}, which isn't beside it; bring all of its files along")
        tensors = _read_file(file)
        if lacking := [name for name in names if not isinstance(tensors, Mapping) or name not in tensors]:
            raise CheckpointError(f"{index}: {file.name} lacks {_listed(lacking)}; bring files of one model along")
        found |= {name: tensors[name] for name in names}
    return found


def _read_file(path: Path) -> Any:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error})") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        objects = _objects_in(path)
        if not objects:
            raise CheckpointError(f"{path} is damaged or no file of torch.save ({_first_line(error)})") from error
        raise CheckpointError(
            f"{path} holds pickled objects beside tensors ({_listed(objects)}), which could run code when read and is "
            f"refused. Where you trust it, convert it once: {_conversion(path, _UNPICKLE)}"
        ) from error
    except Exception as error:
        pass_on(error)
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript archive, a program with its weights; expected a state dict. Where you trust "
                f"it, convert it once: {_conversion(path, _SCRIPT)}"
            ) from error
        raise CheckpointError(f"{path} is damaged or no file of torch.save ({error})") from error


_SCRIPT = "torch.save(dict(torch.jit.load('{path}', map_location='cpu').state_dict()), '{new}')"
_UNPICKLE = (
    "x = torch.load('{path}', map_location='cpu', weights_only=False); "
    "x = x if isinstance(x, dict) else {{'model': x}}; "
    "x = {{k: v.state_dict() if isinstance(v, torch.nn.Module) else v for k, v in x.items()}}; "
    "torch.save({{k: v for k, v in x.items() if isinstance(v, torch.Tensor) or isinstance(v, dict) and v and "
    "all(isinstance(t, torch.Tensor) for t in v.values())}}, '{new}')"
)


def _conversion(path: Path, line: str) -> str:
    """Return the command that makes a state dict of a file, for people who trust it."""
    new = path.with_name(f"{path.stem}.weights.pt")
    return f'python -c "import torch; {line.format(path=path, new=new)}", then name {new}'


def _objects_in(path: Path) -> list[str]:
    """Return the classes and functions that unpickling would call, none if that can't be told."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception as fault:  # noqa: BLE001 - whatever a damaged file makes the reader raise
        pass_on(fault)
        return []


def _first_line(fault: Exception) -> str:
    return str(fault).strip().partition("\n")[0]


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


def _hint(name: str, unexpected: Sequence[str]) -> str:
    near = get_close_matches(name, unexpected, n=1, cutoff=0.8)
    return f" (is it {near[0]}?)" if near else ""


def _listed(entries: Sequence[str]) -> str:
    more = f" and {len(entries) - _SHOWN} more" if len(entries) > _SHOWN else ""
    return ", ".join(entries[:_SHOWN]) + more
