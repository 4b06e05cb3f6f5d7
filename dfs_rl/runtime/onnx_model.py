"""Networks that ``export`` wrote, run by onnxruntime."""

import json
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dfs_rl.data.pixels import check_pixels
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.runtime.export import check_extra

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

    from dfs_rl.runtime.batching import BatchedGraph


_REGROUPED = 10
"""Images in a batch from which on regrouping takes less time than running one by one."""


class OnnxResult(NamedTuple):
    """Outputs of an exported network.

    Attributes:
        logits: float32 ``[batch, classes]``.
        options: Option indices, int64 ``[batch, layers]``; after an exit the index after the last
            option.
        computation: Percent of running every gated layer at 32 bit, float64 ``[batch]``.
    """

    logits: NDArray[np.float32]
    options: NDArray[np.int64]
    computation: NDArray[np.float64]


class OnnxModel:
    """An exported network.

    Args:
        path: The file.
        threads: Number of CPU threads.

    Attributes:
        metadata: What the file tells about itself: ``classes``, ``bits``, ``mean``, ``std``, ...

    Raises:
        ConfigError: If the extra ``export`` is missing.
        CheckpointError: If the file is missing, damaged or none of ours.
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        check_extra()
        import onnxruntime

        if not Path(path).is_file():
            raise CheckpointError(f"{path} is not a file; export writes one.")
        self._open = partial(
            onnxruntime.InferenceSession,
            sess_options=session_options(threads),
            providers=["CPUExecutionProvider"],
        )
        try:
            self._content = Path(path).read_bytes()
            self._session = self._open(self._content)
            properties = self._session.get_modelmeta().custom_metadata_map
            self.metadata: dict[str, Any] = {k: json.loads(v) for k, v in properties.items()}
            self._image_shape = tuple(self.metadata["image_shape"])
        except Exception as error:  # onnxruntime has no error class of its own for bad files
            raise CheckpointError(f"{path} is no network that DFS-RL exported: {error}") from error
        inputs = {value.name: value for value in self._session.get_inputs()}
        self._single = inputs["images"].shape[0] == 1
        self._conditioned = "preference" in inputs
        self._batched: BatchedGraph | None = None

    def __call__(
        self, images: NDArray[np.generic], *, preference: float | None = None
    ) -> OnnxResult:
        """Classify images.

        Args:
            images: uint8 ``[batch, c, h, w]``, or float in [0, 1]; normalised inside. Where the
                network branches, images with the same choice run together.
            preference: Preference in [0, 1] of a gate for all budgets, by default the exported one.

        Raises:
            ConfigError: If the gate takes no preference, or it is outside [0, 1].
            DataError: If the images have another shape, type or range.
        """
        feeds = {"images": self._pixels(images)}
        if preference is not None and not (self._conditioned and 0 <= preference <= 1):
            reason = "it must be between 0 and 1" if self._conditioned else "this gate takes none"
            raise ConfigError(f"preference is {preference}; {reason}.")
        if self._conditioned:
            value = self.metadata["preference"] if preference is None else preference
            feeds["preference"] = np.full(len(images), value, np.float32)
        if not self._single or len(images) == 1:
            return OnnxResult(*self._session.run(None, feeds))
        return OnnxResult(*self._batch(feeds, len(images)))

    def _batch(self, feeds: Mapping[str, NDArray[Any]], n: int) -> list[NDArray[Any]]:
        """Run a network with branches, regrouping the images at each of them if they are many."""
        if n < _REGROUPED:
            ones = [{name: v[i : i + 1] for name, v in feeds.items()} for i in range(n)]
            rows = [self._session.run(None, one) for one in ones]
            return [np.concatenate(column) for column in zip(*rows, strict=True)]
        from dfs_rl.runtime.batching import batched_graph

        if self._batched is None:
            self._batched = batched_graph(self._content, self._open)
        return self._batched(feeds, n)

    def _pixels(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return valid images as float32 in [0, 1]."""
        check_pixels(torch.from_numpy(images))
        alike = images.ndim == len(self._image_shape) + 1 and images.shape[1:] == self._image_shape
        if not alike or len(images) == 0:
            raise DataError(
                f"images are {list(images.shape)}; this network takes "
                f"[batch, {', '.join(map(str, self._image_shape))}] with at least one image."
            )
        if images.dtype == np.uint8:
            return images.astype(np.float32) / np.float32(255)
        return images.astype(np.float32)


def session_options(threads: int) -> "SessionOptions":
    """Return the options of sessions that run exported networks on a CPU."""
    import onnxruntime

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
    import onnxruntime
    from onnx import TensorProto, helper

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
