"""A database of levels: what a layer's weights become when some of the channels that it reads are gone, made once.

Of each layer that reads a group, the least-squares weights for what is kept are worked out from the whole model's
statistics when they are first asked for, and kept. A model of any widths is then stitched together from them, without
another pass over the data.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as format_safetensors
from torch import Tensor, nn

from pruning.allocation.budget import BudgetSolver
from pruning.allocation.evolution import Evolution, Generation, Levels, evolve, levels_of
from pruning.allocation.selection import free_groups
from pruning.batches import Batches
from pruning.containers import as_call, find_tensors, with_tensors
from pruning.errors import CheckpointError, ModelError
from pruning.evaluation import Progress, device_of, restored_modes
from pruning.graph.groups import Groups
from pruning.importance import Ranking
from pruning.importance.least_squares import refit
from pruning.io.files import read_json, replace_file
from pruning.plan.plan import Plan
from pruning.plan.slicing import rebuild
from pruning.recovery.fold import Folded, fold_layers, solution
from pruning.statistics.collect import Statistics
from pruning.statistics.layer_hooks import Layer

Divergence = Callable[[Any, Any], Tensor]
"""(outputs of a model, those of the original) -> how far they are apart, a mean over samples, []."""


def relative_error(outputs: Any, answers: Any) -> Tensor:
    """Return ‖y′ − y‖² / ‖y‖², the mean over the outputs y of a model that are floating point.

    Raises:
        ModelError: They differ in number or shape.
    """
    found, wanted = (
        [one for one in find_tensors(part) if one.is_floating_point() or one.is_complex()]
        for part in (outputs, answers)
    )
    if [one.shape for one in found] != [one.shape for one in wanted]:
        raise ModelError("a narrowed model's outputs have other shapes than the original's")
    tiny = torch.finfo(torch.float64).tiny
    errors = [
        (one - other).abs().double().square().sum() / other.abs().double().square().sum().clamp(min=tiny)
        for one, other in zip(found, wanted, strict=True)
    ]
    return torch.stack(errors).mean()


class LevelDatabase:
    """Refitted weights by layer and by what it still reads, in memory or in a folder, the latest used up to a bound."""

    def __init__(self, folder: Path | None = None, max_bytes: int = 2**31) -> None:
        """Begin with what the folder holds.

        Args:
            folder: Made where it isn't there. Its name has to identify model and statistics: what lies there is taken
                as it is. None keeps the weights in memory.
            max_bytes: Of all weights that are kept; beyond it the ones that were not used for longest are dropped, and
                worked out anew if they are asked for again.
        """
        self._folder, self._max_bytes = folder, max_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._in_memory: dict[str, dict[str, Tensor]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._sizes.update((file.name, file.stat().st_size) for file in sorted(folder.glob("*.safetensors")))

    def get(self, layer: str, kept: Tensor, make: Callable[[], Folded]) -> Folded:
        """Return the refitted weights of a layer of which some columns are kept, bool [columns]."""
        name = sha256(layer.encode() + b"\0" + kept.numpy().tobytes()).hexdigest()[:32] + ".safetensors"
        tensors = self._read(name) if name in self._sizes else None
        if tensors is None:
            tensors = {key: one.to(torch.float32).contiguous() for key, one in make()._asdict().items()}
            self._write(name, tensors)
        self._sizes.move_to_end(name)
        return Folded(**tensors)

    def _read(self, name: str) -> dict[str, Tensor] | None:
        if self._folder is None:
            return self._in_memory[name]
        with suppress(OSError, SafetensorError):
            return load_file(self._folder / name)
        return None  # it is worked out again

    def _write(self, name: str, tensors: dict[str, Tensor]) -> None:
        if self._folder is None:
            self._in_memory[name] = tensors
        else:
            replace_file(self._folder / name, format_safetensors(tensors))
        self._sizes[name] = sum(one.nbytes for one in tensors.values())
        while sum(self._sizes.values()) > self._max_bytes and len(self._sizes) > 1:
            oldest, _ = self._sizes.popitem(last=False)
            self._in_memory.pop(oldest, None)
            if self._folder is not None:
                (self._folder / oldest).unlink(missing_ok=True)


class StitchedModels:
    """Judges plans by what they leave, its layers taken from a database of levels: the fitness of an evolution."""

    def __init__(
        self,
        groups: Groups,
        statistics: Statistics,
        samples: Batches,
        database: LevelDatabase,
        divergence: Divergence,
        *,
        original: nn.Module | None = None,
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        """Ask the original once.

        Args:
            groups: Found on the model that is to be narrowed.
            statistics: Gathered on it, moments among them.
            samples: What models are judged on; their targets are not looked at. So many of them always means the same
                ones, drawn by the seed.
            database: Of this model and these statistics.
            divergence: Between what a model and the original give, such as `Task.distillation` at temperature 1, or
                `relative_error`.
            original: Whose outputs are to be kept; by default the model of the groups.
            seed: Of the order of the samples.
            batch_size: Samples per forward pass.
        """
        self._groups, self._statistics, self._divergence, self._database = groups, statistics, divergence, database
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
        self._batches = [batch.to(device_of(groups.model)) for batch in samples.take(order).ordered(batch_size)]
        self._answers = list(_outputs(original or groups.model, [batch.inputs for batch in self._batches]))

    def judged(self, recovered: Callable[[Plan], nn.Module], plan: Plan) -> float:
        """Return how far what a plan leaves is from the original on all samples, as `recovered` recovers it."""
        try:
            return self.divergence(recovered(plan))
        except ModelError:
            return inf

    def stitched(self, plan: Plan) -> nn.Module:
        """Return the model that a plan leaves, with the weights of its levels."""
        model = rebuild(self._groups.model, self._groups, plan)
        fold_layers(model, plan, self._groups, self._statistics, self._solve)
        return model

    def _solve(self, layer: Layer, kept: Tensor, rows: Tensor) -> Folded:
        """Take the weights of a level for all outputs from the database, and of these the ones that are kept."""

        def make() -> Folded:
            return solution(layer, kept, torch.ones_like(rows), self._statistics, refit, _no_multiplicities)

        level = self._database.get(layer.weight, kept, make)
        pairs = [(level.matrices[index][row], level.lost[index][row]) for index, row in enumerate(rows) if row.any()]
        return Folded(*map(torch.stack, zip(*pairs, strict=True)))

    def divergence(self, model: nn.Module, num_samples: int | None = None) -> float:
        """Return how far a model is from the original, a mean over about so many samples; whole batches are taken.

        Infinite where its outputs are not finite, or have another shape.
        """
        total, seen, inputs = 0.0, 0, []
        for batch in self._batches:
            inputs.append(batch.inputs)
            seen += batch.size
            if num_samples is not None and seen >= num_samples:
                break
        pairs = zip(_outputs(model, inputs), self._answers, self._batches, strict=False)
        try:
            for outputs, answers, batch in pairs:
                total += float(self._divergence(outputs, answers)) * batch.size
        except ModelError:
            return float("inf")
        return total / max(1, seen) if total == total else float("inf")


def evolve_plan(
    solver: BudgetSolver,
    ranking: Ranking,
    starts: Sequence[Plan],
    stitched: StitchedModels,
    recovered: Callable[[Plan], nn.Module],
    settings: Evolution,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, Generation]:
    """Search for the plan that meets a target and leaves the model nearest to the original, see `evolve`.

    Offspring are sifted as stitched models, and judged after they were narrowed and recovered. Where channels of
    residual streams may go all are judged: the norms then see other magnitudes than those that the levels were made
    for, which recovery makes up for and a stitched model does not.

    Args:
        solver: Bundles and target.
        ranking: Which channels of a group go first.
        starts: Plans that meet the target, made from the same bundles and orders.
        stitched: Of the same groups.
        recovered: What a plan leaves, narrowed and recovered.
        settings: How long, how wide, and by which seed.
        state: A file that keeps the last generation, from which the search goes on if it is there. Its name has to
            identify all that shapes the search.
        progress: Told after each generation.

    Raises:
        TargetError: No start leaves a model whose distance from the original is finite.
        CheckpointError: The file is damaged.
    """
    groups = ranking.groups
    free = free_groups(solver.bundles)
    orders = ranking.orders(free)

    def plan_at(levels: Levels) -> Plan:
        return solver.plan(groups, levels, orders)

    def sift(levels: Levels, num_samples: int) -> float:
        return stitched.divergence(stitched.stitched(plan_at(levels)), num_samples)

    def judge(levels: Levels) -> float:
        return stitched.judged(recovered, plan_at(levels))

    def keep(generation: Generation) -> None:
        if state is not None:
            state.parent.mkdir(parents=True, exist_ok=True)
            replace_file(state, generation.model_dump_json().encode())

    last = None
    if state is not None and state.exists():
        last = read_json(state, Generation, error=CheckpointError, mend="delete it to start the search over")
    end = evolve(
        solver,
        [levels_of(one, solver.bundles) for one in starts],
        None if any(groups[name].mixed for name in free) else sift,
        judge,
        settings,
        last=last,
        keep=keep,
        progress=progress,
    )
    return plan_at(end.levels), end


def _no_multiplicities(_index: int) -> Tensor:
    raise AssertionError("least squares has none")


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Sequence[Any]) -> Any:
    with restored_modes(model):
        model.eval()
        for one in inputs:
            args, kwargs = as_call(one)
            yield with_tensors(model(*args, **kwargs), Tensor.detach)
