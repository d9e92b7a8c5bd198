"""Training in which each rank holds a part of every weight: torch's FSDP2, with the sums of `pruning.world`.

    unit      a module that runs once in a forward pass and alone reads its weights: gathered when it runs, then let go
    weights   each is divided along its first axis: rank r keeps the r-th part, of its gradient and moments too
    shards    rank r holds r, r + R, r + 2R, …, not neighbours:

        round 0   (g₀ + g₁) + (g₂ + g₃)          across ranks, as the backward pass leaves a unit: a reduce-scatter
        round 1   (g₄ + g₅) + (g₆ + g₇)
        then      round 0 + round 1              within a rank, on its parts

which is the tree of all other training, so the bits are the same: whether ranks hold the whole model or a part of it is
a question of memory alone. Norms of gradients are taken of whole ones, gathered one at a time. Optimizers have to go
element by element, as those below do.

Source: Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277; Rajbhandari et al. 2020, "ZeRO", arXiv 1910.02054.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from pruning.containers import with_tensors
from pruning.errors import ModelError, SettingsError
from pruning.evaluation import restored_modes
from pruning.graph.module_copy import copy_whole
from pruning.training.recipe import Recipe
from pruning.world import World, is_part, like, sum_neighbours, whole

ELEMENTWISE = frozenset(
    ("auto", "sgd", "adamw", "Adam", "Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "ASGD")
)
"""Optimizers that change each value by its own gradients alone, and whose operators torch knows for parts.

Rprop isn't among them: it writes by a mask, which `DTensor` refuses.
"""

_FUSED = frozenset(("adamw", "Adam"))  # whose fused kernels torch knows for parts

_LARGEST_UNIT = 1 / 16  # of all values; larger modules are divided into those that they are made of
_SMALLEST_UNIT = 1 / 1024  # smaller ones are gathered together with what is around them


def check_recipe(recipe: Recipe) -> None:
    """See that a recipe can be trained while each rank holds a part of the weights.

    Raises:
        SettingsError: It can't.
    """
    for wrong, text in (
        (
            recipe.optimizer not in ELEMENTWISE,
            f"optimizer {recipe.optimizer!r}, which may look at a weight as a whole; choose one of "
            + ", ".join(sorted(ELEMENTWISE, key=str.lower)),
        ),
        (
            bool(recipe.optimizer_kwargs.get("fused")) and recipe.optimizer not in _FUSED,
            f"fused in optimizer_kwargs, which {recipe.optimizer} can't be on parts; leave it out",
        ),
        (recipe.precision == "fp16", "precision fp16, whose scale follows from all gradients; choose bf16 or fp32"),
        (recipe.compile, "compile; leave it out"),
        (recipe.channels_last, "channels_last; leave it out"),
        (recipe.sparsity is not None, "sparsity, which needs whole channels; leave it out"),
        (recipe.trainer is not None, "a trainer of its own; leave it out"),
    ):
        if wrong:
            raise SettingsError(
                f"recipe {recipe.name!r} has {text}: each rank holds a part of every weight (parallel: fsdp). Or let "
                "each hold the whole model (parallel: ddp)"
            )


class Divided:
    """A copy of a model of which each rank holds a part, while it is trained.

    Attributes:
        model: What is trained: its parameters are `DTensor`s, but for those without an axis or without a value,
            which all ranks hold.
    """

    def __init__(self, model: nn.Module, world: World, call: Callable[[nn.Module], Any]) -> None:
        """Divide a copy of a model.

        Args:
            model: On the CPU; left as it is.
            world: Of more than one rank.
            call: Runs a model once.

        Raises:
            ModelError: The model can't be divided.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        self.model, self._world = copy_whole(model), world
        _check_model(self.model)
        mesh = init_device_mesh(world.device, (world.ranks,))
        wholes = {one for one in self.model.parameters() if one.ndim == 0 or one.numel() == 0}
        for unit in (*find_units(self.model, call), self.model):
            unit.register_forward_hook(_without_views)
            fully_shard(unit, mesh=mesh, ignored_params=wholes)
        self.model.to(world.device)  # what FSDP leaves alone
        self._units = [one for one in self.model.modules() if isinstance(one, FSDPModule)]
        names = {module: name or type(model).__name__ for name, module in self.model.named_modules()}
        self._sum = _tree_reduce_scatter()
        for number, one in enumerate(self._units):
            one.set_custom_all_gather(_careful_all_gather(world, [names[unit] for unit in self._units], number))
            one.set_custom_reduce_scatter(self._sum)
            one.set_gradient_divide_factor(1.0)
            one.set_force_sum_reduction_for_comms(enable=True)
            one.set_reduce_scatter_unused_params(True)  # else ranks with other experts send other numbers
        self.model.register_load_state_dict_pre_hook(_divide_state)  # type: ignore[no-untyped-call]
        self._reached: set[Tensor] = set()
        self._watch()

    def _watch(self) -> None:
        """Note which parameters a backward pass reaches; FSDP gives zeros to the others."""
        for unit in self._units:
            before = dict(unit.named_parameters())
            unit.unshard()
            for name, parameter in unit.named_parameters():
                if parameter.requires_grad and (parameter is not before[name] or not is_part(parameter)):
                    hook = partial(self._note, before[name])
                    parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            unit.reshard()

    def _note(self, parameter: Tensor, _gathered: Tensor) -> None:
        self._reached.add(parameter)

    def begin(self) -> None:
        """Begin with a shard."""
        self._reached.clear()

    def has_gradient(self, parameters: Sequence[Tensor]) -> list[bool]:
        """Say of each parameter whether the passes since `begin` have reached it."""
        return [one in self._reached for one in parameters]

    def before_backward(self, scale: float, *, is_last: bool) -> None:
        """Say what follows.

        Args:
            scale: What the gradients of this shard are multiplied by before they are summed; 0: they count nothing,
                whatever they are.
            is_last: Whether this is the last backward pass of the shard, after which gradients are summed.
        """
        self._sum.scale = scale
        self.model.set_requires_gradient_sync(is_last)  # type: ignore[operator]

    @torch.no_grad()
    def write_to(self, model: nn.Module) -> None:
        """Give a whole model on the CPU these weights; all ranks have to call it."""
        state = {name: whole(tensor).cpu() for name, tensor in self.model.state_dict().items()}
        model.load_state_dict(state)
        for own, found in zip(model.buffers(), self.model.buffers(), strict=True):  # also those that no state has
            own.copy_(found)


