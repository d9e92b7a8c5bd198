"""Write a quantised ONNX file beside the float one, with as many layers quantised as the gate lets through."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import onnx
from onnxruntime.quantization import TensorsData

from pruning.batches import Batches
from pruning.errors import ExportError, SettingsError
from pruning.io.files import replace_file
from pruning.io.onnx_module import OnnxModule, example_outputs
from pruning.metrics import Measure
from pruning.quantization import quantize as writer
from pruning.quantization.bias_correction import correct_biases
from pruning.quantization.calibration import Calibrator, Feeds, calibrators_for, measure_ranges, without_range
from pruning.quantization.comparison import BesideFloat, Differences
from pruning.quantization.left_in_float import LayerNoise, fewest_left, rank_layers
from pruning.quantization.network import Layer, Network, prepare
from pruning.quantization.profiles import QuantizationProfile, find_profile
from tasks.config.schema import Settings
from tasks.data import read_description, read_inputs, read_split, task_of
from tasks.determinism import begin
from tasks.intervals import Paired, compare_pairs
from tasks.models import example_inputs, load_model, measure_of, score
from tasks.quantization import (
    FILE,
    FOLDER,
    ONNX,
    Left,
    OutputFigures,
    Quantization,
    Reason,
    Tried,
    as_json,
    gate_faults,
    limit_for,
)
from tasks.stages import export
from tasks.terminal import shown
from tasks.workspace import Workspace, write_json, writing

_BATCH = 16  # samples of a pass in which all tensors are kept
_RANKED_ON = 64  # samples that layers are ranked on

log = logging.getLogger("secateur")


def quantize(settings: Settings, workspace: Workspace) -> None:
    """Write `quantized.onnx` and `quantization.json`; where no profile is set, the latter alone, which says so.

    Raises:
        ExportError: The profile quantises nothing of this network, or ONNX Runtime can't.
        SettingsError: A pattern of quantize.ignore names no layer.
    """
    begin(settings)
    with writing(workspace.folder(FOLDER)) as folder:
        if settings.quantize.profile is None:
            write_json(folder / FILE, as_json(None))
            log.info("quantize: nothing is quantised, since quantize.profile is null")
            return
        with tempfile.TemporaryDirectory() as scratch:
            gate = _Gate(settings, workspace, Path(scratch))
            found, content = _quantize(gate, find_profile(settings.quantize.profile), workspace)
        replace_file(folder / ONNX, content)
        write_json(folder / FILE, as_json(found))
    _say(found, gate.measure)


@dataclass(frozen=True)
class _Candidate:
    """A file, and how it compares with the float one.

    Attributes:
        content: Of the file.
        tried: Its figures.
        pairs: Both files sample by sample.
        differences: Of their outputs.
    """

    content: bytes
    tried: Tried
    pairs: Paired | None
    differences: Differences


@dataclass(frozen=True)
class _Made:
    """What files are made from.

    Attributes:
        network: In float, with corrected biases or with its own.
        ranges: Of its tensors; None where none are measured.
        calibrator: How they followed from values.
        corrected: Whether biases are corrected.
    """

    network: Network
    ranges: TensorsData | None = None
    calibrator: Calibrator | None = None
    corrected: bool = False


class _Gate:
    """Runs a file beside the float one on the validation samples, and says whether it keeps enough of its answers."""

    def __init__(self, settings: Settings, workspace: Workspace, scratch: Path) -> None:
        data, example = read_description(workspace), example_inputs(workspace, settings)
        model, _, _ = load_model(workspace.folder("dense"), settings, data, example)
        self.settings, self._scratch = settings, scratch
        self.weights = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items() if tensor.ndim == 2}
        self._outputs = example_outputs(model, example)
        self.measure: Measure = measure_of(settings, data)
        self._samples: Batches = read_split(settings, workspace, "validation")
        self._by_class = task_of(settings).by_class
        self.path = workspace.folder(export.FOLDER) / export.FILES["dense"]
        self.reference = self._open(self.path)
        found = score(self.reference, self._samples, settings)
        self.float_score, self._values = found.score, found.values
        self.limit = limit_for(settings.quantize, self.float_score, self.measure)
        self.num_samples = found.num_samples

    def _open(self, path: Path) -> OnnxModule:
        run = self.settings.run
        return OnnxModule(path, self._outputs, num_threads=run.threads, device=run.device)

    def try_out(self, model: onnx.ModelProto, made: _Made, num_left: int) -> _Candidate:
        """Compare a quantised model with the float one."""
        content, path = writer.save(model), self._scratch / "tried.onnx"
        path.write_bytes(content)
        beside = BesideFloat(self._open(path), self.reference, by_class=self._by_class)
        found, least = score(beside, self._samples, self.settings), self.settings.quantize.min_agreement
        agreement = beside.differences.agreement
        faults = gate_faults(self.measure, found.score, self.limit, agreement, least)
        pairs = None
        if found.values is not None and self._values is not None:
            pairs = compare_pairs(self._values, found.values, self.measure)
        tried = Tried(
            calibrator=made.calibrator,
            corrected=made.corrected,
            num_left=num_left,
            score=found.score,
            agreement=agreement,
            snr_db=beside.differences.worst_db,
            passed=not faults,
        )
        log.info(
            "quantize: %s%s%s: %s %s, outputs %.1f dB above the noise%s",
            made.calibrator or "no calibration",
            ", biases corrected" if made.corrected else "",
            f", {num_left} layers in float" if num_left else "",
            self.measure.name,
            self.measure.show(found.score),
            tried.snr_db,
            f"; not enough: {'; '.join(faults)}" if faults else "",
        )
        return _Candidate(content, tried, pairs, beside.differences)

    def preference(self, one: _Candidate) -> tuple[bool, float, float]:
        """Order candidates: the better one has more of it."""
        return one.tried.passed, self.measure.gain(self.float_score, one.tried.score), one.tried.snr_db


def _quantize(gate: _Gate, profile: QuantizationProfile, workspace: Workspace) -> tuple[Quantization, bytes]:
    """Quantise a workspace's file; return how it compares with the float one, and the content of the new one."""
    settings, network = gate.settings, prepare(gate.path, gate.weights)
    noise, left, used = list[LayerNoise](), list[Left](), 0
    if profile.kind == "half":
        best = gate.try_out(writer.quantize(network, profile, ()), _Made(network), 0)
        tried = [best.tried]
    else:
        samples = read_inputs(settings, workspace, "train").spread(settings.quantize.calibration_samples)
        batches = _feeds(samples, gate.reference)
        search = _Search(gate, network, profile, batches)
        best, noise = search.run()
        left, tried, used = search.left, search.tried, len(samples) if profile.kind == "static" else 0
    found = Quantization(
        profile=profile.name,
        types=profile.described,
        reduce_range=profile.reduce_range,
        calibrator=best.tried.calibrator,
        corrected=best.tried.corrected,
        num_calibration_samples=used,
        num_layers=len(network.layers) + len(network.without_kernel),
        left=tuple(left),
        noise={one.layer.name: one.snr_db for one in noise},
        tried=tuple(tried),
        float_bytes=gate.path.stat().st_size,
        size_bytes=len(best.content),
        float_score=gate.float_score,
        score=best.tried.score,
        limit=gate.limit,
        pairs=best.pairs,
        agreement=best.tried.agreement,
        min_agreement=settings.quantize.min_agreement,
        num_samples=gate.num_samples,
        outputs={
            name: OutputFigures(relative_error=one.relative if math.isfinite(one.relative) else None, snr_db=one.snr_db)
            for name, one in best.differences.outputs.items()
        },
    )
    return found, best.content


