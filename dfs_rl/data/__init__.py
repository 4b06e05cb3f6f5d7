"""Data sets in memory: loading, splits, batches, augmentation and channel statistics."""

from dfs_rl.data.augment import augment
from dfs_rl.data.batching import batches, epoch_batches
from dfs_rl.data.images import SPLIT_NAMES, Dataset, ImageSet, SplitName
from dfs_rl.data.load import load_dataset, register_dataset
from dfs_rl.data.splits import SplitFractions
from dfs_rl.data.statistics import ChannelStatistics, channel_statistics

__all__ = [
    "SPLIT_NAMES",
    "ChannelStatistics",
    "Dataset",
    "ImageSet",
    "SplitFractions",
    "SplitName",
    "augment",
    "batches",
    "channel_statistics",
    "epoch_batches",
    "load_dataset",
    "register_dataset",
]
