import pytest
import torch

from dfs_rl.gating.batch_indexing import empty_rows, gather_rows, scatter_rows

CASES = [(7, 4, 6, 6), (7, 3, 5, 5), (7, 1, 4, 4), (7, 8, 1, 1), (7, 16), (7,), (7, 2, 3, 4, 5)]
ROWS = torch.tensor([5, 0, 2])


def random_batch(shape, dtype, layout):
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if layout == "channels_last" and len(shape) == 4:
        return batch.contiguous(memory_format=torch.channels_last)
    if layout == "strided" and len(shape) > 1:
        return batch.transpose(-1, 0).contiguous().transpose(-1, 0)
    if layout == "offset":
        return torch.cat([batch[:1], batch])[1:]
    return batch


@pytest.mark.parametrize("layout", ["plain", "channels_last", "strided", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", CASES)
def test_equals_torch_indexing(shape, dtype, layout):
    batch = random_batch(shape, dtype, layout)
    picked = gather_rows(batch, ROWS)
    assert torch.equal(picked, batch[ROWS])
    assert picked.stride() == batch[ROWS].stride() or layout == "strided"

    for value_layout in ("plain", "channels_last"):
        values = random_batch((3, *shape[1:]), dtype, value_layout)
        ours, theirs = batch.clone(), batch.clone()
        scatter_rows(ours, ROWS, values)
        theirs[ROWS] = values
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("layout", ["plain", "channels_last"])
def test_empty_batch_has_the_layout_of_its_model(layout):
    batch = random_batch((7, 4, 6, 6), torch.bfloat16, layout)
    empty = empty_rows(3, batch)
    assert (empty.shape, empty.dtype) == ((3, 4, 6, 6), torch.bfloat16)
    assert empty.stride() == batch[:3].stride()


def test_values_of_another_dtype_are_converted():
    batch, values = torch.zeros(4, 8), torch.ones(2, 8, dtype=torch.bfloat16)
    scatter_rows(batch, torch.tensor([1, 3]), values)
    assert batch.sum(dim=1).tolist() == [0, 8, 0, 8]
