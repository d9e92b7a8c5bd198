"""Write a model as an ONNX file, and prove that the file computes the same function."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.batches import Batches, Samples, as_batches
from pruning.errors import ExportError, pass_on, unknown_name
from pruning.evaluation import device_of, restored_modes
from pruning.graph.contexts import quiet
from pruning.graph.module_copy import copy_whole
from pruning.io.atomic import replace_file
from pruning.io.onnx_sandbox import weights_elsewhere
from pruning.plan.verification import TOLERANCE


def refuse_external_weights(path: Path) -> None:
    """Refuse a file whose weights lie in other files; `export_onnx` writes none.

    Raises:
        ExportError: They do, or it is no ONNX file.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors differ from version to version
        raise ExportError(f"{path} is no ONNX file, or a damaged one; export the model again ({error})") from error
    if (elsewhere := weights_elsewhere(model)) is not None:
        raise ExportError(f"{path}: {elsewhere}; expected one file with all of its weights: export the model again")


_LARGEST_FILE = 2**31 - 2**20  # a protobuf holds 2 GiB at most


_LONGEST_CAUSE = 400
_TINY = float(np.finfo(np.float32).tiny)  # where the model's outputs are all zero


@dataclass(frozen=True)
class Parity:
    """How far the file's outputs are from the model's.

    Attributes:
        max_abs_difference: max |d| over all batches, d = output of the file − output of the model.
        max_relative_difference: the largest max|d| / max|y| of a batch, y = output of the model.
        close: share of samples whose largest |d| is at most 1e-4 of the largest |y| of their batch.
        top1_agreement: share of samples whose largest output is the same; None where outputs are no classes.
        num_samples: how many samples were compared.
    """

    max_abs_difference: float
    max_relative_difference: float
    close: float
    top1_agreement: float | None
    num_samples: int


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor,
    path: str | Path,
    *,
    opset: int = 20,
    optimize: bool = True,
    input_names: Sequence[str] = ("input",),
    output_names: Sequence[str] = ("output",),
) -> Path:
    """Write a model to one ONNX file with a dynamic batch axis named "batch".

    Exported is a copy in evaluation mode on the CPU. The file holds no paths of the machine that wrote it, and has the
    same bytes whenever and wherever it is written. It appears complete or not at all.

    Args:
        model: untouched.
        example_inputs: one batch; its first sample is used, twice (a batch of one would be taken as fixed).
        path: where the file goes; its folder is made.
        opset: the ONNX operator set asked for.
        optimize: fold what doesn't depend on the inputs, which takes a third of the time.
        input_names: name of the input.
        output_names: name of each output.

    Returns:
        The path.

    Raises:
        ExportError: the model can't be exported, is above 2 GiB, or the file isn't what was asked for.
    """
    path = Path(path)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > _LARGEST_FILE:
        raise ExportError(f"the model holds {size:,} bytes; one ONNX file holds 2 GiB at most")
    deployed = copy_whole(model).cpu().eval()
    first = example_inputs[:1].detach().cpu()
    with _quiet():
        _read_operators_once()
        try:
            program = torch.onnx.export(
                deployed,
                (torch.cat([first, first]),),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                optimize=optimize,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=({0: "batch"},),
                external_data=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"the model can't be exported to ONNX: {_cause(error)}") from error
    if program is None:
        raise ExportError("the exporter gave no program back")
    proto = program.model_proto
    _strip_metadata(proto)
    _check(proto, opset)
    replace_file(path, proto.SerializeToString(deterministic=True))
    return path


@functools.cache
def _read_operators_once() -> None:
    """Let the exporter keep its list of operators, which is always the same.

    At each export it reads the source code of five hundred functions for it, which takes as long as all the rest. Where
    another version keeps the list elsewhere, it goes on reading.
    """
    with suppress(ImportError, AttributeError):
        apis: Any = importlib.import_module("torch.onnx._internal._lazy_import").onnxscript_apis
        apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)


