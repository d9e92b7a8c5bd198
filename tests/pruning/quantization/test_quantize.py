"""Quantised files against their float one: how near, which layers, and the same bytes each time."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pruning.errors import ExportError
from pruning.io.onnx import export_onnx
from pruning.quantization.calibration import Calibrator, Feeds, calibrators_for, measure_ranges, without_range
from pruning.quantization.comparison import Differences
from pruning.quantization.network import Network, prepare
from pruning.quantization.profiles import PROFILES, find_profile
from pruning.quantization.quantize import layers_for, quantize, save


class Mobile(nn.Module):
    """A depthwise convolution between two others, with norms, a residual sum and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.deep = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.wide = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.wide(self.deep(x))).mean((2, 3)))  # type: ignore[no-any-return]


class Attends(nn.Module):
    """Tokens, an embedding, one block with attention, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.norm, self.qkv, self.out = nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out((q @ k.transpose(1, 2) / 32**0.5).softmax(-1) @ v)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def settled(model: nn.Module, batch: Tensor) -> nn.Module:
    """Let batch norms see a batch, so that folding them changes weights."""
    model.train()
    for _ in range(20):
        model(batch)
    return model.eval()


def exported(model: nn.Module, batch: Tensor, folder: Path) -> Network:
    path = export_onnx(model, batch, folder / "float.onnx")
    weights = {name: one.numpy() for name, one in model.state_dict().items()}
    return prepare(path, weights)


@pytest.fixture(scope="module")
def mobile(tmp_path_factory: pytest.TempPathFactory) -> Network:
    torch.manual_seed(0)
    batch = torch.randn(32, 3, 8, 8)
    return exported(settled(Mobile(), batch), batch, tmp_path_factory.mktemp("mobile"))


@pytest.fixture(scope="module")
def attends(tmp_path_factory: pytest.TempPathFactory) -> Network:
    torch.manual_seed(0)
    return exported(Attends().eval(), torch.randint(0, 50, (4, 12)), tmp_path_factory.mktemp("attends"))


def batches_for(network: Network, count: int = 8) -> list[Feeds]:
    generator = np.random.default_rng(1)
    if network.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64:
        return [{network.inputs[0]: generator.integers(0, 50, (8, 12))} for _ in range(count)]
    return [{network.inputs[0]: generator.standard_normal((8, 3, 8, 8), dtype=np.float32)} for _ in range(count)]


def answers(model: onnx.ModelProto, batches: list[Feeds]) -> list[dict[str, np.ndarray]]:
    session = onnxruntime.InferenceSession(save(model), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(feeds)), strict=True)) for feeds in batches]


def snr_db(one: onnx.ModelProto, other: onnx.ModelProto, batches: list[Feeds]) -> float:
    found = Differences()
    for first, second in zip(answers(one, batches), answers(other, batches), strict=True):
        found.add(first, second)
    return found.worst_db


def made(network: Network, profile: str, calibrator: Calibrator = "minmax") -> onnx.ModelProto:
    chosen = find_profile(profile)
    ranges = measure_ranges(network, batches_for(network), calibrator) if chosen.kind == "static" else None
    return quantize(network, chosen, layers_for(network, chosen), ranges)


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def executed(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(folder / "executed.onnx"), 4
    onnxruntime.InferenceSession(save(model), options, providers=["CPUExecutionProvider"])
    return kinds(onnx.load(options.optimized_model_filepath))


def test_layers_have_the_names_of_their_modules(mobile: Network, attends: Network) -> None:
    assert [layer.name for layer in mobile.layers] == ["stem.0", "deep.0", "wide.0", "head"]
    assert {layer.name for layer in attends.layers} == {"embed", "qkv", "out", "head"}, "transposed ones too"


def test_outliers_are_cut_off_in_convolutional_networks_alone(mobile: Network, attends: Network) -> None:
    assert calibrators_for(mobile) == ("minmax", "entropy")
    assert calibrators_for(attends) == ("minmax",)


@pytest.mark.parametrize(
    ("profile", "least"), [("cpu", 20), ("cpu_vnni", 25), ("tensorrt", 25), ("fp16", 55), ("bf16", 40)]
)
def test_a_convolutional_network_is_near_its_float_one(mobile: Network, profile: str, least: float) -> None:
    assert snr_db(made(mobile, profile), mobile.model, batches_for(mobile)) > least


@pytest.mark.parametrize(
    ("profile", "least"), [("cpu", 20), ("cpu_vnni", 25), ("tensorrt", 25), ("dynamic", 25), ("fp16", 55), ("bf16", 40)]
)
def test_a_transformer_is_near_its_float_one(attends: Network, profile: str, least: float) -> None:
    assert snr_db(made(attends, profile), attends.model, batches_for(attends)) > least


def test_entropy_gives_other_scales(mobile: Network) -> None:
    one, other = made(mobile, "cpu_vnni"), made(mobile, "cpu_vnni", "entropy")
    assert save(one) != save(other)
    assert snr_db(other, mobile.model, batches_for(mobile)) > 15


def test_convolutions_and_sums_are_computed_in_integers(mobile: Network, tmp_path: Path) -> None:
    found = executed(made(mobile, "cpu_vnni"), tmp_path)
    assert found["QLinearConv"] == 3, "the depthwise one among them"
    assert found["QLinearAdd"] == 1
    assert found["QGemm"] == 1
    assert not found["Conv"]


def test_attention_norms_and_sums_of_a_transformer_stay_in_float(attends: Network, tmp_path: Path) -> None:
    found = executed(made(attends, "cpu_vnni"), tmp_path)
    assert found["MatMulIntegerToFloat"] == 2
    assert found["Softmax"] == 1
    assert found["MatMul"] + found["FusedMatMul"] == 2, "the products of two activations"
    assert not found["QLinearAdd"]


@pytest.mark.parametrize("profile", [name for name in PROFILES if name not in ("fp16", "bf16")])
def test_a_layer_that_isnt_chosen_stays_in_float(attends: Network, profile: str, tmp_path: Path) -> None:
    chosen = find_profile(profile)
    layers = [layer for layer in layers_for(attends, chosen) if layer.name != "head"]
    ranges = measure_ranges(attends, batches_for(attends), "minmax")
    found = executed(quantize(attends, chosen, layers, ranges), tmp_path)
    assert not found["QGemm"]
    assert found["Gemm"] + found["MatMul"] + found["FusedMatMul"] == 3, "the head and both products of activations"


def test_reduced_range_uses_seven_bits(mobile: Network) -> None:
    for profile, largest in (("cpu", 64), ("cpu_vnni", 127)):
        weights = [
            onnx.numpy_helper.to_array(one)
            for one in made(mobile, profile).graph.initializer
            if one.data_type == onnx.TensorProto.INT8 and len(one.dims) > 1
        ]
        assert len(weights) == 4
        assert max(int(np.abs(one.astype(int)).max()) for one in weights) == largest


@pytest.mark.parametrize("profile", ["fp16", "bf16"])
def test_sixteen_bits_take_half_the_bytes(tmp_path: Path, profile: str) -> None:
    network = exported(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)), torch.randn(4, 64), tmp_path)
    assert 0.48 < len(save(made(network, profile))) / (tmp_path / "float.onnx").stat().st_size < 0.56


def test_integers_take_a_quarter(tmp_path: Path) -> None:
    network = exported(nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 64)), torch.randn(4, 64), tmp_path)
    network.model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    feeds: list[Feeds] = [{network.inputs[0]: np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)}]
    profile = find_profile("cpu")
    ranges = measure_ranges(network, feeds, "minmax")
    assert len(save(quantize(network, profile, layers_for(network, profile), ranges))) < 0.32 * 4 * 64 * 512 * 2


def test_names_are_short_and_those_of_inputs_and_outputs_stay(mobile: Network) -> None:
    graph = made(mobile, "cpu").graph
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    assert not [name for name in names if "QuantizeLinear" in name]
    assert [one.name for one in (*graph.input, *graph.output)] == ["input", "output"]
    assert len({name for node in graph.node for name in node.output}) == sum(len(node.output) for node in graph.node)


class Tied(nn.Module):
    """One weight for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(32, 32), nn.Linear(32, 32)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("profile", ["cpu_vnni", "dynamic", "tensorrt"])
