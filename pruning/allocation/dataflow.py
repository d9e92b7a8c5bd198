"""The operators of one forward pass in the order of their calls: which memory each reads, makes, or writes into."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.containers import Inputs, as_call, find_tensors
from pruning.evaluation import restored_modes
from pruning.graph.dispatch import state_of
from pruning.graph.rules.call import operator_name


class Unsuitable(Exception):  # noqa: N818 - it says why passes are run whole, and is no fault
    """Why a pass can't be shared."""


@dataclass(frozen=True)
class Step:
    """One call of an operator.

    Attributes:
        function: The overload that was called.
        kind: Whether it makes new memory, gives another view of what is there, or writes into its first argument.
        reads: The memories that its arguments lie in.
        makes: The memories that its results lie in, one for each tensor, where they are new.
    """

    function: Any
    kind: Literal["makes", "views", "writes"]
    reads: frozenset[int]
    makes: tuple[int, ...] = ()


@dataclass(frozen=True)
class PassOrder:
    """One pass. Memories are numbered; those of the model's state and inputs are there before it begins.

    Attributes:
        steps: The calls in their order.
        state: The memory of each parameter and buffer, shared ones under each name.
        made_at: For each memory that the pass makes, the step that makes it.
        read_until: And the last step that reads it; the number of steps, where it is an output.
        num_bytes: And its size, for the samples that were passed.
    """

    steps: tuple[Step, ...]
    state: Mapping[str, int]
    made_at: Mapping[int, int]
    read_until: Mapping[int, int]
    num_bytes: Mapping[int, int]

    def crossing(self, cut: int) -> set[int]:
        """Return the memories that are made before a step and read at it or later."""
        return {memory for memory, made_at in self.made_at.items() if made_at < cut <= self.read_until[memory]}

    def cut(self, changed: Collection[str], max_bytes: float) -> int:
        """Return the last step up to which nothing has read a changed parameter and little enough crosses.

        Args:
            changed: Names of the parameters.
            max_bytes: What may cross, for as many samples as were passed.
        """
        memories = {self.state[name] for name in changed}
        first = next((i for i, step in enumerate(self.steps) if step.reads & memories), len(self.steps))
        for cut in range(first, 0, -1):
            if sum(self.num_bytes[memory] for memory in self.crossing(cut)) <= max_bytes:
                return cut
        return 0


def read_order(model: nn.Module, inputs: Inputs) -> PassOrder:
    """Run one pass in evaluation mode and note its operators.

    Args:
        model: Left as it was.
        inputs: Of a few samples, [N, ...], on the model's device.

    Raises:
        Unsuitable: An operator gives numbers, at which code may look; or it writes into what was there before the pass;
            or memory has no address.
    """
    recorder = _Recorder(state_of(model), find_tensors(inputs))
    args, kwargs = as_call(inputs)
    with torch.no_grad(), restored_modes(model):
        model.eval()
        with recorder:
            outputs = model(*args, **kwargs)
    return recorder.order(find_tensors(outputs))


def address(tensor: Tensor) -> int:
    """What tells whether two living tensors share memory: a view's storage is its base's.

    Raises:
        Unsuitable: The tensor has no storage.
    """
    if tensor.layout != torch.strided:
        raise Unsuitable(f"a tensor has the layout {tensor.layout}")
    return int(tensor.untyped_storage()._cdata)


def tensors_of(*values: Any) -> list[Tensor]:
    """Return the tensors in nested arguments or results of an operator."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_of(*value)
        elif isinstance(value, Mapping):
            found += tensors_of(*value.values())
    return found


@dataclass(eq=False)
class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    of_state: Mapping[str, Tensor]
    inputs: list[Tensor]
    steps: list[Step] = field(default_factory=list)
    made_at: dict[int, int] = field(default_factory=dict)
    read_until: dict[int, int] = field(default_factory=dict)
    num_bytes: dict[int, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)  # an address is told from another only while both live

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.state = {name: self.number(tensor) for name, tensor in self.of_state.items()}
        for tensor in self.inputs:
            self.number(tensor)

    def number(self, tensor: Tensor) -> int:
        self.alive.append(tensor)
        return self.numbers.setdefault(address(tensor), len(self.numbers))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        index = len(self.steps)
        reads = frozenset(self.number(tensor) for tensor in tensors_of(args, kwargs))
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, list | tuple) else [result]
        if any(not isinstance(value, Tensor | None) for value in results):
            raise Unsuitable(f"{operator_name(func)} gives a number, at which the model's code may look")
        outputs = tensors_of(result)
        new = [address(tensor) not in self.numbers for tensor in outputs]
        makes: tuple[int, ...] = ()
        kind: Literal["makes", "views", "writes"] = "views"
        if func._schema.is_mutable:
            written = [argument.name for argument in func._schema.arguments if argument.is_write]
            if result is not args[0] or len(written) != 1 or self.number(result) not in self.made_at:
                raise Unsuitable(f"{operator_name(func)} writes into what was there before")
            kind = "writes"
        elif outputs and all(new):
            kind, makes = "makes", tuple(self.number(tensor) for tensor in outputs)
            if len(set(makes)) < len(makes):
                raise Unsuitable(f"{operator_name(func)} gives several tensors in one memory")
            for tensor, memory in zip(outputs, makes, strict=True):
                self.made_at[memory] = self.read_until[memory] = index
                self.num_bytes[memory] = tensor.untyped_storage().nbytes()
        elif any(new):
            raise Unsuitable(f"{operator_name(func)} gives new memory and old")
        self.alive.extend(outputs)
        self.read_until.update(dict.fromkeys(reads & self.made_at.keys(), index))
        self.steps.append(Step(func, kind, reads, makes))
        return result

    def order(self, outputs: list[Tensor]) -> PassOrder:
        last = {self.number(tensor) for tensor in outputs} & self.made_at.keys()
        read_until = {**self.read_until, **dict.fromkeys(last, len(self.steps))}
        return PassOrder(tuple(self.steps), self.state, self.made_at, read_until, self.num_bytes)
