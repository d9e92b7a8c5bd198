"""Run the first layers once: models that differ in later layers alone share what comes before.

    operators   o o o o o o o │ o o o o o      one pass, in the order of the calls
                unchanged     │ the first that reads a changed parameter, and all after it
                              └ the cut: what is made left of it and read right of it is kept for every batch

A pass that is resumed at a cut runs the model's own code. Left of the cut an operator gives what was kept, or, where
nobody looks any more, memory without values; right of it everything is computed as ever, so that the outputs have the
same bits as those of a whole pass. Where that can't be shown, passes are whole.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode

from pruning.allocation.dataflow import PassOrder, Unsuitable, address, read_order, tensors_of
from pruning.batches import Batches
from pruning.containers import Inputs, find_tensors
from pruning.evaluation import Forward, device_of, restored_modes, whole_pass
from pruning.graph.trace import Trace

MAX_BYTES = 2**29
"""Of what is kept for all batches together: 512 MiB."""

_settings: Any = deterministic
_PROOF = -1  # the number of a batch of few samples, by which the order is read and every cut proved
_FEW = 2  # with a single one PyTorch goes ways of its own

_log = logging.getLogger(__name__)


class FirstLayers:
    """What the first layers of a model give for some samples, for models that differ from it in later layers alone."""

    def __init__(
        self,
        model: nn.Module,
        traced: Trace,
        samples: Batches,
        batch_size: int,
        *,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Look at the order of the model's operators.

        Args:
            model: Whose layers are shared; untouched.
            traced: The engine's trace of it: where it had to look at values, so may the model's code.
            samples: What the models will be run on, in their order.
            batch_size: Samples per pass.
            max_bytes: What may be kept; more, and the cut lies further left.
        """
        self._model, self._max_bytes = model, max_bytes
        self._num_samples, self._num_batches = len(samples), -(-len(samples) // batch_size)
        self._cut = 0
        self._kept: dict[int, _Kept] = {}
        self._order: PassOrder | None = None
        if not self._num_samples:
            return  # there is nothing to share, and whoever runs the models says that
        self._few = samples.first(min(_FEW, batch_size))
        try:
            if any(one.tensors == "real" for one in traced.passes):
                raise Unsuitable("its code looks at values")
            self._order = read_order(model, self._proof())
        except Unsuitable as reason:
            self.give_up(reason)

    def cut(self, changed: Collection[str]) -> int:
        """Return how many operators are shared by models that differ in these parameters; 0 where passes are whole."""
        if self._order is None:
            return 0
        return self._order.cut(changed, self._max_bytes * self._few.size / self._num_samples)

    def forward(self, changed: Collection[str]) -> Forward:
        """Return how to run a model that differs in these parameters; it raises `Unsuitable` where that goes wrong.

        What is kept is that of one cut: ask for the cuts in rising order. The first pass of a batch begins at the cut
        before, and takes along what crosses the new one.
        """
        cut = self.cut(changed)
        if self._order is None or cut == 0:
            return whole_pass
        try:
            if cut != self._cut:
                self._move(cut)
        except Unsuitable as reason:
            self.give_up(reason)
            return whole_pass
        return self._resume

    def give_up(self, reason: Exception) -> None:
        """Share nothing from now on."""
        _log.info("the first layers are run anew each time: %s", reason)
        self._order, self._kept, self._cut = None, {}, 0

    @torch.no_grad()
    def _move(self, cut: int) -> None:
        """Go to another cut, and prove on a few samples that the outputs are the same bits."""
        if cut < self._cut or not self._kept:
            self._kept = {batch: _Kept() for batch in range(_PROOF, self._num_batches)}
        self._cut = cut
        inputs = self._proof()
        with restored_modes(self._model):
            self._model.eval()
            whole = find_tensors(whole_pass(self._model, _PROOF, inputs))
            for _ in ("the cut is moved", "a pass begins there"):
                shared = find_tensors(self._resume(self._model, _PROOF, inputs))
                if not whole or len(whole) != len(shared) or not all(map(torch.equal, whole, shared)):
                    raise Unsuitable("its outputs would not be the same")

    def _resume(self, model: nn.Module, batch: int, inputs: Inputs) -> Any:
        assert self._order is not None
        resumed = _Resumed(self._order, self._kept[batch], self._cut)
        outputs = resumed.run(model, inputs)
        self._kept[batch] = resumed.taken
        return outputs

    def _proof(self) -> Inputs:
        inputs: Inputs = self._few.to(device_of(self._model)).inputs
        return inputs


@dataclass(frozen=True)
class _Shape:
    """How a tensor lies in its memory."""

    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> _Shape:
        return cls(tensor.size(), tensor.stride(), tensor.dtype, tensor.device)

    def empty(self) -> Tensor:
        filled = _settings.fill_uninitialized_memory
        _settings.fill_uninitialized_memory = False  # nobody looks, and filling takes time
        try:
            return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=self.device)
        finally:
            _settings.fill_uninitialized_memory = filled


