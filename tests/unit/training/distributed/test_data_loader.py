"""Rebatching: blocks of any size become micro-batches of one size."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError, PipelineError
from pipeline.training.distributed.data_loader import LaneStream, rebatch

pytestmark = pytest.mark.unit


def blocks_of(lengths):
    first = 0
    for length in lengths:
        ids = np.arange(first, first + length)
        yield {"sample_id": ids, "image": np.repeat(ids[:, None], 3, axis=1)}
        first += length


@given(st.integers(1, 7), st.lists(st.integers(0, 20), max_size=8))
def test_any_blocks_give_every_row_once_and_in_order(size, lengths):
    left_over = sum(lengths) % size
    lengths = [*lengths, size - left_over if left_over else 0]
    batches = list(rebatch(blocks_of(lengths), size))
    assert all(len(batch["sample_id"]) == size for batch in batches)
    ids = [int(n) for batch in batches for n in batch["sample_id"]]
    assert ids == list(range(sum(lengths)))
    assert all((batch["image"] == batch["sample_id"][:, None]).all() for batch in batches)


def test_a_whole_block_is_not_copied():
    block = next(blocks_of([8]))
    for batch in rebatch([block], 4):
        assert np.shares_memory(batch["image"], block["image"])


def test_rows_left_over_are_an_error():
    with pytest.raises(PipelineError, match="inside a micro-batch of 4"):
        list(rebatch(blocks_of([4, 3]), 4))


class _Rows:
    """A Ray Data iterator of one block: two images of a class, two without a label."""

    def iter_batches(self, **_):
        zeros = np.zeros(4, np.int64)
        labels, ids = np.array([0, 2, -1, -1]), np.array([7, 3, 9, 4])
        image = np.zeros((4, 2, 2, 1), np.uint8)
        yield {"image": image, "sample_id": ids, "label": labels, "epoch": zeros, "batch": zeros}


def test_a_network_without_a_class_for_no_label_refuses_an_image_without_one():
    plain = LaneStream(_Rows(), 2, torch.device("cpu"))
    assert [plain.next()[0].labels.tolist() for _ in range(2)] == [[0, 2], [-1, -1]]
    strict = LaneStream(_Rows(), 2, torch.device("cpu"), needs_labels=True)
    assert strict.next()[0].labels.tolist() == [0, 2]
    with pytest.raises(DataError, match=r"image 9 has no label.*model\.null_class"):
        strict.next()
