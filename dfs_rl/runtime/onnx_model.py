"""Networks that ``export`` wrote, run by onnxruntime."""

import json
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray

from dfs_rl.data.pixels import check_pixels
from dfs_rl.errors import CheckpointError, ConfigError, DataError
from dfs_rl.runtime.export import check_extra


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
        ConfigError: If the extra ``export`` is missing, or ``threads`` is no positive number.
        CheckpointError: If the file is missing, damaged or not written by ``export``.
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        check_extra()
        from dfs_rl.runtime.onnx_session import OnnxSession

        if not isinstance(threads, int) or threads < 1:
            raise ConfigError(f"threads is {threads!r}; allowed are whole numbers from 1.")
        if not Path(path).is_file():
            raise CheckpointError(f"{path} is not a file; export writes one.")
        try:
            self._session = OnnxSession(Path(path).read_bytes(), threads=threads)
            properties = self._session.metadata
            self.metadata: dict[str, Any] = {k: json.loads(v) for k, v in properties.items()}
            self._image_shape = tuple(self.metadata["image_shape"])
        except Exception as error:  # onnxruntime has no error class of its own for bad files
            raise CheckpointError(f"{path} is no network that DFS-RL exported: {error}") from error
        self._conditioned = "preference" in self._session.inputs

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
        if preference is not None:
            known = isinstance(preference, SupportsFloat) and 0 <= float(preference) <= 1
            if not (self._conditioned and known):
                reason = "it must be between 0 and 1" if self._conditioned else "this gate has none"
                raise ConfigError(f"preference is {preference!r}; {reason}.")
        if self._conditioned:
            value = self.metadata["preference"] if preference is None else preference
            feeds["preference"] = np.full(len(images), value, np.float32)
        return OnnxResult(*self._session.run(feeds))

    def _pixels(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return valid images as float32 in [0, 1]."""
        if not isinstance(images, np.ndarray):
            raise DataError(
                f"images is a {type(images).__name__}; allowed is a NumPy array of uint8, or of "
                "floats in [0, 1]."
            )
        if images.dtype.kind not in "biuf" or images.dtype.itemsize > 8:  # noqa: PLR2004
            raise DataError(
                f"images are {images.dtype}; allowed are uint8, or float16, float32 and float64 in "
                "[0, 1]."
            )
        # torch takes neither negative strides, nor another byte order, nor read-only arrays.
        check_pixels(torch.from_numpy(np.array(images, images.dtype.newbyteorder("="))))
        alike = images.ndim == len(self._image_shape) + 1 and images.shape[1:] == self._image_shape
        if not alike or len(images) == 0:
            raise DataError(
                f"images are {list(images.shape)}; this network takes "
                f"[batch, {', '.join(map(str, self._image_shape))}] with at least one image."
            )
        if images.dtype == np.uint8:
            return images.astype(np.float32) / np.float32(255)
        return images.astype(np.float32)
