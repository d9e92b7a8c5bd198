"""What ranks that hold parts of a model do in tests: functions of a module, so that a process of its own finds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.batches import TensorBatches
from pruning.errors import ModelError
from pruning.evaluation import evaluate_together
from pruning.training.callbacks import Callbacks
from pruning.training.fsdp import Divided
from pruning.training.launch import Report
from pruning.training.recipe import EarlyStopping, Recipe
from pruning.training.trainer import finetune
from pruning.world import World, own_part
from tasks.training_state import TrainingCheckpointer
from tests.pruning.training.together import network, samples, sha

VOCABULARY, LENGTH = 50, 9


class Block(nn.Module):
    """Attention and a wide layer, added to what they read; the branch's scale is one number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.wide = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        wide: Tensor = self.wide(x)
        return x + self.scale * wide


class Tied(nn.Module):
    """A language model whose head is its embedding; it has a layer that nothing runs, and one that is run twice."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.twice = nn.Linear(width, width)
        self.unused = nn.Linear(width, width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.twice(self.twice(x)).mean(1))
        return logits


class Recurrent(nn.Module):
    """An LSTM over embedded tokens, its last state classified."""

    def __init__(self, width: int = 17) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(VOCABULARY, width), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(self.embedding(tokens))[0][:, -1])
        return logits


class Chosen(nn.Module):
    """Two experts, of which the samples choose one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.experts = nn.ModuleList(nn.Linear(16, VOCABULARY) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.experts[int(tokens.sum()) % 2](self.embedding(tokens).mean(1))
        return logits


class Odd(nn.Module):
    """What state dicts leave out, a weight that is computed before each pass, and a parameter without values."""

    mean: Tensor
    passes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.normed = nn.utils.weight_norm(nn.Linear(16, 16))
        self.head = nn.Linear(16, VOCABULARY)
        self.none = nn.Parameter(torch.zeros(0, VOCABULARY))
        self.register_buffer("mean", torch.zeros(16), persistent=False)
        self.register_buffer("passes", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.normed(self.embedding(tokens).mean(1))
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
            self.passes += 1
        logits: Tensor = self.head(x - self.mean) + self.none.sum()
        return logits


class Penalized(nn.Module):
    """Takes gradients of its own gradients, for which gathered weights are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.wide = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens).mean(1)
        logits: Tensor = self.wide(x)
        if self.training:
            (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
            logits = logits + slope.square().sum(1, keepdim=True)
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {"tied": Tied, "recurrent": Recurrent}
RECIPES = (
    Recipe(name="sgd", epochs=1, batch_size=20, learning_rate=0.1),
    Recipe(name="adamw", epochs=1, batch_size=20, optimizer="adamw", precision="bf16", gradient_accumulation=8),
    Recipe(name="radam", epochs=1, batch_size=20, optimizer="RAdam", learning_rate=0.01, gradient_clip=0.1, ema=0.9),
    Recipe(name="distils", epochs=2, batch_size=20, distillation=0.5, early_stopping=EarlyStopping(restore_best=True)),
)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def texts(number: int = 103) -> TensorBatches:
    """As many that the last batch of 20 has three, which fill one shard of four."""
    drawn = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (number, LENGTH), generator=drawn)
    return TensorBatches(tokens, tokens.sum(1).remainder(VOCABULARY))


def train(world: World, name: str, recipe: Recipe) -> str:
    """Train a network; return its hash."""
    torch.set_num_threads(1)
    model, held_out = made(name), texts(31)

    def judge(model: nn.Module) -> Tensor:
        found = evaluate_together(world, model, held_out, batch_size=8, each=True).losses
        assert found is not None
        return -found

    finetune(
        model,
        texts(),
        recipe,
        seed=3,
        teacher=made(name) if recipe.distillation else None,
        callbacks=Callbacks(validate=judge if recipe.early_stopping else None, world=world),
    )
    return sha(model)


def work(world: World, report: Report | None = None) -> dict[str, str]:
    """Train all networks by all recipes."""
    return {f"{name} {recipe.name}": train(world, name, recipe) for name in NETWORKS for recipe in RECIPES}


def keep(world: World, report: Report | None, kept: Path, rank: int, step: int) -> str:
    """Train, kept after each step; a rank may be killed at one of them."""
    import os
    import signal

    def progress(done: int, total: int) -> None:
        if (world.rank, done) == (rank, step):
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    model = made("tied")
    recipe = Recipe(name="kept", epochs=2, batch_size=20, optimizer="adamw", ema=0.9)
    checkpointer = TrainingCheckpointer(kept, seconds=0, writes=world.is_first)
    finetune(
        model, texts(), recipe, seed=3, callbacks=Callbacks(progress=progress, checkpointer=checkpointer, world=world)
    )
    return sha(model)


def measure(world: World, report: Report) -> tuple[int, list[int], list[int]]:
    """Return the values of a model's weights, and how many each rank holds: of the weights, and of Adam's state."""
    torch.set_num_threads(1)
    model, tokens = made("tied"), texts().inputs
    divided = Divided(model, world, lambda model: model(tokens[:2]))
    optimizer = torch.optim.AdamW(divided.model.parameters())
    divided.before_backward(1.0, is_last=True)
    divided.model(tokens[:2]).sum().backward()
    optimizer.step()
    held = sum(own_part(one).numel() for one in divided.model.parameters())
    state = sum(
        own_part(one).numel() for kept in optimizer.state.values() for one in kept.values() if isinstance(one, Tensor)
    )
    return sum(one.numel() for one in model.parameters()), world.gather(held), world.gather(state)


def choose(world: World, report: Report) -> str:
    """Train experts that samples choose; return what all ranks are told."""
    torch.set_num_threads(1)
    try:
        finetune(Chosen(), texts(), RECIPES[0], seed=3, callbacks=Callbacks(world=world))
    except ModelError as fault:
        return str(fault)
    return ""


def train_odd(world: World, report: Report | None = None) -> dict[str, list[float]]:
    """Return all that a network holds after training."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Odd()
    finetune(model, texts(), RECIPES[0], seed=3, callbacks=Callbacks(world=world))
    return {name: one.flatten().tolist() for name, one in (*model.named_parameters(), *model.named_buffers())}


def train_penalized(world: World, report: Report | None = None) -> None:
    """Train what can't be trained in parts."""
    torch.set_num_threads(1)
    finetune(Penalized(), texts(), RECIPES[0], seed=3, callbacks=Callbacks(world=world))


def judge_in_parts(world: World, report: Report) -> bool:
    """Say whether a network of batch norms is scored alike whole and in parts, on a number of samples that is prime."""
    torch.set_num_threads(1)
    model, prime = network().eval(), samples(509)
    divided = Divided(model, world, lambda model: model(prime.inputs[:2]))
    one, other = (evaluate_together(world, found, prime, batch_size=7, each=True) for found in (model, divided.model))
    assert one.losses is not None
    assert other.losses is not None
    return one.num_samples == other.num_samples == 509 and torch.equal(one.losses, other.losses)