def _feeds(samples: Batches, reference: OnnxModule) -> list[Feeds]:
    return [reference.feeds(batch.inputs) for batch in samples.ordered(_BATCH)]


class _Search:
    """Tries calibrators in order; where none passes the gate, leaves the worst layers in float until it is passed."""

    def __init__(self, gate: _Gate, network: Network, profile: QuantizationProfile, batches: list[Feeds]) -> None:
        self._gate, self._network, self._profile, self._batches = gate, network, profile, batches
        self.left = _left_from_the_start(network, profile, gate.settings.quantize.ignore)
        spared = {one.layer for one in self.left}
        self._layers = [one for one in writer.layers_for(network, profile) if one.name not in spared]
        self.tried: list[Tried] = []

    def run(self) -> tuple[_Candidate, list[LayerNoise]]:
        """Return the best file, and the noise of each layer alone, worst first, if that had to be measured."""
        found = list[tuple[_Candidate, _Made]]()
        for made in self._ways():
            one = self._try(made, self._layers, 0)
            found.append((one, made))
            if one.tried.passed:
                break
        best, made = max(found, key=lambda pair: self._gate.preference(pair[0]))
        return (best, []) if best.tried.passed else self._with_layers_left(best, made)

    def _ways(self) -> Iterator[_Made]:
        """Yield what files are made from, in the order in which it is tried."""
        if self._profile.kind != "static":
            yield _Made(self._network)
            return
        for calibrator in calibrators_for(self._network):
            ranges = measure_ranges(self._network, self._batches, calibrator)
            endless = without_range(self._network, self._layers, ranges)
            self.left += [Left(layer=one.name, reason="no range") for one in endless]
            self._layers = [one for one in self._layers if one not in endless]
            self._refuse_nothing()
            if self._gate.settings.quantize.correct_biases:
                whole = writer.quantize(self._network, self._profile, self._layers, ranges)
                corrected = correct_biases(self._network, whole, self._layers, self._batches)
                yield _Made(corrected, ranges, calibrator, corrected=True)
            yield _Made(self._network, ranges, calibrator)

    def _refuse_nothing(self) -> None:
        if self._layers:
            return
        kinds = ", ".join(self._profile.operators)
        reasons = "; ".join(dict.fromkeys(f"{one.layer}: {one.reason}" for one in self.left[:5])) or "it has none"
        raise ExportError(
            f"quantize.profile {self._profile.name} quantises layers of the operators {kinds}, and this network has "
            f"none that may be ({reasons}); choose another profile, or null to do without"
        )

    def _try(self, made: _Made, layers: Sequence[Layer], num_left: int) -> _Candidate:
        self._refuse_nothing()
        found = self._gate.try_out(writer.quantize(made.network, self._profile, layers, made.ranges), made, num_left)
        self.tried.append(found.tried)
        return found

    def _with_layers_left(self, whole: _Candidate, made: _Made) -> tuple[_Candidate, list[LayerNoise]]:
        with shown("quantize: layers alone") as progress:
            few = self._batches[: -(-_RANKED_ON // _BATCH)]
            noise = rank_layers(made.network, self._profile, self._layers, made.ranges, few, progress)
        tried = dict[int, _Candidate]()

        def passes(number: int) -> bool:
            kept = {one.layer for one in noise[number:]}
            tried[number] = self._try(made, [layer for layer in self._layers if layer in kept], number)
            return tried[number].tried.passed

        # With all of them in float nothing is left to quantise: that isn't tried.
        number = fewest_left(len(noise) - 1, passes) if len(noise) > 1 else None
        if number is None:
            return whole, noise
        self.left += [Left(layer=one.layer.name, reason="accuracy", snr_db=one.snr_db) for one in noise[:number]]
        return tried[number], noise


def _left_from_the_start(network: Network, profile: QuantizationProfile, ignore: Sequence[str]) -> list[Left]:
    """Return the layers that stay in float whatever they would cost.

    Raises:
        SettingsError: A pattern names no layer.
    """
    names = [layer.name for layer in network.layers]
    if unknown := [pattern for pattern in ignore if not any(fnmatchcase(name, pattern) for name in names)]:
        raise SettingsError(
            f"quantize.ignore names {unknown[0]!r}, which is no layer of the network; its layers are "
            f"{', '.join(names[:20])}{' …' if len(names) > 20 else ''}"
        )
    heads = {layer.node for layer in network.heads}
    found = [Left(layer=name, reason="no kernel") for name in network.without_kernel]
    for layer in network.layers:
        reason: Reason | None = None
        if layer.node in network.without_kernel:
            continue
        if layer.operator not in profile.operators:
            reason = "other operator"
        elif any(fnmatchcase(layer.name, pattern) for pattern in ignore):
            reason = "ignored"
        elif layer.node in heads:
            reason = "head"
        if reason is not None:
            found.append(Left(layer=layer.name, reason=reason))
    return found


def _say(found: Quantization, measure: Measure) -> None:
    """Log what was written, and whether it passes the gate."""
    log.info(
        "quantize: profile %s: %.2f of the float file's size, %s%s, %d of %d layers in float",
        found.profile,
        found.size_ratio,
        found.describe_score(measure),
        "" if found.agreement is None else f", the same answer on {found.agreement:.2%} of validation",
        len(found.left),
        found.num_layers,
    )
    if faults := found.faults(measure):
        log.warning("quantize: the quantised file doesn't pass the gate: %s; it is never promoted", "; ".join(faults))
