"""What training leaves on a model is looked through, or named with the call that removes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import pruning
from pruning.errors import ModelError
from pruning.plan.verification import outputs_of, relative_difference

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)).eval()


def compiled(model: nn.Module) -> nn.Module:
    return cast("nn.Module", torch.compile(model, backend="eager"))


def compiled_in_place() -> nn.Module:
    model = net()
    model.compile(backend="eager")
    return model


class Keeps(nn.Module):
    """Keeps what it computes, in an attribute and in a container, and computes in low precision."""

    def __init__(self, autocast: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.autocast = nn.Linear(8, 16), nn.Linear(16, 5), autocast
        self.kept: dict[str, list[Tensor]] = {}
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            self.last = self.a(x).relu()
            self.kept["all"] = [self.last]
            return self.b(self.last)


def trained(model: nn.Module) -> nn.Module:
    model(X)
    return model


def inferred() -> nn.Module:
    with torch.inference_mode():
        return trained(Keeps())


def hooked() -> nn.Module:
    model = net()
    kept: dict[str, Tensor] = {}
    model[0].register_forward_hook(lambda _module, _args, out: kept.update(out=out))
    model[2].register_full_backward_hook(lambda *_: None)
    model.get_parameter("0.weight").register_hook(lambda gradient: gradient)  # type: ignore[no-untyped-call]
    return trained(model)


def normed(norm: Callable[..., nn.Module]) -> nn.Module:
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated
        norm(model[0])
    return trained(model)


SEEN_THROUGH: dict[str, Callable[[], nn.Module]] = {
    "DataParallel": lambda: nn.DataParallel(net()),
    "compile": lambda: compiled(net()),
    "compile, having run": lambda: trained(compiled(net())),
    "DataParallel of compile": lambda: nn.DataParallel(compiled(net())),
    "compile in place": compiled_in_place,
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(net()),
    "kept activations with a graph": lambda: trained(Keeps()),
    "kept activations of inference mode": inferred,
    "autocast": lambda: trained(Keeps(autocast=True)),
    "hooks": hooked,
    "torch.nn.utils.weight_norm": lambda: normed(nn.utils.weight_norm),
    "torch.nn.utils.spectral_norm": lambda: normed(nn.utils.spectral_norm),
}


@pytest.mark.parametrize("left", SEEN_THROUGH)
def test_what_does_no_harm_is_looked_through(left: str) -> None:
    model = SEEN_THROUGH[left]()
    groups = pruning.find_groups(model, X)
    (group,) = groups
    plan = pruning.Plan.of(groups, {group.name: [1, 4, 9]})
    dense = pruning.narrow(model, plan, X)
    masked = pruning.apply_masks(model, plan)
    tolerance = 1e-2 if left == "autocast" else 1e-5
    assert relative_difference(outputs_of(masked, X), outputs_of(dense, X)) < tolerance
    assert {parameter.shape[0] for parameter in dense.parameters()} >= {13}
    dense.train()(X).sum().backward()


def test_names_are_those_of_the_module_inside() -> None:
    plain = pruning.find_groups(net(), X)
    plan = pruning.Plan.of(plain, {"0.weight:0": [2, 3]})
    for wrapped in (nn.DataParallel(net()), compiled(net()), nn.DataParallel(nn.DataParallel(net()))):
        groups = pruning.find_groups(wrapped, X)
        assert [group.name for group in groups] == ["0.weight:0"]
        dense = pruning.narrow(wrapped, plan, X)
        assert type(dense) is nn.Sequential
        assert dense.state_dict().keys() == net().state_dict().keys()
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
        wrapped(X).sum().backward()
        optimizer.step()
        narrowed = pruning.narrow_optimizer(optimizer, wrapped, dense, plan, groups)
        assert narrowed.state[dense.get_parameter("0.weight")]["momentum_buffer"].shape == (14, 8)
    calibrated = pruning.calibrate(nn.DataParallel(net()), X, "l2_norm", channel_sparsity=0.5)
    assert type(calibrated.model) is nn.Sequential


def test_distributed_data_parallel_is_looked_through(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net())
        groups = pruning.find_groups(wrapped, X)
        dense = pruning.narrow(wrapped, pruning.Plan.of(groups, {"0.weight:0": [2]}), X)
        assert type(dense) is nn.Sequential
    finally:
        torch.distributed.destroy_process_group()


def masked_by_torch() -> nn.Module:
    model = nn.ModuleDict({"body": net()})
    prune.ln_structured(model["body"][0], "weight", amount=0.5, n=2, dim=0)  # type: ignore[index,no-untyped-call]
    return model


def scripted_inside() -> nn.Module:
    model = net()
    model[0] = torch.jit.script(model[0])
    return model


NAMED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "masks": (
        masked_by_torch,
        r"model['body'][0].weight carries a mask of torch.nn.utils.prune: "
        r"call torch.nn.utils.prune.remove(model['body'][0], 'weight') first",
    ),
    "scripted": (lambda: torch.jit.script(net()), "model is a TorchScript module"),
    "traced": (
        lambda: torch.jit.trace(net(), X),  # type: ignore[no-untyped-call]
        "pass the module that torch.jit.script or torch.jit.trace was given",
    ),
    "scripted inside": (scripted_inside, "model[0] is a TorchScript module"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyBatchNorm1d()),
        "model[0] is a lazy layer that has not run, and so has no size yet: call the model once on the example inputs "
        "first; model[2] is a lazy layer",
    ),
    "a function": (lambda: cast("nn.Module", torch.relu), "is no nn.Module; pass the module"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated", "ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("left", NAMED)
def test_what_has_to_be_removed_first_is_named_with_the_call_that_does_it(left: str) -> None:
    make, said = NAMED[left]
    with pytest.raises(ModelError) as caught:
        pruning.find_groups(make(), X)
    assert said in str(caught.value)
    assert "Check the inputs" not in str(caught.value)
    assert str(caught.value).count("TorchScript module") <= 1, "its parts need no word of their own"


def test_a_sharded_module_is_named(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        sharded = fully_shard(net(), mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ModelError, match="whose parameters FSDP has cut up: load its full state dict"):
            pruning.find_groups(cast("nn.Module", sharded), X)
    finally:
        torch.distributed.destroy_process_group()


def test_a_wrapped_part_is_named_where_the_model_fails() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.DataParallel(net())

        def forward(self, x: Tensor) -> Any:
            raise RuntimeError("several devices")

    with pytest.raises(ModelError, match=r"try without: model\.features = model\.features\.module\."):
        pruning.find_groups(Fails(), X)


class Remembering(nn.Module):
    """Runs its head in a hook, given in several ways."""

    def __init__(self, hook: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 5)
        given = hook(self)
        if given is not None:
            self.a.register_forward_hook(given)

    def apply_head(self, _module: Any, _inputs: Any, output: Tensor) -> Any:
        return self.head(output.relu())

    def forward(self, x: Tensor) -> Any:
        return self.a(x)


def _head_of(model: Any, _module: Any, _inputs: Any, output: Tensor) -> Any:
    return model.head(output.relu())


def _kept_function(model: Any) -> None:
    model.calls = [lambda x: model.head(x)]


def _known_to_all(model: Any) -> Any:
    globals()["THE_MODEL"] = model
    return lambda _module, _inputs, output: THE_MODEL.head(output.relu())  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        (lambda model: lambda *given: model.apply_head(*given), "model.a._forward_hooks"),
        (lambda model: lambda *given, head=model.head: head(given[2]), "model.a._forward_hooks"),
        (lambda model: (lambda inner: lambda *given: inner(*given))(lambda *given: model.head(given[2])),
         "model.a._forward_hooks"),
        (_known_to_all, "model.a._forward_hooks"),
        (_kept_function, "model.calls"),
    ],
)  # fmt: skip
def test_a_function_that_runs_the_originals_layers_is_named(hook: Any, place: str) -> None:
    with pytest.raises(ModelError, match=rf"{place} holds a function that captured a part of the model.*partial"):
        pruning.find_groups(Remembering(hook), X)


@pytest.mark.parametrize(
    "hook",
    [
        lambda model: model.apply_head,
        lambda model: partial(_head_of, model),
    ],
)
def test_a_method_and_a_partial_follow_the_copy(hook: Any) -> None:
    model = Remembering(hook).eval()
    groups = pruning.find_groups(model, X)
    dense = pruning.narrow(model, pruning.Plan.of(groups, {"a.weight:0": [0, 3]}), X, groups=groups)
    seen: dict[str, Tensor] = {}
    handle = dense.get_submodule("head").register_forward_hook(lambda _m, _i, output: seen.update(head=output))
    dense(X)
    handle.remove()
    assert seen["head"].shape == (4, 5)
