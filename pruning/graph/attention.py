"""`nn.MultiheadAttention` with heads that can go.

PyTorch's own computes the width of a head from the width of the model, so a head can't be removed from it. This one
computes the same function from the same parameters, and takes the number of heads and the scale as they were trained.

In evaluation, `nn.TransformerEncoder` hands nested tensors to its layers where it is given a padding mask. Layers whose
attention is as wide as it was take PyTorch's fused path then; the others compute by this class, which reads them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
