"""Step metrics of a rank: every value in its column; the first step that is not finite is named."""

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.training.distributed.metrics import MetricsRecorder, StepInfo
from pipeline.training.trainer import StepResult
from tiny import config

pytestmark = pytest.mark.unit
CPU = torch.device("cpu")


def result(loss=0.5, norm=1.0, sums=None, counts=None, own=0.25):
    by_t = [torch.tensor(values, dtype=torch.float64) for values in (sums or [0.0] * 10, counts or [0.0] * 10)]
    return StepResult(torch.tensor(loss), torch.tensor(norm), 1e-3, *by_t, own)


def moment(step, waited=0.1, seconds=0.5):
    return StepInfo(step, 2, step - 1, torch.arange(10 * step, 10 * step + 10), waited, seconds)


def metrics(**train):
    return MetricsRecorder(config(train=train).train, 1, 1, CPU)


def test_rows_hold_each_step_once():
    r = metrics()
    r.add(moment(1), result(0.5, 3.0, [1.0, *[0.0] * 9], [4.0, *[0.0] * 9]))
    r.add(moment(2, waited=0.9), result(0.25, 2.0, [*[0.0] * 9, 6.0], [*[0.0] * 9, 2.0]))
    assert len(r) == 2
    first, second = r.rows()
    assert (first["step"], first["images"], first["epoch"], first["loss"], first["grad_norm"]) == (1, 32, 2, 0.5, 3.0)
    assert first["loss_by_t"] == [0.25, *[None] * 9]
    assert second["loss_by_t"] == [*[None] * 9, 3.0]
    assert (first["data_wait_seconds"], second["data_wait_seconds"]) == (0.1, 0.5)  # never more than the step took
    assert (first["skew_seconds"], first["slowest_rank"], first["world_size"]) == (0.0, 0, 1)
    assert len(r) == 0


def test_a_status_covers_the_steps_since_the_previous_one():
    r = metrics()
    r.add(moment(1), result(0.5))
    r.add(moment(2), result(0.75))
    status = r.status()
    assert (status.step, status.epoch, status.loss, status.world_size) == (2, 2, 0.75, 1)
    assert status.images_per_second > 0
    r.add(moment(3, waited=0.0), result())
    assert r.status().data_wait_share == 0.0


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (float("inf"), 1.0), (0.5, float("nan"))])
def test_the_first_step_that_is_not_finite_is_named_with_its_images(loss, norm):
    r = metrics()
    r.add(moment(1), result())
    r.check_finite()
    r.add(moment(2), result())
    r.add(moment(3), result(loss, norm))
    r.add(moment(4), result(float("nan"), float("nan")))
    with pytest.raises(
        PipelineError, match=r"step 3 \(epoch 2, batch 2\).* rank 1, .*sample ids 30, 31, .* and 2 more"
    ):
        r.check_finite()
    with pytest.raises(PipelineError, match="step 3"):
        r.rows()  # none of it may be stored


def test_half_precision_skips_a_gradient_that_overflows():
    r = metrics(precision="fp16")
    r.add(moment(1), result(0.5, float("inf")))
    r.check_finite()
    r.add(moment(2), result(float("nan"), 1.0))
    with pytest.raises(PipelineError, match="step 2"):
        r.check_finite()
