"""Every rule is right because pruning commutes with its operator, shown by running it.

slice law        op(pruned inputs) = prune(op(inputs))                       for channels on an output
contraction law  op(pruned inputs) = op(inputs with those channels zeroed)   for channels on inputs alone

Sizes are distinct, so that a swapped axis can't pass. No expected value is written down but the number of groups that
stay free.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning.graph.axes import Atom, kept, leaves, resolve
from pruning.graph.rules import RULES
from pruning.graph.rules.call import Typed
from pruning.graph.trace import IDENTITIES, Trace, type_pass
from tests.pruning.graph.rules.samples import SAMPLES, Sample


class Operator(nn.Module):
    def __init__(self, sample: Sample) -> None:
        super().__init__()
        self.sample = sample
        generator = torch.Generator().manual_seed(1)
        self.operands = nn.ParameterList(torch.rand(shape, generator=generator) + 0.1 for shape in sample.shapes)

    def forward(self) -> Any:
        return self.sample.function(*self.operands)


def run(operator: Operator) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        result = operator()
    return [t.detach() for t in ([result] if isinstance(result, Tensor) else result)]


def typed(sample: Sample) -> tuple[Operator, Trace, list[Typed]]:
    operator = Operator(sample)
    traced, outputs = type_pass(operator, ())
    return operator, traced, outputs


def free_atoms(traced: Trace) -> dict[Atom, None]:
    atoms = (atom for axes in traced.parameters.values() for axis in axes for atom in leaves(axis))
    return dict.fromkeys(atom for atom in atoms if not atom.frozen and atom.size > 1)


def with_ties(atom: Atom, traced: Trace) -> list[Atom]:
    tied = [t for t in traced.facts.ties if any(atom is other for axis in t for other in leaves(axis))]
    assert all(isinstance(resolve(axis), Atom) for t in tied for axis in t)
    return [other for t in tied for axis in t for other in leaves(axis)] or [atom]


def check(operator: Operator, traced: Trace, outputs: list[Typed], atoms: list[Atom], seed: int) -> float:
    """Remove channels of the given atoms; return the largest violation of the two laws."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for atom in atoms:
        mask = torch.ones(atom.size, dtype=torch.bool)
        mask[torch.randperm(atom.size, generator=generator)[: max(1, atom.size // 3)]] = False
        masks[atom] = mask
    on_output = {atom for out in outputs for axis in out.axes for atom in leaves(axis)}
    gone = {atom: mask for atom, mask in masks.items() if operator.sample.carried or atom not in on_output}
    zeroed, pruned = Operator(operator.sample), Operator(operator.sample)
    for index, (name, parameter) in enumerate(operator.named_parameters()):
        data, cut = parameter.detach().clone(), parameter.detach().clone()
        for position, axis in enumerate(traced.parameters[name]):
            shape = [1] * data.ndim
            shape[position] = -1
            if (name, position) not in traced.facts.unmasked:
                data *= kept(axis, gone).reshape(shape)
            cut = cut.index_select(position, kept(axis, masks).nonzero().flatten())
        zeroed.operands[index] = nn.Parameter(data)
        pruned.operands[index] = nn.Parameter(cut)
    worst = 0.0
    for out, full, small in zip(outputs, run(zeroed), run(pruned), strict=True):
        expected = full
        for position, axis in enumerate(out.axes):
            expected = expected.index_select(position, kept(axis, masks).nonzero().flatten())
        assert small.shape == expected.shape
        if expected.numel():
            worst = max(worst, float((small - expected).abs().max()))
    return worst


@pytest.mark.parametrize("sample", SAMPLES)
def test_pruning_commutes_with_the_operator(sample: Sample) -> None:
    operator, traced, outputs = typed(sample)
    assert not traced.unknown, traced.unknown
    atoms = list(free_atoms(traced))
    exact = [atom for atom in atoms if not atom.mixed]
    assert (len(exact), len(atoms) - len(exact)) == (sample.free, sample.mixed)
    for seed, atom in enumerate(exact):
        assert check(operator, traced, outputs, with_ties(atom, traced), seed) < 1e-5
    if exact:
        assert check(operator, traced, outputs, exact, 99) < 1e-5


@pytest.mark.parametrize("sample", [p for p in SAMPLES if p.values[0].mixed])
def test_what_is_declared_mixed_breaks_the_laws(sample: Sample) -> None:
    operator, traced, outputs = typed(sample)
    mixed = [atom for atom in free_atoms(traced) if atom.mixed]
    for atom in mixed:
        try:
            worst = max(check(operator, traced, outputs, [atom], seed) for seed in range(4))
        except RuntimeError:  # groups that no longer divide the channels
            continue
        assert worst > 1e-5


@pytest.mark.parametrize("sample", SAMPLES)
def test_an_output_declared_zero_is_zero_where_its_inputs_are(sample: Sample) -> None:
    operator, traced, outputs = typed(sample)
    for atom in [atom for atom in free_atoms(traced) if not atom.mixed]:
        mask = torch.ones(atom.size, dtype=torch.bool)
        mask[0] = False
        zeroed = Operator(operator.sample)
        for index, (name, parameter) in enumerate(operator.named_parameters()):
            data = parameter.detach().clone()
            for position, axis in enumerate(traced.parameters[name]):
                shape = [1] * data.ndim
                shape[position] = -1
                if (name, position) not in traced.facts.unmasked:
                    data *= kept(axis, {atom: mask}).reshape(shape)
            zeroed.operands[index] = nn.Parameter(data)
        for out, full in zip(outputs, run(zeroed), strict=True):
            for position, axis in enumerate(out.axes):
                removed = (~kept(axis, {atom: mask})).nonzero().flatten()
                if out.zero_along(atom) and len(removed):
                    assert float(full.index_select(position, removed).abs().max()) == 0.0


def test_every_rule_has_a_sample() -> None:
    seen = {operation.name for p in SAMPLES for operation in typed(p.values[0])[1].operations}
    assert not RULES.keys() - seen - IDENTITIES
