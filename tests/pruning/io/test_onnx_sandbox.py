"""An ONNX file of unknown origin is tried in a process of its own, which ends."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pruning.io import onnx_sandbox
from pruning.io.onnx_sandbox import try_in_sandbox

ONE = np.zeros((1, 8), np.float32)
GIB = 2**30


def model(*nodes: onnx.NodeProto, **constants: int) -> bytes:
    """Return a file with one input and one output, [batch, 8]."""
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor(name, TensorProto.INT64, [], [value]) for name, value in constants.items()],
    )
    made: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    return made


def counting(times: int) -> bytes:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["goes_on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    return model(helper.make_node("Loop", ["times", "", "input"], ["output"], body=body), times=times)


def huge() -> bytes:
    return model(
        helper.make_node("Constant", [], ["shape"], value_ints=[10**11, 8]),
        helper.make_node("Expand", ["input", "shape"], ["large"]),
        helper.make_node("ReduceMax", ["large"], ["one"], keepdims=0),
        helper.make_node("Add", ["input", "one"], ["output"]),
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (counting(3), None),
        (counting(2**62), "ended after 1 s of a processor"),
        (huge(), "alloc"),
        (b"\x08" * 999, "DecodeError"),
        (b"", "no graph|Fail|INVALID"),
        (model(helper.make_node("NoSuch", ["input"], ["output"])), "NoSuch"),
    ],
    ids=["right", "loop without end", "huge tensor", "no protobuf", "empty", "unknown operator"],
)
def test_a_file_of_unknown_origin_is_tried_and_ends(
    content: bytes, fault: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_sandbox, "SECONDS", 1)
    monkeypatch.setattr(onnx_sandbox, "PATIENCE", 200)
    (tmp_path / "model.onnx").write_bytes(content)
    found = try_in_sandbox(tmp_path / "model.onnx", [{"input": ONE}], most_bytes=GIB)
    if fault is None:
        assert found is None
    else:
        assert re.search(fault, str(found))