def _check_model(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise ModelError(
                f"{name} is {str(parameter.dtype).removeprefix('torch.')} on {parameter.device}; a model that ranks "
                "hold in parts has to be float32, and on the CPU before. For halves set the recipe's precision to bf16"
            )
        if not parameter.is_contiguous():
            raise ModelError(
                f"{name} {list(parameter.shape)} lies in memory with strides {list(parameter.stride())}; a model that "
                "ranks hold in parts has to have contiguous weights. Make it nn.Parameter(weight.contiguous()), or "
                "let each rank hold the whole model (parallel: ddp)"
            )


class _Rehearsal(TorchFunctionMode):
    """One run of a model, and who used what in it; buffers and the global random state are as before."""

    def __init__(self, model: nn.Module, call: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self._running: list[nn.Module] = []
        self._known = set(model.parameters())
        self._inputs: dict[nn.Module, list[list[Tensor]]] = {}
        self._uses: dict[Tensor, list[frozenset[nn.Module]]] = {}
        before = [one.clone() for one in model.buffers()]
        with restored_modes(model), torch.random.fork_rng(devices=[]), torch.enable_grad(), ExitStack() as hooks, self:
            for module in model.modules():
                hooks.callback(module.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(self._leave).remove)
            call(model.eval())
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._running.append(module)
        self._inputs.setdefault(module, []).append(_trained(args, kwargs))

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _trained(result):  # else it may be a shape that was asked for
            for one in _trained(args, kwargs):
                self._uses.setdefault(one, []).append(frozenset(self._running))
        return result

    def is_unit(self, module: nn.Module) -> bool:
        """Say whether a module ran once, alone used its weights, and can be cut out of the backward pass.

        FSDP puts a node of autograd behind each input that has a gradient. That changes the order of a sum, and with it
        the last bits, where an input is used twice within the module and outside of it too, or is given to it twice.
        """
        runs = self._inputs.get(module, [])
        if len(runs) != 1 or len(set(map(id, runs[0]))) < len(runs[0]):
            return False
        for one in (*runs[0], *module.parameters()):
            within = [module in use for use in self._uses.get(one, [])]
            if not all(within) and (one in self._known or sum(within) > 1):
                return False
        return True


def _trained(*values: Any) -> list[Tensor]:
    """Return the tensors in some values that gradients flow to."""
    return [one for one in tree_leaves(values) if isinstance(one, Tensor) and one.requires_grad]


def find_units(model: nn.Module, call: Callable[[nn.Module], Any]) -> list[nn.Module]:
    """Find the modules whose weights are gathered together, inner ones first; what is left is the model's own.

    Args:
        model: Any.
        call: Runs it once.
    """
    rehearsal = _Rehearsal(model, call)
    total = sum(one.numel() for one in model.parameters())
    units, seen = list[nn.Module](), set[nn.Module]()

    def look(module: nn.Module) -> None:
        for child in module.children():
            size = sum(one.numel() for one in child.parameters())
            if child in seen or size < _SMALLEST_UNIT * total:
                continue
            seen.add(child)
            fits = rehearsal.is_unit(child)
            if not fits or size > _LARGEST_UNIT * total:
                look(child)
            if fits:
                units.append(child)

    look(model)
    return units


def _careful_all_gather(world: World, units: Sequence[str], number: int) -> Any:
    """Return what FSDP is to gather a unit's weights by: ranks that run other units are told, and don't mix them up."""
    from torch import distributed
    from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather  # of `set_custom_all_gather`

    class CarefulAllGather(AllGather):
        def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
            return torch.empty(*size, dtype=dtype, device=device)

        def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
            found = world.join(torch.tensor([number])).flatten().tolist()
            if len(set(found)) > 1:
                raise ModelError(
                    "which modules run depends on the samples, or on chance: "
                    + ", ".join(f"rank {rank} is at {units[other]}" for rank, other in enumerate(found))
                    + ". Ranks that hold parts of the weights have to run all alike (parallel: fsdp); let each hold "
                    "the whole model (parallel: ddp)"
                )
            return distributed.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)

    return CarefulAllGather()


def _tree_reduce_scatter() -> Any:
    """Return what FSDP is to sum gradients by: each rank's part, by the tree, with the shard's scale."""
    from torch import distributed
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter  # of `set_custom_reduce_scatter`

    class TreeReduceScatter(ReduceScatter):
        scale = 1.0

        def allocate(self, size: Sequence[int | torch.SymInt], *, dtype: torch.dtype, device: torch.device) -> Tensor:
            return torch.empty(*size, dtype=dtype, device=device)

        def __call__(
            self,
            output_tensor: Tensor,
            input_tensor: Tensor,
            group: Any,
            op: Any,  # noqa: ARG002 - FSDP's interface; sums alone are asked for
            async_op: bool = False,  # noqa: ARG002 - it never is
        ) -> None:
            if self.scale == 0:
                input_tensor.zero_()
            else:
                input_tensor.mul_(self.scale)
            received = torch.empty_like(input_tensor)
            distributed.all_to_all_single(received, input_tensor, group=group)
            output_tensor.copy_(sum_neighbours(received.view(-1, output_tensor.numel())))

    return TreeReduceScatter()


def _without_views(_module: nn.Module, _args: Any, output: Any) -> Any:
    """Copy outputs that are views: one that is changed in place would lose the hook by which FSDP gathers weights."""
    return with_tensors(output, lambda one: one.clone() if one._is_view() else one)


def _divide_state(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
    """Let a model in parts take whole tensors, such as those of a file."""
    for name, own in module.state_dict().items():
        if name in state:
            state[name] = like(own, state[name])
