"""Write a model as an ONNX file, with inputs and outputs by name, and load it."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pruning.containers import Inputs, as_call, described_inputs, named_inputs, named_outputs
from pruning.errors import ExportError, describe, pass_on, unknown_name
from pruning.graph.contexts import forked_torch, quiet
from pruning.graph.module_copy import copy_whole
from pruning.io.files import replace_file
from pruning.io.onnx_sandbox import weights_elsewhere


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


Axes = Mapping[str, Mapping[int, str]]
"""Name of an input -> its dynamic axes beside the first, each with a name; axes of one name are of one size."""


def dynamic_axes(batch: Inputs, other: Inputs, model: nn.Module | None = None) -> dict[str, dict[int, str]]:
    """Find which axes are dynamic beside the first: those on which two batches differ.

    Args:
        batch: what a model is given.
        other: the same of other samples, such as longer texts.
        model: whose `forward` names what is given in a tuple.

    Returns:
        Name of an input -> axis -> its name: `sequence` for the second one, `height` and `width` for the last two of
        four, else after the input. Axes whose sizes are alike in both batches share a name, height and width aside.

    Raises:
        ExportError: the batches have other inputs, or inputs of other dimensions.
    """
    first, second = named_inputs(batch, model), named_inputs(other, model)
    if {name: one.ndim for name, one in first.items()} != {name: one.ndim for name, one in second.items()}:
        shown = [described_inputs(one) for one in (batch, other)]
        raise ExportError("one batch has {}, another {}; expected the same inputs".format(*shown))
    names: dict[tuple[tuple[int, int], str], str] = {}
    found: dict[str, dict[int, str]] = {}
    differ = [
        (name, axis, sizes, _AXES.get((one.ndim, axis), ""))
        for name, one in first.items()
        for axis, sizes in enumerate(zip(one.shape, second[name].shape, strict=True))
        if axis and sizes[0] != sizes[1]
    ]
    for name, axis, sizes, role in sorted(differ, key=lambda one: one[3] != _SEQUENCE):
        key = (sizes, _SEQUENCE) if (sizes, _SEQUENCE) in names else (sizes, role)
        if key not in names:
            names[key] = role if role and role not in names.values() else f"{name}_{axis}"
        found.setdefault(name, {})[axis] = names[key]
    return found


_SEQUENCE = "sequence"
_AXES = {(2, 1): _SEQUENCE, (3, 1): _SEQUENCE, (4, 2): "height", (4, 3): "width"}


def export_onnx(
    model: nn.Module,
    example_inputs: Inputs,
    path: str | Path,
    *,
    opset: int = 20,
    optimize: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    axes: Axes | None = None,
) -> Path:
    """Write a model to one ONNX file with a dynamic batch axis named "batch".

    Exported is a copy in evaluation mode on the CPU. The file holds no paths of the machine that wrote it, and has the
    same bytes whenever and wherever it is written. It appears complete or not at all.

    Args:
        model: untouched.
        example_inputs: one batch, a tensor or several in a tuple or dict; its first sample is used, repeated (a batch
            of one would be taken as fixed).
        path: where the file goes; its folder is made.
        opset: the ONNX operator set asked for.
        optimize: fold what doesn't depend on the inputs, which takes a third of the time.
        input_names: name of each input, in the order of `named_inputs`; by default as there.
        output_names: name of each output, in the order of `named_outputs`; by default as there.
        axes: dynamic axes beside the first, see `dynamic_axes`.

    Returns:
        The path.

    Raises:
        ExportError: the model can't be exported, is above 2 GiB, or the file isn't what was asked for.
        ModelError: an input or output is no tensor.
    """
    path, axes = Path(path), axes or {}
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > _LARGEST_FILE:
        raise ExportError(f"the model holds {size:,} bytes; one ONNX file holds 2 GiB at most")
    deployed = copy_whole(model).cpu().eval()
    named = named_inputs(example_inputs, model)
    if unknown := axes.keys() - named.keys():
        raise ExportError(unknown_name("input with dynamic axes", min(unknown), list(named)))
    given = _repeated(named, axes)
    produced = _produced(deployed, _like(example_inputs, given))
    inputs = list(input_names or given)
    outputs = list(output_names or _free_names(named_outputs(produced)[0], inputs))
    shapes: Any = tuple({0: "batch", **axes.get(name, {})} for name in named)
    if not (isinstance(example_inputs, Tensor) and isinstance(produced, Tensor)):
        names = list(given) if isinstance(example_inputs, Mapping) else None
        deployed, shapes = _ByPosition(deployed, names).eval(), (shapes,)
    with _quiet():
        _read_operators_once()
        try:
            program = torch.onnx.export(
                deployed,
                tuple(given.values()),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                optimize=optimize,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=shapes,
                external_data=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"the model can't be exported to ONNX: {_cause(error)}") from error
    if program is None:
        raise ExportError("the exporter gave no program back")
    proto = program.model_proto
    _strip_metadata(proto)
    _check(proto, opset)
    _check_names(proto, inputs, outputs, [axes.get(name, {}) for name in named])
    replace_file(path, proto.SerializeToString(deterministic=True))
    return path


def _produced(model: nn.Module, inputs: Inputs) -> Any:
    """Return what a model gives; it may remember the call, so it is run in a copy."""
    args, kwargs = as_call(inputs)
    try:
        with torch.no_grad(), forked_torch():
            return copy_whole(model)(*args, **kwargs)
    except Exception as fault:
        pass_on(fault)
        raise ExportError(f"the model can't be run on {described_inputs(inputs)}: {describe(fault)}") from fault


class _ByPosition(nn.Module):
    """A model that takes its inputs by position and gives a tuple of its outputs."""

    def __init__(self, model: nn.Module, names: Sequence[str] | None) -> None:
        super().__init__()
        self.model, self._names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = (
            self.model(*inputs) if self._names is None else self.model(**dict(zip(self._names, inputs, strict=True)))
        )
        return tuple(named_outputs(outputs)[0].values())


def _repeated(named: Mapping[str, Tensor], axes: Axes) -> dict[str, Tensor]:
    """Repeat the first sample so often that no other dynamic axis has the batch's size, or it would be taken for it."""
    others = {one.shape[axis] for name, one in named.items() for axis in axes.get(name, {})}
    count = next(count for count in range(2, len(others) + 3) if count not in others)
    return {name: torch.cat([one[:1].detach().cpu()] * count) for name, one in named.items()}