def test_a_weight_that_two_layers_share_is_right_in_both(tmp_path: Path, profile: str) -> None:
    network = exported(Tied().eval(), torch.randn(4, 32), tmp_path)
    feeds: list[Feeds] = [{network.inputs[0]: np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)}]
    chosen = find_profile(profile)
    ranges = measure_ranges(network, feeds, "minmax")
    assert snr_db(quantize(network, chosen, layers_for(network, chosen), ranges), network.model, feeds) > 25


def test_heads_of_several_outputs_and_convolutions_at_the_end_stay_in_float(tmp_path: Path) -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.boxes, self.classes = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.body(x).relu()
            return {"boxes": self.boxes(x).flatten(2).exp(), "classes": self.classes(x).flatten(2)}

    network = exported(Detector().eval(), torch.randn(4, 3, 8, 8), tmp_path)
    assert {layer.name for layer in network.heads} == {"boxes", "classes"}
    profile, feeds = find_profile("cpu_vnni"), batches_for(network)
    body = [layer for layer in layers_for(network, profile) if layer not in network.heads]
    found = executed(quantize(network, profile, body, measure_ranges(network, feeds, "minmax")), tmp_path)
    assert (found["QLinearConv"], found["Conv"] + found["FusedConv"]) == (1, 2)


def test_the_last_matrix_product_gives_floats(mobile: Network) -> None:
    assert mobile.heads == ()
    last = made(mobile, "cpu").graph.node[-1]
    assert (last.op_type, last.output[0]) == ("Gemm", mobile.outputs[0])


