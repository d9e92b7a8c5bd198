"""Residual streams in the pipeline: taken where a target asks for them, said, proven, exported and restored."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning import find_groups, make_plan, narrow
from pruning.errors import SettingsError
from pruning.io.checkpoint import load_checkpoint
from pruning.latency.measure import profile
from pruning.latency.profile import LatencyCost
from pruning.plan.constraints import Freedom, Limits
from pruning.plan.verification import TOLERANCE
from tasks.config.prune_schema import Structured
from tasks.config.schema import Settings
from tasks.config.target_schema import Target
from tasks.environment import REPOSITORY
from tasks.loop.ledger import Row, read_ledger
from tasks.stage_table import NAMES
from tests.tasks.test_pipeline import BEFORE_THE_LOOP, Project, made

pytestmark = pytest.mark.thorough

CHANNELS = 32
Writer = Callable[..., Path]


class AttentionBlock(nn.Module):
    """Attention with one layer for queries, keys and values, then an MLP, norms in front."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.next_norm = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.qkv, self.out, self.heads = nn.Linear(CHANNELS, 3 * CHANNELS), nn.Linear(CHANNELS, CHANNELS), 2
        self.mlp = nn.Sequential(nn.Linear(CHANNELS, 48), nn.GELU(), nn.Linear(48, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
        x = x + self.out(attended)
        out: Tensor = x + self.mlp(self.next_norm(x))
        return out


class MixerBlock(nn.Module):
    """Linear layers over the 16 tokens, then over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.next_norm = nn.LayerNorm(CHANNELS), nn.LayerNorm(CHANNELS)
        self.tokens = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.mlp = nn.Sequential(nn.Linear(CHANNELS, 48), nn.GELU(), nn.Linear(48, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        out: Tensor = x + self.mlp(self.next_norm(x))
        return out


class ConvNextBlock(nn.Module):
    """A depthwise convolution, a norm over channels, a wide layer."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS), nn.LayerNorm(CHANNELS)
        self.mlp = nn.Sequential(nn.Linear(CHANNELS, 48), nn.GELU(), nn.Linear(48, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return out


class Network(nn.Module):
    """Patches, two blocks, a norm and a head."""

    def __init__(self, block: Callable[[], nn.Module], over_tokens: bool = True) -> None:
        super().__init__()
        self.patches, self.over_tokens = nn.Conv2d(1, CHANNELS, 2, 2), over_tokens
        self.blocks = nn.Sequential(block(), block())
        self.norm, self.head = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = self.blocks(x.flatten(2).transpose(1, 2)).mean(1) if self.over_tokens else self.blocks(x).mean((2, 3))
        out: Tensor = self.head(self.norm(x))
        return out


def vit() -> nn.Module:
    """A small vision transformer."""
    return Network(AttentionBlock)


def mixer() -> nn.Module:
    """A small MLP-Mixer."""
    return Network(MixerBlock)


def convnext() -> nn.Module:
    """A small ConvNeXt."""
    return Network(ConvNextBlock, over_tokens=False)


def changed(network: str, **prune: Any) -> Callable[[dict[str, Any]], None]:
    def change(settings: dict[str, Any]) -> None:
        del settings["prune"], settings["analyze"]
        settings["data"] = {"factory": "zoo.datasets:digits"}
        settings["model"] = {"factory": f"{__name__}:{network}"}
        settings["baseline"]["recipe"] = {"epochs": 1}
        settings["profile"] = {"batch_sizes": []}
        settings["prune"] = {"iterations": 1, "max_attempts": 1, "max_accuracy_drop": 0.99, "recipes": []}
        settings["prune"] |= {"criterion_samples": 64, "round_to": 4, "recover": {"num_samples": 64}, **prune}

    return change


def rows_of(project: Project) -> list[Row]:
    return read_ledger(project.root / "artifacts/iterations").rows


OUT_OF_REACH = {"vit": 0.6, "mixer": 0.85, "convnext": 0.85}
"""Shares of the MACs that need the streams."""


@pytest.fixture(
    scope="module", params=["vit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mixer", "convnext"))]
)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, project_writer: Writer
) -> Iterator[Project]:
    """A run whose target is out of reach within the limits but for the streams."""
    root = tmp_path_factory.mktemp(request.param)
    change = changed(request.param, target={"mac_reduction": OUT_OF_REACH[request.param]}, relaxed_limits=[])
    project = made(root, project_writer, NAMES, change)
    with chdir(root):
        yield project


def test_streams_are_taken_where_a_target_needs_them_and_the_result_is_proven(finished: Project) -> None:
    (row,) = rows_of(finished)
    assert row.accepted
    assert row.reached >= row.goal
    assert row.relaxed == "max_group_rate 0.75 and min_channels 8, residual streams included"
    assert row.streams == ("patches.weight:0",)
    summary = finished.json("report", "summary.json")
    assert summary["proven"]
    assert summary["parity"]["dense_vs_masked"] < TOLERANCE
    assert summary["parity"]["onnx_vs_torch"] < TOLERANCE
    assert summary["mac_reduction"] == pytest.approx(row.reached)
    page = Path("artifacts/report/report.html").read_text(encoding="utf-8")
    assert f"planned within {row.relaxed}" in page
    assert "Residual streams lost channels: patches.weight:0" in page


def test_a_checkpoint_of_narrowed_streams_is_restored_in_a_fresh_process(finished: Project, tmp_path: Path) -> None:
    factory, folder = finished.settings.model.factory, finished.root / "artifacts/dense"
    module, name = factory.split(":")
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    code = (
        f"import torch; from pruning.io.checkpoint import load_checkpoint; from {module} import {name}\n"
        "x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)); torch.set_num_threads(1)\n"
        f"model, _, _ = load_checkpoint({str(folder)!r}, {name}, x); torch.save(model(x), {str(tmp_path / 'found')!r})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    model, plan, _ = load_checkpoint(folder, getattr(sys.modules[__name__], name), x)
    assert plan.removed["patches.weight:0"]
    assert torch.equal(model(x), torch.load(tmp_path / "found"))


def test_without_streams_the_target_is_refused_and_with_them_taken_from_the_first_step(
    tmp_path: Path, project_writer: Writer
) -> None:
    common = {"relaxed_limits": [], "allocation": {"strategy": "local"}}
    (never,), (always,) = (
        rows_of(
            made(
                tmp_path,
                project_writer,
                [*BEFORE_THE_LOOP, "prune"],
                changed("mixer", target={"mac_reduction": target}, residual_streams=streams, **common),
            )
        )
        for target, streams in ((0.85, "never"), (0.3, "always"))
    )
    assert never.refused is not None
    assert "is the least" in never.refused
    assert "residual streams" not in never.refused
    assert always.accepted
    assert always.relaxed is None
    assert always.streams == ("patches.weight:0",)


def test_of_looser_limits_and_streams_the_one_with_the_lower_loss_gives_way(
    tmp_path: Path, project_writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    change = changed("vit", target={"mac_reduction": 0.33}, relaxed_limits=[{"max_group_rate": 1.0, "min_channels": 1}])
    with caplog.at_level("INFO", logger="secateur"):
        (row,) = rows_of(made(tmp_path, project_writer, [*BEFORE_THE_LOOP, "prune"], change))
    (text,) = (one.getMessage() for one in caplog.records if "loss on validation samples before" in one.getMessage())
    found = re.fullmatch(r".*, within (.*): (\S+); within (.*): (\S+)", text)
    assert found is not None
    limits, of_limits, streams, of_streams = found.groups()
    assert limits == "max_group_rate 1 and min_channels 1"
    assert streams == "max_group_rate 0.75 and min_channels 8, residual streams included"
    assert row.relaxed == (streams if float(of_streams) < float(of_limits) else limits)
    assert bool(row.streams) is (row.relaxed == streams)


def test_what_is_out_of_reach_says_how_far_each_freedom_gets(tmp_path: Path, project_writer: Writer) -> None:
    relaxed = [{"max_group_rate": 0.8, "min_channels": 8}]
    change = changed("vit", target={"mac_reduction": 0.99}, relaxed_limits=relaxed)
    (row,) = rows_of(made(tmp_path, project_writer, [*BEFORE_THE_LOOP, "prune"], change))
    assert row.refused is not None
    for limits in ("max_group_rate 0.75 and min_channels 8", "max_group_rate 0.8 and min_channels 8"):
        assert f"less is the least within {limits};" in f"{row.refused};"
        assert f"less is the least within {limits}, residual streams included" in row.refused


def test_channels_of_a_stream_may_come_back(tmp_path: Path, project_writer: Writer) -> None:
    """The model of the original's shape has the norms that it had; each step's plan is proven against it."""
    change = changed(
        "vit", target={"mac_reduction": 0.6}, residual_streams="always", reversible=True, iterations=2, max_attempts=2
    )
    project = made(tmp_path, project_writer, [*BEFORE_THE_LOOP, "prune", "transform"], change)
    rows = rows_of(project)
    assert [row.accepted for row in rows] == [True, True]
    assert all(row.streams for row in rows)
    with chdir(tmp_path):
        assert project.json("dense", "equivalence.json")["max_relative_difference"] < TOLERANCE


def test_streams_are_turned_before_each_step(tmp_path: Path, project_writer: Writer) -> None:
    change = changed(
        "vit",
        target={"mac_reduction": 0.6},
        residual_streams="always",
        iterations=2,
        max_attempts=2,
    )
    project = made(tmp_path, project_writer, NAMES, change)
    with chdir(tmp_path):
        rows, summary = rows_of(project), project.json("report", "summary.json")
    assert [row.accepted for row in rows] == [True, True]
    assert all(row.streams for row in rows)
    assert summary["proven"]
    assert summary["parity"]["dense_vs_masked"] < TOLERANCE
    model, plan, _ = load_checkpoint(tmp_path / "artifacts/dense", vit, torch.randn(1, 1, 8, 8))
    assert plan.removed["patches.weight:0"]
    assert all(not norm.bias.any() for norm in model.modules() if isinstance(norm, nn.LayerNorm)), "moved into readers"


def test_basis_without_a_stream_that_can_be_turned_is_refused_before_the_loop(
    tmp_path: Path, project_writer: Writer
) -> None:
    change = changed("mixer", target={"mac_reduction": 0.3}, basis="principal_components")
    with pytest.raises(SettingsError, match=r"no residual stream of the model can be turned: patches\.weight:0"):
        made(tmp_path, project_writer, [*BEFORE_THE_LOOP, "prune"], change)


@pytest.mark.parametrize(
    "other",
    [
        {"residual_streams": "never"},
        {"reversible": True},
        {"allocation": {"strategy": "sensitivity"}},
        {"start": {"weights": "random"}, "recover": {"method": "none"}},
    ],
)
def test_basis_is_refused_beside_what_goes_by_the_channels_as_they_were(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="which turns residual streams"):
        Structured(target=Target(mac_reduction=0.5), basis="principal_components", **other)


def test_what_goes_by_the_channels_as_they_were_turns_nothing() -> None:
    common: dict[str, Any] = {"target": Target(mac_reduction=0.5)}
    assert Structured(**common).turns_streams
    assert not Structured(**common, basis="channels").turns_streams
    assert not Structured(**common, residual_streams="never").turns_streams
    assert not Structured(**common, reversible=True).turns_streams


def test_a_network_without_streams_tries_no_limits_twice(tmp_path: Path, project_writer: Writer) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings["prune"].update(target={"mac_reduction": 0.999}, iterations=1, max_attempts=1)

    (row,) = rows_of(made(tmp_path, project_writer, [*BEFORE_THE_LOOP, "prune"], change))
    assert row.refused is not None
    assert "residual streams" not in row.refused


def test_limits_give_way_before_streams_do() -> None:
    first, second = Limits(8, 0.75), Limits(4, 0.9)
    relaxed = ({"max_group_rate": 0.9, "min_channels": 4},)
    common: dict[str, Any] = {"target": Target(mac_reduction=0.5), "relaxed_limits": relaxed}
    without, streams = ([Freedom(one, streams=taken) for one in (first, second)] for taken in (False, True))
    expected = {"never": without, "when_needed": without + streams, "always": streams}
    for word, freedoms in expected.items():
        assert list(Structured(residual_streams=word, **common).freedoms) == freedoms  # type: ignore[arg-type]


def test_widths_of_streams_are_timed_only_where_a_latency_is_the_target() -> None:
    def timed(**prune: Any) -> bool:
        sections = {"data": {"factory": "zoo.datasets:digits"}, "model": {"factory": f"{__name__}:vit"}}
        baseline = {"recipe": {"name": "baseline"}}
        return Settings.model_validate({**sections, "baseline": baseline, "prune": prune}).profiles_streams

    assert timed(target={"latency_reduction": 0.5})
    assert not timed(target={"latency_reduction": 0.5}, residual_streams="never")
    assert not timed(target={"mac_reduction": 0.5})
    assert not timed(target={"mac_reduction": 0.5}, residual_streams="always")


def test_a_profile_without_streams_says_that_it_knows_nothing_of_narrowed_ones() -> None:
    torch.manual_seed(0)
    model, example = vit().eval(), torch.randn(1, 1, 8, 8)
    groups = find_groups(model, example)
    found = profile(groups, batch_size=1, shortest_ms=0.1)
    for streams, known in ((False, True), (True, False)):
        offered = find_groups(model, example, allow_mixed=streams)
        plan = make_plan(offered, "l2_norm", channel_sparsity=0.3)
        narrowed = narrow(model, plan, example, groups=offered)
        assert LatencyCost(find_groups(narrowed, example), found).is_known is known