def _cause(error: BaseException) -> str:
    """What an export failed at: the exporter's own text is advice on how to report it, and the cause is below."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:_LONGEST_CAUSE]}"


def check_parity(
    path: str | Path,
    model: nn.Module,
    inputs: Batches | Samples | Tensor,
    *,
    batch_sizes: Sequence[int] = (1, 3, 7),
    batch_size: int = 256,
    by_class: bool = True,
) -> Parity:
    """Compare an ONNX file with the model it came from, in ONNX Runtime on the CPU.

    Args:
        path: the file; it has one input.
        model: run in evaluation mode on its device; modes are restored.
        inputs: samples, or a tensor [N, ...]. The first ones are run at each of `batch_sizes`, then
            all of them by `batch_size`.
        batch_sizes: proves that the batch axis is dynamic; sizes above N are cut to N.
        batch_size: samples per pass over the whole set.
        by_class: whether axis 1 of the outputs holds classes, of which the largest counts.

    Raises:
        ExportError: the file can't be loaded or run at one of the batch sizes.
    """
    session = open_session(path)
    name, samples, device = session.get_inputs()[0].name, as_batches(inputs), device_of(model)
    passes = chain((samples.first(size) for size in batch_sizes), samples.ordered(batch_size))
    largest, relative, agreed, close, compared = 0.0, 0.0, 0, 0, 0
    with restored_modes(model), torch.no_grad():
        model.eval()
        for number, (batch, _, _) in enumerate(passes):
            expected = model(batch.to(device)).cpu().numpy()
            found = _run(session, name, batch, path)
            if found.shape != expected.shape:
                raise ExportError(f"{path}: output of shape {found.shape}; the model's is {expected.shape}")
            differences = np.abs(found - expected).reshape(len(batch), -1).max(axis=1)
            scale = max(float(np.abs(expected).max()), _TINY)
            largest = max(largest, float(differences.max()))
            relative = max(relative, float(differences.max()) / scale)
            if number >= len(batch_sizes):
                compared += len(batch)
                if by_class:
                    same = found.argmax(axis=1) == expected.argmax(axis=1)
                    agreed += int(same.reshape(len(batch), -1).all(axis=1).sum())
                close += int((differences <= TOLERANCE * scale).sum())
    return Parity(largest, relative, close / compared, agreed / compared if by_class else None, compared)


def open_session(
    path: str | Path,
    *,
    num_threads: int = 1,
    provider: str = "CPUExecutionProvider",
) -> onnxruntime.InferenceSession:
    """Load an ONNX file into ONNX Runtime.

    Args:
        path: the file.
        num_threads: threads within an operator.
        provider: what runs the operators.

    Raises:
        ExportError: the file is missing or damaged, keeps weights in other files, or this build of ONNX Runtime has no
            such provider.
    """
    if not Path(path).is_file():
        raise ExportError(f"no ONNX file at {path}; export the model first")
    refuse_external_weights(Path(path))
    known = onnxruntime.get_available_providers()
    if provider not in known:
        raise ExportError(unknown_name("execution provider", provider, known))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's own errors have no public root but Exception
        pass_on(error)
        raise ExportError(f"{path} can't be loaded by ONNX Runtime; export the model again ({error})") from error


def _run(session: onnxruntime.InferenceSession, name: str, batch: Tensor, path: str | Path) -> NDArray[np.float32]:
    try:
        found: NDArray[np.float32] = session.run(None, {name: batch.cpu().numpy()})[0]
    except Exception as error:  # as above
        pass_on(error)
        raise ExportError(f"{path} can't be run at batch size {len(batch)}: {error}") from error
    return found


def _strip_metadata(proto: onnx.ModelProto) -> None:
    """Drop what names the machine that exported: the stack trace at every node holds absolute paths."""
    graph = proto.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer, graph, proto):
        del part.metadata_props[:]
    for function in proto.functions:
        for part in (*function.node, *function.value_info, function):
            del part.metadata_props[:]


def _check(proto: onnx.ModelProto, opset: int) -> None:
    found = next(entry.version for entry in proto.opset_import if entry.domain == "")
    if found != opset:
        raise ExportError(f"asked for opset {opset}, the exporter gave {found}; 18 to 25 are known to work")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported file fails ONNX's own check: {error}") from error
    shape = proto.graph.input[0].type.tensor_type.shape
    if not shape.dim or shape.dim[0].dim_param != "batch":
        raise ExportError(
            "the exporter fixed the batch axis: somewhere in its forward the model uses the batch size as a constant"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's log lines, warnings and prints from the user."""
    with ExitStack() as stack:
        for name in ("torch.onnx", "torch.fx", "onnxscript", "onnx_ir"):
            stack.enter_context(quiet(name))
        for other in (warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO())):
            stack.enter_context(other)
        warnings.simplefilter("ignore")
        yield
