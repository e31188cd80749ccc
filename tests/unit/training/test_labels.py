"""Label dropout: its rate, the dependence on sample id, and the null label."""

import pytest
import torch

from pipeline.training.inputs import MicroBatch, training_labels
from pipeline.training.trainer import Trainer
from tiny import config

pytestmark = pytest.mark.unit

IDS = torch.arange(4000)
LABELS = IDS % 3


def labels(share, ids=IDS, epoch=0, seed=0, classes=3):
    settings = config(model={"num_classes": classes}, train={"label_dropout": share, "seed": seed})
    return training_labels(ids % 3, ids, epoch, settings)


def test_a_share_of_the_labels_is_no_label_and_the_others_stay():
    got = labels(0.25)
    dropped = got == 3
    assert 0.22 < float(dropped.float().mean()) < 0.28
    assert torch.equal(got[~dropped], LABELS[~dropped])
    assert torch.equal(labels(0.0), LABELS)


def test_who_is_dropped_is_a_function_of_seed_epoch_and_id():
    whole = labels(0.25)
    assert torch.equal(whole[1000:1010], labels(0.25, IDS[1000:1010]))
    assert torch.equal(whole.flip(0), labels(0.25, IDS.flip(0)))
    both = [(whole == 3) & (other == 3) for other in (labels(0.25, epoch=1), labels(0.25, seed=1))]
    for together in both:  # independent: a quarter of a quarter
        assert 0.04 < float(together.float().mean()) < 0.09


def test_an_image_without_a_label_is_one_without_a_label():
    settings = config(model={"num_classes": 3})
    assert training_labels(torch.tensor([1, -1]), torch.tensor([0, 1]), 0, settings).tolist() == [1, 3]


def test_a_network_without_classes_gets_none():
    assert training_labels(LABELS, IDS, 0, config()) is None
    assert training_labels(None, IDS, 0, config(model={"num_classes": 3})) is None


@pytest.mark.parametrize(("share", "moves"), [(0.0, False), (0.5, True)])
def test_training_moves_the_null_row_only_with_dropout(share, moves):
    trainer = Trainer(
        config(model={"num_classes": 3}, train={"label_dropout": share, "warmup_steps": 0}), 8, 1, torch.device("cpu")
    )
    before = trainer.model.class_embedding.weight.detach().clone()
    for _step in range(3):  # the first step moves only the last layer, which is 0
        ids = torch.arange(16)
        x_0 = torch.sin(ids[:, None].float() + torch.arange(64)[None, :]).reshape(-1, 1, 8, 8)
        trainer.step([MicroBatch(x_0, ids, ids % 3, 0)])
    moved = (trainer.model.class_embedding.weight != before).any(1).tolist()
    assert moved == [True, True, True, moves]
