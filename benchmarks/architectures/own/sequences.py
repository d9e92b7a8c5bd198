# ruff: noqa: D102 - what `forward` computes is what its class says
"""Networks for sequences, sets, graphs and tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class TemporalBlock(nn.Module):
    """Two dilated causal convolutions with normed weights and a shortcut."""

    def __init__(self, i: int, o: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.first = weight_norm(nn.Conv1d(i, o, 3, padding=self.pad, dilation=dilation))
        self.second = weight_norm(nn.Conv1d(o, o, 3, padding=self.pad, dilation=dilation))
        self.short = nn.Conv1d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x)[:, :, : -self.pad])
        y = F.relu(self.second(y)[:, :, : -self.pad])
        return F.relu(y + self.short(x))


class TemporalConvolutions(nn.Module):
    """TCN."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(TemporalBlock(7, 12, 1), TemporalBlock(12, 12, 2), TemporalBlock(12, 18, 4))
        self.fc = nn.Linear(18, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x)[:, :, -1])  # type: ignore[no-any-return]


class WaveNet(nn.Module):
    """Gated dilated convolutions, residual and skip sums."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(7, 12, 1)
        self.gates = nn.ModuleList(nn.Conv1d(12, 2 * 14, 3, padding=d, dilation=d) for d in (1, 2, 4))
        self.residuals = nn.ModuleList(nn.Conv1d(14, 12, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(14, 18, 1) for _ in range(3))
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(18, 22, 1), nn.ReLU(), nn.Conv1d(22, 9, 1))

    def forward(self, x: Tensor) -> Any:
        x, total = self.first(x), torch.zeros(())
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            a, b = gate(x).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + residual(y), total + skip(y)
        return self.last(total)


class Recurrent(nn.Module):
    """Recurrent layers of torch with a linear layer on the last step."""

    def __init__(
        self,
        kind: Callable[..., nn.Module] = nn.LSTM,
        num_layers: int = 1,
        bidirectional: bool = False,
        projection: int = 0,
    ) -> None:
        super().__init__()
        options = {"proj_size": projection} if projection else {}
        self.embed = nn.Linear(7, 12)
        self.body = kind(12, 20, num_layers=num_layers, bidirectional=bidirectional, batch_first=True, **options)
        self.fc = nn.Linear((projection or 20) * (1 + bidirectional), 10)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.body(torch.relu(self.embed(x)))
        return self.fc(y[:, -1])  # type: ignore[no-any-return]


class Unrolled(nn.Module):
    """A cell called in a Python loop."""

    def __init__(self, kind: type[nn.LSTMCell] | type[nn.GRUCell]) -> None:
        super().__init__()
        self.cell, self.fc = kind(7, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.fc(state[0] if isinstance(state, tuple) else state)  # type: ignore[no-any-return]


class ConvolutionalRecurrent(nn.Module):
    """CRNN, as read text with: convolutions, then an LSTM over the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(10, 14, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1)),
        )  # fmt: skip
        self.lstm, self.fc = nn.LSTM(14 * 4, 18, bidirectional=True), nn.Linear(36, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = y.permute(3, 0, 1, 2).flatten(2)
        return F.log_softmax(self.fc(self.lstm(y)[0]), -1)


class Encoder(nn.Module):
    """torch's own transformer encoder."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(36, 3, 52, batch_first=True, norm_first=norm_first)
        self.embed, self.fc = nn.Linear(7, 36), nn.Linear(36, 10)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.embed(x)).mean(1))  # type: ignore[no-any-return]


class Translation(nn.Module):
    """torch's own transformer with embeddings and a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(101, 36), nn.Transformer(36, 3, 2, 2, 52, batch_first=True)
        self.last = nn.Linear(36, 101)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.last(self.body(self.embed(source), self.embed(target), tgt_mask=mask))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """LSTM with embeddings tied to the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(101, 24), nn.LSTM(24, 24, 2, batch_first=True)
        self.last = nn.Linear(24, 101, bias=False)
        self.last.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.last(self.body(self.embed(tokens))[0])  # type: ignore[no-any-return]


class PointNet(nn.Module):
    """A set of points: shared layers, a learned transform, the largest of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.align = nn.Sequential(nn.Conv1d(3, 14, 1), nn.BatchNorm1d(14), nn.ReLU())
        self.matrix = nn.Linear(14, 9)
        self.body = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU(), nn.Conv1d(16, 26, 1))
        self.fc = nn.Sequential(nn.Linear(26, 20), nn.ReLU(), nn.Linear(20, 10))

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.align(x).amax(2)).view(-1, 3, 3) + torch.eye(3)
        return self.fc(self.body(torch.bmm(matrix, x)).max(2)[0])  # type: ignore[no-any-return]


class GraphConvolutions(nn.Module):
    """GCN with a dense adjacency matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(15, 20), nn.Linear(20, 12), nn.Linear(12, 4)

    def forward(self, features: Tensor, adjacency: Tensor) -> Tensor:
        adjacency = adjacency / adjacency.sum(1, keepdim=True)
        y = F.relu(adjacency @ self.first(features))
        return self.last(F.relu(adjacency @ self.second(y)))  # type: ignore[no-any-return]


class Recommender(nn.Module):
    """DLRM: embeddings of categories, an MLP of numbers, all pairs of dot products."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(29, 16) for _ in range(3))
        self.bottom = nn.Sequential(nn.Linear(13, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(16 + 6, 20), nn.ReLU(), nn.Linear(20, 1))

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        vectors = torch.stack([dense, *(table(categories[:, i]) for i, table in enumerate(self.tables))], 1)
        products = vectors @ vectors.transpose(1, 2)
        rows, columns = torch.tril_indices(4, 4, offset=-1)
        return torch.sigmoid(self.top(torch.cat([dense, products[:, rows, columns]], 1)))
