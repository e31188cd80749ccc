"""A worker accepts only the plan's next batch, and its checks find planted failures."""

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.training.distributed.checkpointer import DataPosition
from pipeline.training.distributed.worker import Worker
from pipeline.training.trainer import Trainer
from tiny import config

pytestmark = pytest.mark.unit


def worker():
    """A worker without Ray: what its methods need of it, and nothing else."""
    made = Worker.__new__(Worker)
    made.position = DataPosition(3, 7, ("", "", "", ""))
    made.rank, made.world_size, made.lanes = 0, 1, [0, 1, 2, 3]
    made.settings = config().train
    made.trainer = Trainer(config(), 8, 1, torch.device("cpu"))
    made.averages = made._average_digests()
    return made


@pytest.mark.parametrize(("fed", "place"), [((3, 7), (3, 8)), ((4, 0), (4, 1))])
def test_the_next_batch_or_the_next_epochs_first(fed, place):
    w = worker()
    w._take_position({fed})
    assert (w.position.epoch, w.position.batches) == place


@pytest.mark.parametrize("fed", [{(3, 8)}, {(3, 6)}, {(5, 0)}, {(4, 1)}, {(3, 7), (4, 0)}, set()])
def test_a_batch_or_an_epoch_left_out_or_repeated_or_mixed_is_refused(fed):
    with pytest.raises(PipelineError, match="expects batch 7 of epoch 3"):
        worker()._take_position(fed)


def test_the_digest_of_a_lane_is_of_its_ids_in_order():
    one, other, swapped = worker(), worker(), worker()
    ids = [torch.tensor([lane, lane + 10]) for lane in range(4)]
    one._update_lane_digests(ids)
    other._update_lane_digests(ids)
    swapped._update_lane_digests([ids[0].flip(0), *ids[1:]])
    assert one.position.lane_digests == other.position.lane_digests
    assert one.position.lane_digests[0] != swapped.position.lane_digests[0]
    assert one.position.lane_digests[1:] == swapped.position.lane_digests[1:]
    one._update_lane_digests(ids)
    assert one.position.lane_digests != other.position.lane_digests


def test_an_average_that_does_not_change_ends_the_run():
    w = worker()
    with pytest.raises(PipelineError, match="ema"):
        w._check()
    for weight in w.trainer.ema.shadow.values():
        weight += 0.5
    w._check()


def test_an_average_that_is_not_finite_ends_the_run():
    w = worker()
    next(iter(w.trainer.ema.shadow.values())).view(-1)[0] = float("nan")
    with pytest.raises(PipelineError, match="ema"):
        w._check()


def test_replicas_that_differ_end_the_run(monkeypatch):
    w = worker()
    for weight in w.trainer.ema.shadow.values():
        weight += 0.5
    monkeypatch.setattr(w, "_gather", lambda value: [value, value, "another", value])
    with pytest.raises(PipelineError, match="2"):
        w._check()
