"""Background uploads: one task at a time, errors reach the caller, snapshots share no memory."""

import threading
import time

import pytest
import torch

from pipeline.training.distributed.async_upload import Uploads, snapshot

pytestmark = pytest.mark.unit


def raising(error: BaseException):
    def job() -> None:
        raise error

    return job


def test_the_caller_goes_on_while_one_task_runs_and_waits_before_the_second():
    gate, done = threading.Event(), []
    with Uploads() as uploads:
        uploads.submit(lambda: (gate.wait(10), done.append(1)))
        assert not uploads.poll()
        assert done == []
        threading.Timer(0.1, gate.set).start()
        uploads.submit(lambda: done.append(2))
        assert done[0] == 1
        uploads.wait()
        assert done == [1, 2]
        assert uploads.poll()


def test_the_last_task_is_awaited_at_the_end_of_the_block():
    done = []
    with Uploads() as uploads:
        uploads.submit(lambda: (time.sleep(0.1), done.append(1)))
    assert done == [1]


@pytest.mark.parametrize("ask", ["submit", "wait", "poll", "leave"])
def test_an_error_is_raised_once_where_the_caller_next_asks(ask):
    began = []
    uploads = Uploads()
    uploads.submit(raising(ValueError("disk full")))
    uploads._thread.join()
    with pytest.raises(ValueError, match="disk full"):  # noqa: PT012
        if ask == "leave":
            with uploads:
                pass
        elif ask == "submit":
            uploads.submit(lambda: began.append(1))
        else:
            getattr(uploads, ask)()
    uploads.wait()
    assert began == []
    uploads.submit(lambda: began.append(2))
    uploads.wait()
    assert began == [2]


def test_even_an_exit_in_a_task_reaches_the_caller():
    uploads = Uploads()
    uploads.submit(raising(SystemExit(3)))
    with pytest.raises(SystemExit):
        uploads.wait()


def test_a_block_that_fails_does_not_wait_long_and_keeps_its_own_error():
    gate = threading.Event()
    began = time.monotonic()
    with pytest.raises(KeyError, match="own"), Uploads(grace_seconds=0.1) as uploads:  # noqa: PT012
        uploads.submit(lambda: gate.wait(30))
        raise KeyError("own")
    assert time.monotonic() - began < 10
    gate.set()
    with pytest.raises(KeyError, match="own"), Uploads() as uploads:  # noqa: PT012
        uploads.submit(raising(ValueError("job")))
        raise KeyError("own")


def test_a_block_that_fails_still_waits_for_a_quick_task():
    done = []
    with pytest.raises(KeyError), Uploads() as uploads:  # noqa: PT012
        uploads.submit(lambda: (time.sleep(0.1), done.append(1)))
        raise KeyError
    assert done == [1]


def test_a_snapshot_shares_no_memory_and_does_not_move():
    weight = torch.nn.Parameter(torch.arange(24.0).reshape(1, 2, 3, 4))
    last = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    live = {"model": {"w": weight, "c": last, "row": weight[0, 0, 0]}, "ema": {"w": weight.detach()}}
    copy = snapshot(live)
    before = {group: {name: tensor.detach().clone() for name, tensor in part.items()} for group, part in live.items()}
    with torch.no_grad():
        weight.add_(1.0)
        last.add_(1.0)
    for group, part in before.items():
        for name, tensor in part.items():
            found = copy[group][name]
            assert torch.equal(found, tensor)
            assert found.is_contiguous()
            assert not found.requires_grad
            assert found.device.type == "cpu"
    pointers = [tensor.untyped_storage().data_ptr() for part in copy.values() for tensor in part.values()]
    assert len(set(pointers)) == len(pointers)
