"""ONNX files can keep their weights in other files, by paths that lead anywhere: such a file is refused."""

from __future__ import annotations

from pathlib import Path

import onnx

from pruning.errors import ExportError


def refuse_external_weights(path: Path) -> None:
    """Refuse a file whose weights lie in other files; `export_onnx` writes none.

    Raises:
        ExportError: They do, or it is no ONNX file.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors differ from version to version
        raise ExportError(f"{path} is no ONNX file, or a damaged one; export the model again ({error})") from error
    graphs = [model.graph]
    tensors: list[onnx.TensorProto] = []
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            tensors += graph.initializer
            for sparse in graph.sparse_initializer:
                tensors += [sparse.values, sparse.indices]
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            tensors += [attribute.t, *attribute.tensors]
            graphs += [attribute.g, *attribute.graphs]
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "unnamed")[:200]
            raise ExportError(
                f"{path} keeps {tensor.name!r} in another file ({place}), which isn't read; "
                "expected one file that holds all of its weights: export the model again"
            )
