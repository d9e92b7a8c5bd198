"""Recurrent layers as matrix products: what each layer and direction reads by its weights.

    W_ih x_t + b_ih        of what goes in
    W_hh h_(t−1) + b_hh    of its own state, as it was a step before

The rest of a recurrent layer works on single units: gates, sums, tanh. So these two products are all that sums over
channels, but for a projection W_hr of the state, which isn't told here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pruning.graph.layers import Geometry, LayerCall
from pruning.graph.rules.call import arguments_of, operator_name

_SEQUENCES = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_CELLS = frozenset({f"{name}_cell" for name in _SEQUENCES})
_BY_WEIGHTS = Geometry(input_axis=1)


def is_recurrent(name: str) -> bool:
    """Say whether the operator of a name is a recurrent layer, or one step of it."""
    return name in _SEQUENCES or name in _CELLS


def read_recurrent(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any, names: Mapping[int, str]
) -> Iterator[LayerCall]:
    """Tell the products of a recurrent layer's call, each worked out when it is asked for.

    Inputs and outputs are [samples, steps, channels], of packed sequences [rows, channels], of a cell as it is given.

    Args:
        func: The operator.
        args: Its arguments.
        kwargs: Its keyword arguments.
        result: What it gave.
        names: The parameters' names by the identity of their tensors.

    Yields:
        Of each layer first W_ih x of all directions, then W_hh h; nothing where the operator is no recurrent layer, or
        where one of these weights isn't a parameter as it is.
    """
    name = operator_name(func)
    if not is_recurrent(name):
        return
    named = arguments_of(func, args, kwargs)
    if name in _CELLS:
        state = named["hx"][0] if isinstance(named["hx"], list | tuple) else named["hx"]
        parts = [_Part(named["w_ih"], named["w_hh"], named["b_ih"], named["b_hh"])]
        if _known(parts, names):
            yield from (parts[0].of_input(named["input"], names), parts[0].of_state(state, names))
        return
    sequence = _Sequence(func, named, result)
    if _known([part for layer in range(sequence.num_layers) for part in sequence.parts(layer)], names):
        yield from sequence.products(names)


@dataclass(frozen=True)
class _Part:
    """The parameters of one layer in one direction."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None
    b_hh: Tensor | None

    def of_input(self, inputs: Tensor, names: Mapping[int, str]) -> LayerCall:
        return _product(self.w_ih, self.b_ih, inputs, "input", names)

    def of_state(self, states: Tensor, names: Mapping[int, str]) -> LayerCall:
        return _product(self.w_hh, self.b_hh, states, "state", names)


def _product(
    weight: Tensor, bias: Tensor | None, inputs: Tensor, reads: Literal["input", "state"], names: Mapping[int, str]
) -> LayerCall:
    outputs = F.linear(inputs, weight, bias)
    return LayerCall(names[id(weight)], names.get(id(bias)), inputs, outputs, _BY_WEIGHTS, reads)


def _known(parts: Sequence[_Part], names: Mapping[int, str]) -> bool:
    return all(id(weight) in names for part in parts for weight in (part.w_ih, part.w_hh))


class _Sequence:
    """One call of a recurrent layer over whole sequences."""

    def __init__(self, func: Any, named: Mapping[str, Any], result: Any) -> None:
        self._func, self._named, self._outputs = func, named, result[0]
        self.num_layers = int(named["num_layers"])
        self._directions = 2 if named["bidirectional"] else 1
        self._packed = named.get("batch_sizes") is not None
        self._samples_first = bool(named.get("batch_first"))

    def _own(self, layer: int) -> list[Tensor]:
        """The parameters of a layer, all directions."""
        number = len(self._named["params"]) // self.num_layers
        return list(self._named["params"][layer * number : (layer + 1) * number])

    def parts(self, layer: int) -> list[_Part]:
        """The directions of a layer."""
        own = self._own(layer)
        number = len(own) // self._directions
        found = []
        for direction in range(self._directions):
            w_ih, w_hh, *rest = own[direction * number : (direction + 1) * number]
            b_ih, b_hh = rest[:2] if self._named["has_biases"] else (None, None)
            found.append(_Part(w_ih, w_hh, b_ih, b_hh))
        return found

    def products(self, names: Mapping[int, str]) -> Iterator[LayerCall]:
        """The products of all layers."""
        inputs = self._named["data"] if self._packed else self._named["input"]
        for layer in range(self.num_layers):
            for part in self.parts(layer):
                yield part.of_input(self._by_sample(inputs), names)
            outputs = self._outputs if layer == self.num_layers - 1 else self._run(layer, inputs)
            given = self._by_sample(outputs).chunk(self._directions, dim=-1)
            first = self._states(layer)[0]
            for direction, part in enumerate(self.parts(layer)):
                yield part.of_state(self._before(given[direction], first[direction], bool(direction)), names)
            inputs = outputs

    def _states(self, layer: int) -> list[Tensor]:
        """What a layer's states are at first, [directions, samples, units] each; the hidden one comes first."""
        states = self._named["hx"]
        here = slice(layer * self._directions, (layer + 1) * self._directions)
        return [state[here] for state in (states if isinstance(states, list | tuple) else [states])]

    def _run(self, layer: int, inputs: Tensor) -> Tensor:
        """Run one of several layers by itself."""
        states: Any = self._states(layer)
        if not isinstance(self._named["hx"], list | tuple):
            (states,) = states
        sizes = [self._named["batch_sizes"]] if self._packed else []
        last = [] if self._packed else [self._samples_first]
        given = (states, self._own(layer), self._named["has_biases"], 1, 0.0, False, self._directions == 2)
        outputs: Tensor = self._func(inputs, *sizes, *given, *last)[0]
        return outputs

    def _by_sample(self, tensor: Tensor) -> Tensor:
        return tensor if self._packed or self._samples_first else tensor.transpose(0, 1)

    def _before(self, given: Tensor, first: Tensor, backwards: bool) -> Tensor:
        """Return the state that each step begins with: what the step before gave, or the first one."""
        if not self._packed:
            around = [given[:, 1:], first[:, None]] if backwards else [first[:, None], given[:, :-1]]
            return torch.cat(around, dim=1)
        sizes = self._named["batch_sizes"]  # samples that are left at each step, never more than before
        starts = sizes.cumsum(0) - sizes
        step = torch.arange(len(sizes)).repeat_interleave(sizes)
        sample = torch.arange(len(given)) - starts[step]
        before = step + (1 if backwards else -1)
        there = before.clamp(0, len(sizes) - 1)
        goes_on = (before == there) & (sample < sizes[there])
        rows = torch.where(goes_on, starts[there] + sample, len(given) + sample)
        return torch.cat([given, first])[rows.to(given.device)]
