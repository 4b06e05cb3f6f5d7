"""Execution outside of PyTorch: export to ONNX, and exported networks."""

from dfs_rl.runtime.onnx_model import OnnxModel as OnnxModel
