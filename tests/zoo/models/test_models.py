from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from zoo import models
from zoo.models import he_initialise

Factory = Callable[..., nn.Module]
SLIM: dict[str, tuple[Factory, dict[str, int]]] = {
    "densenet": (models.densenet, {"depth": 10, "growth": 4}),
    "mlp": (models.mlp, {}),
    "mobilenet": (models.mobilenet, {"width": 8}),
    "resnet": (models.resnet, {"depth": 8, "width": 4}),
    "resnet20": (models.resnet20, {"width": 4}),
    "vgg": (models.vgg, {"width": 4}),
    "vgg11": (models.vgg11, {"width": 4}),
    "vgg16": (models.vgg16, {"width": 4}),
}
CONVOLUTIONAL = sorted(SLIM.keys() - {"mlp"})


def build(name: str, input_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    factory, arguments = SLIM[name]
    return factory(input_shape=input_shape, num_classes=num_classes, **arguments)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_public_factory_is_tested() -> None:
    assert set(SLIM) == set(models.__all__)


@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 9, 13), (3, 32, 32), (1, 64, 40)])
@pytest.mark.parametrize("name", SLIM)
def test_any_input_size_gives_one_logit_for_each_class(name: str, input_shape: tuple[int, int, int]) -> None:
    model = build(name, input_shape, 7)
    logits = model(torch.rand(2, *input_shape))
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", SLIM)
def test_a_seed_fixes_the_weights(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.detach().flatten() for parameter in build(name, (1, 8, 8), 10).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("name", SLIM)
def test_fresh_weights_give_logits_of_moderate_size(name: str) -> None:
    torch.manual_seed(0)
    logits = build(name, (3, 16, 16), 10)(torch.randn(32, 3, 16, 16))
    assert 0.05 < logits.std() < 5


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("densenet", 176_122),
        ("mlp", 51_210),
        ("mobilenet", 2_236_682),
        ("resnet20", 272_474),
        ("vgg11", 9_228_362),
        ("vgg16", 14_724_042),
    ],
)
def test_default_models_have_the_documented_number_of_parameters(name: str, num_parameters: int) -> None:
    factory: Factory = getattr(models, name)
    model = factory()
    assert count(model) == num_parameters
    documented = f"{num_parameters:,}"
    assert documented in (factory.__doc__ or ""), f"the docstring of {name} should say {documented}"


@pytest.mark.parametrize(("depth", "num_convolutions"), [(8, 9), (14, 15), (32, 33)])
def test_resnet_has_the_asked_depth(depth: int, num_convolutions: int) -> None:
    modules = list(models.resnet(depth=depth, width=4).modules())
    assert sum(isinstance(module, nn.Conv2d) for module in modules) == num_convolutions  # depth - 1 and two shortcuts


@pytest.mark.parametrize(("side", "smallest"), [(8, 4), (16, 4), (32, 4), (64, 4), (128, 4), (224, 7)])
def test_mobilenet_halves_as_far_as_the_paper_and_no_further_than_four_pixels(side: int, smallest: int) -> None:
    model = models.mobilenet((1, side, side), width=8)
    features = nn.Sequential(
        *[layer for layer in model if isinstance(layer, nn.Sequential) or hasattr(layer, "residual")]
    )
    assert features(torch.rand(1, 1, side, side)).shape[2:] == (smallest, smallest)


def test_vgg_never_pools_a_single_pixel() -> None:
    model = models.vgg((1, 8, 64), stages=(1, 1, 1, 1, 1, 1), width=2)
    assert sum(isinstance(layer, nn.MaxPool2d) for layer in model) == 3
    assert model(torch.rand(2, 1, 8, 64)).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet20", "vgg11"])
def test_twice_the_width_has_about_four_times_the_parameters(name: str) -> None:
    factory: Factory = getattr(models, name)
    assert count(factory(width=32)) / count(factory(width=16)) == pytest.approx(4, rel=0.05)


def test_mobilenet_scales_in_multiples_of_eight_and_keeps_its_head() -> None:
    widths = {module.out_channels for module in models.mobilenet(width=20).modules() if isinstance(module, nn.Conv2d)}
    assert all(width % 8 == 0 for width in widths)
    assert max(widths) == 1280


def test_he_initialisation_sets_the_variance_of_convolutions() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 64, 3)
    he_initialise(layer)
    assert layer.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.05)
    assert layer.bias is not None
    assert not layer.bias.any()


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_images_that_are_too_small_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"input_shape is \(1, 8, 7\), expected .* at least 8; enlarge the images"):
        build(name, (1, 8, 7), 10)


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (models.resnet, {"depth": 18}, r"depth is 18 .*; expected a depth of 6n \+ 2"),
        (models.densenet, {"depth": 20}, r"depth is 20, .*; expected a depth of 6n \+ 4"),
        (models.densenet, {"compression": 0.0}, r"a compression in \(0, 1\]"),
        (models.mobilenet, {"dropout": 1.0}, r"a dropout in \[0, 1\)"),
        (models.vgg, {"stages": ()}, r"stages are \[\]"),
        (models.resnet20, {"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_arguments_that_describe_no_network_are_refused(
    factory: Factory, arguments: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        factory(**arguments)
