"""Load and run an ONNX file that anybody may have written, limited in time and memory: in a process of its own.

ONNX has loops without end, tensors of any size and whatever a parser or an operator does with a file that nobody
exported. Python can't stop native code that runs in its own process, so `try_in_sandbox` starts this very file as a
program, which imports nothing of the package (torch alone would take longer than most networks).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

SECONDS = 60  # of a processor; of the clock, on a busy machine, so many times as long:
PATIENCE = 10
_ADDRESSES = 4 * 2**30  # that Python and ONNX Runtime reserve, most of them without memory behind
_REFUSED = 3  # exit code after a message


Feeds = Mapping[str, NDArray[np.generic]]
"""Name of an input -> its values."""


def try_in_sandbox(path: Path, batches: Sequence[Feeds] = (), *, most_bytes: int) -> str | None:
    """Load a file in a process of its own, which may take `SECONDS` of a processor, and run it on batches.

    Args:
        path: The file.
        batches: What it is given, one after the other; it is only loaded where there is none.
        most_bytes: Memory that the process may take.

    Returns:
        What went wrong, None where nothing did.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "batches.npz")
        names = [list(batch) for batch in batches]
        values = {f"{place}-{at}": batch[name] for place, batch in enumerate(batches) for at, name in enumerate(batch)}
        np.savez(given, names=np.frombuffer(json.dumps(names).encode(), dtype=np.uint8), **cast(Any, values))
        command = [sys.executable, "-I", __file__, str(path.absolute()), str(given), str(most_bytes), str(SECONDS)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=PATIENCE * SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return f"it was not done after {PATIENCE * SECONDS} s"
    if done.returncode == 0:
        return None
    if done.returncode == _REFUSED:
        return done.stdout.strip()
    if done.returncode in (-24, -9):  # SIGXCPU, SIGKILL
        return f"it was ended after {SECONDS} s of a processor, or because memory ran out"
    return f"the process that tried it died with code {done.returncode}"


def weights_elsewhere(model: onnx.ModelProto) -> str | None:
    """Say which tensor of a model lies in which other file; None where the model holds all of them."""
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
            return f"it keeps {tensor.name!r} in another file ({place}), which isn't read"
    return None


def main() -> int:
    """Do what the command line asks for; print what went wrong."""
    path, given, most_bytes, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes + _ADDRESSES,) * 2)
    seconds += int(time.process_time()) + 1  # what the imports took doesn't count
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        if (elsewhere := weights_elsewhere(onnx.load(path, load_external_data=False))) is not None:
            sys.stdout.write(elsewhere)
            return _REFUSED
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        with np.load(given) as values:
            for place, names in enumerate(json.loads(values["names"].tobytes())):
                session.run(None, {name: values[f"{place}-{at}"] for at, name in enumerate(names)})
    except Exception as fault:  # noqa: BLE001 - protobuf and ONNX Runtime raise what they like
        sys.stdout.write(f"{type(fault).__name__}: {' '.join(str(fault).split())[:500]}")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
