"""Rebatching: blocks of any size become micro-batches of one size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.training.distributed.data_loader import rebatch

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
