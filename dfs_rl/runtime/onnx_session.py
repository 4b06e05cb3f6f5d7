"""Sessions of onnxruntime that run graphs with branches on any batch."""

from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from dfs_rl.runtime.batching import BatchedGraph, batched_graph

_REGROUPED = 10
"""Images in a batch from which on regrouping takes less time than running one by one."""
Values = Mapping[str, NDArray[Any]]


class OnnxSession:
    """A graph that ``export`` wrote.

    Args:
        content: Its file.
        threads: Number of CPU threads.

    Attributes:
        inputs: Shapes of its inputs.
        metadata: Metadata of the file.
    """

    def __init__(self, content: bytes, *, threads: int) -> None:
        self._content = content
        self._open = partial(
            onnxruntime.InferenceSession,
            sess_options=_options(threads),
            providers=["CPUExecutionProvider"],
        )
        self._session = self._open(content)
        self.inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        self._batched: BatchedGraph | None = None

    def run(self, feeds: Values) -> list[NDArray[Any]]:
        """Return the outputs for a batch, of which every input has a row for each image or one.

        Where the graph branches, many images with the same choice run together.
        """
        n = len(feeds["images"])
        if n == 1 or self.inputs["images"][0] != 1:
            outputs: list[NDArray[Any]] = self._session.run(None, feeds)
            return outputs
        if n < _REGROUPED:
            ones = [
                {k: v if len(v) == 1 else v[i : i + 1] for k, v in feeds.items()} for i in range(n)
            ]
            rows = [self._session.run(None, one) for one in ones]
            return [np.concatenate(column) for column in zip(*rows, strict=True)]
        if self._batched is None:
            self._batched = batched_graph(self._content, self._open)
        return self._batched(feeds, n)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not _sums_are_exact():
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Many sessions share the cores when a batch is regrouped.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@cache
def _sums_are_exact() -> bool:
    """Return whether this CPU sums products of unsigned and signed codes exactly, by trying.

    CPUs without 8-bit dot products saturate at 16 bits, unless onnxruntime takes twice the time.
    """
    shapes = {"a": (TensorProto.UINT8, [8, 64]), "b": (TensorProto.INT8, [64, 16])}
    inputs = [helper.make_tensor_value_info(name, *shape) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("sums", TensorProto.INT32, [8, 16])
    product = helper.make_node("MatMulInteger", ["a", "b"], ["sums"])
    graph = helper.make_graph([product], "sums", inputs, [output])
    versions = {"opset_imports": [helper.make_opsetid("", 18)], "ir_version": 10}
    content = helper.make_model(graph, **versions).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    codes = {"a": np.full((8, 64), 255, np.uint8), "b": np.full((64, 16), 127, np.int8)}
    return bool((session.run(None, codes)[0] == 64 * 255 * 127).all())