@dataclass(frozen=True)
class _Shapes:
    """The results of a step: in a tuple or list, or one by itself."""

    container: type[Any] | None
    results: tuple[_Shape | None, ...]

    @classmethod
    def of(cls, result: Any) -> _Shapes:
        several = isinstance(result, list | tuple)
        results = tuple(one if one is None else _Shape.of(one) for one in (result if several else [result]))
        return cls(type(result) if several else None, results)


@dataclass
class _Kept:
    """Of one batch, at a cut: what crosses it, by its memory, and how the results of each step left of it lie."""

    cut: int = 0
    values: dict[int, Tensor] = field(default_factory=dict)
    shapes: list[_Shapes] = field(default_factory=list)


class _Resumed(TorchDispatchMode):
    """A pass that begins at a cut, and takes along what crosses another one further right."""

    def __init__(self, order: PassOrder, kept: _Kept, cut: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.order, self.kept, self.cut = order, kept, cut
        self.wanted = order.crossing(cut) if cut > kept.cut else set()
        self.taken = _Kept(cut, {}, list(kept.shapes)) if cut > kept.cut else kept
        self.index = 0
        self.hollow: list[Tensor] = []  # they live as long as the pass, so that no other gets their address
        self.addresses: set[int] = set()

    def run(self, model: nn.Module, inputs: Inputs) -> Any:
        with self:
            outputs = whole_pass(model, _PROOF, inputs)
        if self.index < self.cut:
            raise Unsuitable(f"a pass called {self.index} operators, {self.cut} were expected before the cut")
        if self.index == self.cut:
            self._keep()
        self._look(outputs)
        traces = [weakref.ref(tensor) for tensor in self.hollow]
        self.hollow.clear()
        if any(trace() is not None for trace in traces):
            raise Unsuitable("the model keeps what its layers gave")
        return outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        index = self.index
        if index == self.cut:
            self._keep()
        self.index += 1
        step = self.order.steps[index] if index < self.cut else None
        if step is not None and step.function is not func:
            raise Unsuitable(f"a pass called {func} at another place than the first one")
        if step is not None and index < self.kept.cut:
            if step.kind == "writes":
                return args[0]  # what is kept was written to already
            if step.kind == "makes":
                return self._give(index)
            result = func(*args, **(kwargs or {}))
            self.hollow.extend(one for one in tensors_of(result) if address(one) in self.addresses)
            return result
        self._look(args, kwargs)
        result = func(*args, **(kwargs or {}))
        if step is not None:
            self._take(step.makes, result)
        return result

    def _give(self, index: int) -> Any:
        """Return what a step left of the cut gave: a copy of its values where they are kept, else memory alone."""
        shapes = self.kept.shapes[index]
        made = [shape if shape is None else shape.empty() for shape in shapes.results]
        for memory, tensor in zip(self.order.steps[index].makes, tensors_of(made), strict=True):
            value = self.kept.values.get(memory)
            if value is None:
                self.hollow.append(tensor)
                self.addresses.add(address(tensor))
            else:
                tensor.copy_(value)
                if memory in self.wanted:
                    self.taken.values[memory] = tensor
        return shapes.container(made) if shapes.container else made[0]

    def _take(self, makes: tuple[int, ...], result: Any) -> None:
        """Note what a step between the two cuts gives."""
        self.taken.shapes.append(_Shapes.of(result))
        for memory, tensor in zip(makes, tensors_of(result), strict=bool(makes)):
            if memory in self.wanted:
                self.taken.values[memory] = tensor

    def _keep(self) -> None:
        """Copy what crosses the cut: the rest of the pass may write into it."""
        for memory in self.wanted:
            self.taken.values[memory] = self.taken.values[memory].clone()

    def _look(self, *values: Any) -> None:
        if any(address(tensor) in self.addresses for tensor in tensors_of(*values)):
            raise Unsuitable("a pass reads what the first one didn't")
