"""Whole blocks: residual branches that can go, and models without them.

A branch whose parameters are zero gives zeros, and what is added of it counts for nothing; so the model without it can
be proven like any other. What runs a branch is replaced: where nothing but additions of gone branches and functions of
single values are left of a module, it gives what it was given (`PassOn`); otherwise the modules that belong to the
branch alone give a zero that broadcasts (`NoBranch`), and nothing in them is run. What neither makes exact isn't
offered.

Source: Men et al. 2024, ShortGPT, arXiv 2403.03853; Song et al. 2024, SLEB, arXiv 2402.09025: blocks of transformers.
Zhong et al. 2024, BlockPruner, arXiv 2406.10594: attention and MLP apart. Here a branch of any network.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

from pruning.containers import Inputs
from pruning.errors import PlanError, unknown_name
from pruning.graph.branches import Branch, Flow, Value, find_branches, passes_of
from pruning.graph.contexts import no_leftovers
from pruning.graph.dispatch import Listeners, Place, examples_of, lacks_values, watch
from pruning.graph.module_copy import NoBranch, PassOn, copy_module, copy_whole
from pruning.graph.rules.call import is_pointwise, operator_name, tensors_in
from pruning.graph.trace import Trace, trace
from pruning.graph.unwrapping import unwrap
from pruning.plan.example_variants import run_from_cache, takes_cache
from pruning.plan.plan import Plan
from pruning.plan.verification import TOLERANCE, attempt, relative_difference


@dataclass(frozen=True)
class Block:
    """A residual branch that can be removed exactly.

    Attributes:
        name: Path of its last layer's module: the same for every instance of the architecture.
        added_in: Path of the module whose code adds it.
        parameters: Names of the parameters that it alone reads.
        macs: MACs of its matrix products and convolutions, in one pass of the example inputs.
    """

    name: str
    added_in: str
    parameters: tuple[str, ...]
    macs: int

    def __str__(self) -> str:
        return f"{self.name}: added in {self.added_in or 'the model itself'}, {self.macs:,} MACs"


class Blocks(Mapping[str, Block]):
    """The removable branches of one model, by name, in forward order.

    Attributes:
        model: The module on which they were found.
        example_inputs: With which it was traced.
        refused: By the name of a branch, or of the module that adds one: why it isn't offered.
    """

    def __init__(self, model: nn.Module, example_inputs: Inputs, traced: Trace) -> None:
        self.model, self.example_inputs, self.refused = model, example_inputs, dict[str, str]()
        self._trace = traced
        with no_leftovers():
            self._flow, *others = [_Pass(model, flow) for flow in passes_of(model, traced)]
            self._branches = self._usable(others)
            self._keep_those_that_run()
            self._keep_those_that_vanish()
            self._keep_those_that_leave_the_cache_right()
        self._blocks = {name: self._describe(branch) for name, branch in self._branches.items()}

    def __getitem__(self, name: str) -> Block:
        if name not in self._blocks:
            raise PlanError(f"{unknown_name('block', name, self._blocks)} (of {type(self.model).__name__})")
        return self._blocks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._blocks

    def __iter__(self) -> Iterator[str]:
        return iter(self._blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def __str__(self) -> str:
        head = f"{type(self.model).__name__}: {len(self)} blocks can be removed"
        return "\n".join([head, *(f"  {b}" for b in self.values()), *(f"  {n}: {r}" for n, r in self.refused.items())])

    def plan(self, names: Collection[str]) -> Plan:
        """Make a plan that removes these blocks and no channels.

        Raises:
            PlanError: One is unknown.
        """
        for name in names:
            self[name]
        return Plan(removed={}, sizes={}, blocks=tuple(name for name in self if name in set(names)))

    def without(self, names: Collection[str], model: nn.Module | None = None) -> nn.Module:
        """Copy the model without some blocks. Its parameters are shared with the original.

        Args:
            names: Of the blocks.
            model: Another instance of the architecture, where it isn't to be the one on which they were found.

        Raises:
            PlanError: One is unknown.
        """
        return self._without([self._branches[self[name].name] for name in names], model or self.model)

    def masked(self, names: Collection[str], model: nn.Module | None = None) -> nn.Module:
        """Copy the model with the parameters of some blocks zeroed, so that they give zeros: the reference of proofs.

        Raises:
            PlanError: One is unknown.
        """
        return with_zeros(model or self.model, [name for block in names for name in self[block].parameters])

    def addition_of(self, name: str) -> tuple[str, int, int]:
        """Return the module that adds a block, which of its additions that is, and which operand the stream is."""
        return self._place(self._branches[self[name].name])

    def _adds(self, module: str) -> list[int]:
        return [i for i, step in enumerate(self._flow.flow.steps) if step.name == "add" and step.module == module]

    def _place(self, branch: Branch) -> tuple[str, int, int]:
        module = self._flow.flow.steps[branch.addition].module
        return module, self._adds(module).index(branch.addition), branch.stream

    def _describe(self, branch: Branch) -> Block:
        run = [*branch.parts, *self._flow.passing([branch])]
        inside = {
            self._flow.flow.steps[i].module for path in run for i in self._flow.flow.inside(path) if i in branch.steps
        }
        products = [one.terms for one in self._trace.facts.contractions if one.module in inside]
        macs = sum(prod(axis.size for axis in terms) for terms in products)
        return Block(branch.name, self._flow.flow.steps[branch.addition].module, branch.parameters, macs)

    def _usable(self, others: Sequence[_Pass]) -> dict[str, Branch]:
        """The branches that all passes have alike and whose parts can be replaced."""
        found: dict[str, Branch] = {}
        self.refused.update(self._flow.reasons)
        names = [branch.name for branch in self._flow.branches]
        for branch in self._flow.branches:
            reason = self._reason(branch, names)
            if reason is None and any(branch.name not in one.names for one in others if one.calls(branch.name)):
                reason = "on another example, or in training, it is no branch"
            if reason is None:
                found[branch.name] = branch
            else:
                self.refused[branch.name] = reason
        return found

    def _reason(self, branch: Branch, names: Sequence[str]) -> str | None:
        flow = self._flow
        if not branch.name or names.count(branch.name) > 1:
            return "it holds residual branches of its own, or no module's last layer tells it from others"
        for path in branch.parts:
            for module in self.model.get_submodule(path).modules():
                pre = [h for h in module._forward_pre_hooks.values() if not isinstance(h, WeightNorm | SpectralNorm)]
                if pre or module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
                    return f"{path} carries hooks, which would be called no more"
        if any(other.addition in branch.steps for other in flow.branches) or flow.holds_absent(branch):
            return "it holds residual branches of its own"
        if flow.passing([branch]):
            return None
        loose = {flow.flow.steps[index].module for index in branch.loose}
        if any(one.module in loose for one in self._trace.facts.contractions):
            return f"the code of {min(loose)!r} computes a part of it outside of modules that belong to it alone"
        for path in branch.parts:
            if not _is_plain(flow.flow.calls[path].result):
                return f"{path} returns more than tensors in tuples, lists and dictionaries"
        return None if branch.parts else "no module belongs to it alone"

    def _without(self, branches: Sequence[Branch], model: nn.Module, *, bypass: bool = True) -> nn.Module:
        copy = copy_module(model)
        passing = self._flow.passing(branches) if bypass else {}
        chosen: dict[str, nn.Module] = {}
        for path, functions in passing.items():
            chosen[path] = PassOn(copy.get_submodule(path), self._flow.flow.calls[path].result, functions)
        for branch in branches:
            if self._flow.flow.steps[branch.addition].module not in passing:
                for path in branch.parts:
                    chosen[path] = NoBranch(copy.get_submodule(path), self._flow.flow.calls[path].result)
        for path, module in chosen.items():
            copy.set_submodule(path, module)
            around = copy.get_submodule(path.rpartition(".")[0])
            if isinstance(around, nn.TransformerEncoderLayer):
                around.activation_relu_or_gelu = 0  # its fused path would read the weights that are gone
        return copy

    def _runs(self, branches: Sequence[Branch], *, bypass: bool = True) -> bool:
        """Whether the model runs without these branches, with outputs of the same shapes."""

        def shapes(model: nn.Module) -> list[torch.Size]:
            listeners = Listeners(lambda *_: None)
            outputs = watch(model, self._trace.example, listeners, self._trace.tensors, training=self._trace.training)
            return [tensor.shape for tensor in outputs]

        shallow = self._without(branches, self.model, bypass=bypass)
        return attempt(shapes, shallow) == shapes(copy_module(self.model))

    def _keep_those_that_run(self) -> None:
        """Drop the branches without which the model's code doesn't run."""
        alone = [branch for branch in self._branches.values() if not self._flow.passing([branch])]
        if alone and not self._runs(alone, bypass=False):
            for branch in alone:
                if not self._runs([branch]):
                    self._refuse(branch, "the code around it needs what it gives in its full shape")
        while self._branches and not self._runs(list(self._branches.values())):
            last = list(self._branches.values())[-1]
            self._refuse(last, "the model's code doesn't run without it and the others")

    def _keep_those_that_vanish(self) -> None:
        """Drop the branches that give something although all of their parameters are zero."""
        if not self._branches or lacks_values(self.model):
            return
        zeroed = with_zeros(self.model, [name for one in self._branches.values() for name in one.parameters])
        seen: dict[str, list[list[bool]]] = {}

        def on_call(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any, place: Place) -> None:
            if operator_name(func) == "add" and tensors_in(result):
                operands, whole = tensors_in(args, kwargs), tensors_in(result)[0]
                # An addition in place has been carried out by now: it added nothing if the other operand is the sum.
                nothing = [
                    torch.equal(whole, operands[1 - i]) if one is whole and len(operands) == 2 else not bool(one.any())
                    for i, one in enumerate(operands)
                ]
                seen.setdefault(place.module, []).append(nothing)

        attempt(partial(watch, zeroed, self._trace.example, Listeners(on_call), "real", training=self._trace.training))
        for branch in list(self._branches.values()):
            module, place, stream = self._place(branch)
            here = seen.get(module, [])
            if len(here) != len(self._adds(module)) or not here[place][1 - stream]:
                self._refuse(branch, "it gives something even where its parameters are zero")

    def _keep_those_that_leave_the_cache_right(self) -> None:
        """Drop the branches without which a model goes on wrongly from its cache: it counts positions by one layer."""
        example = examples_of(self.example_inputs)[0]
        if takes_cache(self.model, example) is None:
            return
        for branch in list(self._branches.values()):
            zeroed = None if lacks_values(self.model) else with_zeros(self.model, branch.parameters)
            expected = None if zeroed is None else attempt(run_from_cache, zeroed, example)
            if expected is None:
                if self._is_numbered(branch):
                    self._refuse(branch, "whether the model goes on from its cache without it can't be tried")
                continue
            found = attempt(run_from_cache, self._without([branch], self.model), example)
            if expected and (found is None or not relative_difference(expected, found) <= TOLERANCE):
                self._refuse(
                    branch, "without it the model goes on wrongly from its cache, which counts positions by it"
                )

    def _is_numbered(self, branch: Branch) -> bool:
        modules = (module for path in branch.parts for module in self.model.get_submodule(path).modules())
        return any(isinstance(getattr(module, "layer_idx", None), int) for module in modules)

    def _refuse(self, branch: Branch, reason: str) -> None:
        self.refused[branch.name] = reason
        del self._branches[branch.name]


class _Pass:
    """The branches of one pass, and what is left of modules without them."""

    def __init__(self, model: nn.Module, flow: Flow) -> None:
        absent = {path for path, module in model.named_modules() if isinstance(module, NoBranch)}
        self.flow = flow
        self._passed = [path for path, module in model.named_modules() if isinstance(module, PassOn)]
        self._absent, self._added_nothing = _of_nothing(flow, absent)
        self.branches, self.reasons = find_branches(flow, self._absent)
        self.names = {branch.name for branch in self.branches}

    def calls(self, name: str) -> bool:
        """Say whether the pass calls a module."""
        return name in self.flow.calls

    def holds_absent(self, branch: Branch) -> bool:
        """Say whether a module that passes on what it is given stands within a branch, or may do so."""
        written = {memory for index in branch.steps for memory, _ in self.flow.steps[index].writes}
        module = self.flow.steps[branch.addition].module
        for path in self._passed:
            call = self.flow.calls.get(path)
            within = bool(module) and module in self.flow.around(path)
            if call is not None and call.given is not None and (within or call.given[0] in written):
                return True
        return False

    def passing(self, branches: Collection[Branch]) -> dict[str, list[tuple[Any, tuple[Any, ...]]]]:
        """Return the modules that pass on what they are given, once branches are gone, with functions after that."""
        found = {}
        gone = self._absent.union(*(branch.steps for branch in branches))
        for path in {self.flow.steps[branch.addition].module for branch in branches}:
            there = [b for b in branches if self.flow.steps[b.addition].module == path]
            additions = self._added_nothing | {b.addition: b.stream for b in there}
            functions = self._functions(path, gone, additions) if path else None
            if functions is not None:
                found[path] = functions
        return found

    def _functions(
        self, path: str, gone: frozenset[int], additions: Mapping[int, int]
    ) -> list[tuple[Any, tuple[Any, ...]]] | None:
        flow = self.flow
        call = flow.calls[path]
        if call.count != 1 or call.given is None or len(call.returned) != 1:
            return None
        memory, lie = call.given
        value = None
        functions: list[tuple[Any, tuple[Any, ...]]] = []
        for index in sorted(flow.inside(path) - gone):
            step = flow.steps[index]
            if index in additions:
                operand = additions[index]
                read, lies = step.reads[operand], step.inputs[operand]
            elif is_pointwise(step.function) and step.constants is not None:
                read, lies = step.reads[0], step.inputs[0]
                functions.append((_out_of_place(step.function), step.constants))
            else:
                return None
            if lies != lie or (read[0] != memory if value is None else read != value) or step.output is None:
                return None
            value, lie = step.writes[0], step.output
        (returned, returned_lie) = call.returned[0]
        if value is None or returned != value or returned_lie != lie or lie != call.given[1]:
            return None
        if not functions and flow.is_written_later(value):
            return None  # what is given would be written into
        return functions if _is_plain(call.result) else None


def _is_plain(result: Any) -> bool:
    """Whether a result is made of tensors and plain values, so that it can be made anew around others."""
    return all(leaf is None or isinstance(leaf, Tensor | bool | int | float | str) for leaf in tree_leaves(result))


def _of_nothing(flow: Flow, absent: Collection[str]) -> tuple[frozenset[int], dict[int, int]]:
    """Return the steps that compute with the zeros of absent branches alone, and which operand stays of their sums."""
    zeros: set[Value] = set()
    steps: set[int] = set()
    additions: dict[int, int] = {}
    for index, step in enumerate(flow.steps):
        read = [value for value in step.reads if value not in flow.state]
        if step.module in absent or (read and zeros.issuperset(read)):
            steps.add(index)
            zeros.update(step.writes)
        elif step.adds and len(of_zeros := [i for i, value in enumerate(step.reads) if value in zeros]) == 1:
            additions[index] = 1 - of_zeros[0]
    return frozenset(steps), additions


def _out_of_place(function: Any) -> Any:
    if not function._schema.is_mutable:
        return function
    name = function._schema.name.removeprefix("aten::").removesuffix("_")
    return getattr(getattr(torch.ops.aten, name), function._overloadname)


def with_zeros(model: nn.Module, names: Collection[str]) -> nn.Module:
    """Copy a model with some of its parameters zeroed."""
    copy = copy_whole(model)
    parameters = dict(copy.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name in names:
            parameters[name].zero_()
    return copy


def find_blocks(model: nn.Module, example_inputs: Inputs) -> Blocks:
    """Find the residual branches that can be removed whole, of any network.

    A branch is what lies between a tensor and the addition that adds to it, where nothing else reads what lies there.
    A block of a transformer is two of them, which can go one by one or both.

    Args:
        model: Any module; it is left as it was.
        example_inputs: As for `find_groups`.

    Returns:
        The blocks by name; `print(blocks)` lists them, and why others aren't offered.

    Raises:
        ModelError: The model can't be run on these inputs.
    """
    model = unwrap(model)
    traced = trace(model, example_inputs)
    return Blocks(model, example_inputs, traced)