def _like(inputs: Inputs, named: Mapping[str, Tensor]) -> Inputs:
    """Bring tensors by name back into the container that they came in."""
    if isinstance(inputs, Tensor):
        return next(iter(named.values()))
    return dict(named) if isinstance(inputs, Mapping) else tuple(named.values())


def _free_names(outputs: Mapping[str, Tensor], taken: Sequence[str]) -> list[str]:
    """Name outputs; one that is called as an input is gets a suffix, since ONNX has one name for one tensor."""
    return [f"{name}_out" if name in taken else name for name in outputs]


def feeds_of(session: onnxruntime.InferenceSession, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Return what a session is given: the only input, inputs in the file's order, or those of a dict by name.

    Raises:
        ExportError: the file has other inputs.
    """
    wanted = [entry.name for entry in session.get_inputs()]
    named = named_inputs(inputs)
    if not isinstance(inputs, Mapping) and len(named) == len(wanted):
        named = dict(zip(wanted, named.values(), strict=True))
    if named.keys() != set(wanted):
        raise ExportError(
            f"the file's inputs are {', '.join(wanted)}, the samples' "
            f"{', '.join(named)}; give each of them, and no others"
        )
    return {name: named[name].detach().cpu().numpy() for name in wanted}


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


def _check_names(
    proto: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str], axes: Sequence[Mapping[int, str]]
) -> None:
    """See that the file has these inputs and outputs, and that their axes are as dynamic as they have to be."""
    for what, wanted, held in (("inputs", inputs, proto.graph.input), ("outputs", outputs, proto.graph.output)):
        if [one.name for one in held] != list(wanted):
            found = ", ".join(one.name for one in held)
            raise ExportError(f"the exporter gave the {what} {found}; expected {', '.join(wanted)}")
    for one, more in zip(proto.graph.input, axes, strict=True):
        shape = one.type.tensor_type.shape
        for axis, name in {0: "batch", **more}.items():
            if len(shape.dim) <= axis or shape.dim[axis].dim_param != name:
                which = f"axis {axis} ({name}) of {one.name!r}" if axis else "the batch axis"
                size = "its size" if axis else "the batch size"
                raise ExportError(
                    f"the exporter fixed {which}: somewhere in its forward the model uses {size} as a constant"
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