@pytest.mark.parametrize("profile", ["cpu", "tensorrt"])
def test_an_output_that_a_layer_reads_too_is_given_in_float(tmp_path: Path, profile: str) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
            self.third, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.second(self.first(x).relu())
            return self.head(self.third(x)), x

    network = exported(Inner().eval(), torch.randn(4, 3, 8, 8), tmp_path)
    chosen, feeds = find_profile(profile), batches_for(network)
    body = [layer for layer in layers_for(network, chosen) if layer not in network.heads]
    assert "third" in [layer.name for layer in body]
    found = quantize(network, chosen, body, measure_ranges(network, feeds, "minmax"))
    makers = {name: node.op_type for node in found.graph.node for name in node.output}
    assert {makers[one.name] for one in found.graph.output} == {"Conv"}
    for one, other in zip(answers(found, feeds), answers(network.model, feeds), strict=True):
        for name, values in one.items():
            assert np.linalg.norm(values - other[name]) < 0.1 * np.linalg.norm(other[name])
            assert len(np.unique(values)) > 0.9 * values.size, "steps of a scale would show"


def test_a_layer_that_sees_values_without_end_is_named(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x) + torch.where(x > 9.0, float("-inf"), 0.0))  # type: ignore[no-any-return]

    network = exported(Masked().eval(), torch.randn(4, 8), tmp_path)
    feeds: list[Feeds] = [{network.inputs[0]: np.full((4, 8), 10.0, dtype=np.float32)}]
    layers = layers_for(network, find_profile("cpu"))
    assert [one.name for one in without_range(network, layers, measure_ranges(network, feeds, "minmax"))] == ["two"]


def test_what_cant_be_calibrated_is_refused_with_its_cause(mobile: Network) -> None:
    with pytest.raises(ExportError, match="can't calibrate the network by minmax"):
        measure_ranges(mobile, [{mobile.inputs[0]: np.zeros((1, 4, 8, 8), dtype=np.float32)}], "minmax")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "float.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match=r"can't prepare .*float\.onnx for quantisation"):
        prepare(tmp_path / "float.onnx")


SCRIPT = """
import sys
from hashlib import sha256
from tests.pruning.quantization.test_quantize import made, prepare, save
network = prepare(sys.argv[1])
print(*[sha256(save(made(network, name))).hexdigest() for name in ("cpu", "tensorrt", "dynamic", "fp16", "bf16")])
"""


@pytest.mark.thorough
def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    export_onnx(Attends().eval(), torch.randint(0, 50, (4, 12)), tmp_path / "float.onnx")
    found = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "float.onnx")]
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
