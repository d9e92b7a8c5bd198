"""Copy a module tree while choosing what stands in place of its tensors; and what stands in place of modules.

`nn.MultiheadAttention` computes the width of a head from the width of the model, so a head can't be removed from it.
`NarrowableAttention` computes the same from the same parameters, and takes the number of heads and the scale as they
were trained.

In evaluation, `nn.TransformerEncoder` hands nested tensors to its layers where it is given a padding mask. Layers whose
attention is as wide as it was take PyTorch's fused path then; the others compute by that class, which reads them too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from pruning.errors import ModelError, describe, pass_on

Module = TypeVar("Module", bound=nn.Module)


def copy_module(model: Module, tensors: Mapping[int, Tensor] | None = None) -> Module:
    """Copy modules, attributes and caches of a model, but not its parameters and buffers.

    Args:
        model: Any module.
        tensors: What stands in place of each parameter and buffer, by the id of the tensor; by default the tensors
            themselves, which are then shared with the original.

    Raises:
        ModelError: The module can't be copied.
    """
    return _copy(model, {id(t): t for t in (*model.parameters(), *model.buffers())} | dict(tensors or {}))


def copy_whole(model: Module) -> Module:
    """Copy a model with its parameters and buffers; what else it keeps (activations) is copied without its graph.

    Raises:
        ModelError: The module can't be copied.
    """
    return _copy(model, {})


def _copy(model: Module, memo: dict[int, Any]) -> Module:
    try:
        with _WithoutGraphs():
            return deepcopy(model, _empty(model) | memo)
    except Exception as fault:
        pass_on(fault)
        raise ModelError(
            f"{type(model).__name__} can't be copied: {describe(fault)}. A module may hold only what "
            "copy.deepcopy can copy: no open files, no generators"
        ) from fault


def _empty(model: nn.Module) -> dict[int, Any]:
    """What `deepcopy` makes of the containers that hold nothing: the tables of hooks, a dozen to a module.

    It takes each of them apart, which takes longer than all else of most models.
    """
    held = [value for module in model.modules() for value in vars(module).values()]
    return {id(value): type(value)() for value in held if type(value) in (OrderedDict, set) and not value}


class _WithoutGraphs(TorchFunctionMode):
    """Copy tensors that were computed with gradients as values, where PyTorch refuses to copy them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


class _Hollow(nn.Module):
    """Stands where a module stood, with its plain attributes, which code around it may read, and no tensors."""

    def __init__(self, replaced: nn.Module) -> None:
        super().__init__()
        plain = {k: v for k, v in vars(replaced).items() if v is None or isinstance(v, bool | int | float | str)}
        vars(self).update({name: value for name, value in plain.items() if name not in vars(self)})
        for name in (*replaced._parameters, *replaced._buffers):
            self.register_parameter(name, None)
        for name, child in replaced.named_children():
            self.add_module(name, _Hollow(child))
        self.training = replaced.training


class _InPlace(_Hollow):
    """Returns what a module returned, in the same container."""

    def __init__(self, replaced: nn.Module, result: Any) -> None:
        super().__init__(replaced)
        self._result = tree_map(lambda leaf: _Dims(leaf.ndim) if isinstance(leaf, Tensor) else leaf, result)

    def _give(self, make: Callable[[int], Tensor]) -> Any:
        return tree_map(lambda leaf: make(leaf.number) if isinstance(leaf, _Dims) else leaf, self._result)


def removed_tensors(model: nn.Module) -> set[str]:
    """Return the names of the parameters and buffers that blocks had which are gone from a model."""
    hollow = ((path, module) for path, module in model.named_modules() if isinstance(module, _Hollow))
    return {f"{path}.{name}" for path, module in hollow for name in module._parameters}


@dataclass(frozen=True)
class _Dims:
    """Stands for a tensor in what a module returned."""

    number: int


class NoBranch(_InPlace):
    """Gives zeros that broadcast, [1, ..., 1], in whatever container the module returned its tensors."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Give zeros of the type of the first tensor of floating point."""
        like = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point())
        return self._give(lambda dims: like.new_zeros([1] * dims))


class PassOn(_InPlace):
    """Gives the first tensor that it is given, after functions of single values: operators and their constants."""

    def __init__(self, replaced: nn.Module, result: Any, functions: Sequence[tuple[Any, tuple[Any, ...]]] = ()) -> None:
        super().__init__(replaced, result)
        self.functions = tuple(functions)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Give the first tensor."""
        found = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        for function, constants in self.functions:
            found = function(found, *constants)
        return self._give(lambda _dims: found)


class NarrowableAttention(nn.MultiheadAttention):
    """The same parameters, arguments and results as `nn.MultiheadAttention`.

    Attributes:
        scale: What the queries are multiplied by. Absent before heads were narrowed: it is head_dim**-0.5 then.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002 - a hint for PyTorch's own kernels; the mask says it all
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; see `nn.MultiheadAttention.forward`."""
        if query.is_nested:
            return self._attend_nested(query, key, value, need_weights, average_attn_weights)
        single = query.dim() == 2
        if single:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._project(query, key, value)
        mask = self._mask(q, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self._scale()) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout, self.training)
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=self._scale())
        out = F.linear(out.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if single:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _attend_nested(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool, average_attn_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        lengths = [len(sequence) for sequence in query.unbind()]
        keys = torch.tensor([len(sequence) for sequence in key.unbind()], device=query.device)
        q, k, v = (t.to_padded_tensor(0.0) for t in (query, key, value))
        padding = torch.arange(k.shape[1], device=k.device) >= keys[:, None]
        out, weights = self(q, k, v, padding, need_weights, None, average_attn_weights)
        return torch.nested.as_nested_tensor([row[:n] for row, n in zip(out, lengths, strict=True)]), weights

    def _scale(self) -> float:
        scale: float = vars(self).get("scale", self.head_dim**-0.5)
        return scale

    def _project(self, *inputs: Tensor) -> list[Tensor]:
        packed = getattr(self, "in_proj_weight", None)
        if packed is not None:
            weights = packed.view(3, -1, self.embed_dim).unbind(0)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.view(3, -1).unbind(0)
        return [
            F.linear(x, weight, bias).view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        ]

    def _mask(self, q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        masks = []
        if attn_mask is not None:
            masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.view(len(q), -1, *attn_mask.shape[1:]))
        if key_padding_mask is not None:
            masks.append(key_padding_mask[:, None, None, :])
        total: Tensor | None = None
        for mask in masks:
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, float("-inf"))
            total = mask if total is None else total + mask
        return total


def make_narrowable(model: nn.Module) -> list[nn.MultiheadAttention]:
    """Let every `nn.MultiheadAttention` of a module compute by explicit heads; tell which ones."""
    changed = []
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
            module.__class__ = NarrowableAttention
            changed.append(module)
    return changed


def restore(attentions: Iterable[nn.MultiheadAttention]) -> None:
    """Let these modules compute as PyTorch does again."""
    for module in attentions:
        module.__class__ = nn.MultiheadAttention


@contextmanager
def narrowable(model: nn.Module) -> Iterator[None]:
    """The same for the time of a trace."""
    changed = make_narrowable(model)
    try:
        yield
    finally:
        restore(changed)
