"""Joining and starting Ray: which cluster, in which folders, and one line when it does not start."""

import signal
import tempfile

import pytest
import ray

from jobs.__main__ import heed_hangup
from pipeline.cluster import LONGEST_TEMP_DIR_BYTES, _children_ignore_hangup, _ray_temp_dir, cluster, metric_tag
from pipeline.config.cluster import RayConfig
from pipeline.errors import ConfigError, PipelineError
from tiny import config

pytestmark = pytest.mark.unit

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (Exception(SLOW), PipelineError, "did not start within Ray.s 30 seconds"),
        (ConnectionError("Could not find any\nrunning Ray"), ConfigError, "no Ray cluster at 'local': Could not find"),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
    ],
)
def test_a_start_that_fails(monkeypatch, error, kind, line):
    def init(**_):
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_num_workers_soft_limit", "4")  # `cluster` sets what is not set
    monkeypatch.setenv("RAY_worker_maximum_startup_concurrency", "4")
    with pytest.raises(kind, match=line) as caught, cluster(config().ray, 2):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        (None, "local"),
        ("", "local"),
        ("10.0.0.1:6379", "10.0.0.1:6379"),
        ("auto", "auto"),
        ("ray://head:10001", "ray://head:10001"),
        ("http://127.0.0.1:8265", "local"),  # a dashboard, for `ray job`
    ],
)
def test_a_command_joins_the_cluster_of_its_ray_job_and_no_other(monkeypatch, variable, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert RayConfig().address == address
    assert RayConfig(address="local").address == "local"


def test_metric_tags_are_ascii_and_plain_ones_stay():
    assert metric_tag("s3://bucket/runs/a b-1_%20") == "s3://bucket/runs/a b-1_%20"
    assert metric_tag("/home/läufe/\n") == "/home/l%C3%A4ufe/%0A"
    assert metric_tag("/\udcff").isascii()  # a name that is no UTF-8


def test_a_long_temporary_folder_is_replaced_or_refused(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/" + "t" * (LONGEST_TEMP_DIR_BYTES - 1))
    assert _ray_temp_dir() is None
    monkeypatch.setenv("RAY_TMPDIR", "/" + "ü" * (LONGEST_TEMP_DIR_BYTES // 2))
    assert _ray_temp_dir() == "/tmp/ray"
    monkeypatch.setattr("pipeline.cluster.SHORT_TEMP_DIR", "/nowhere")
    with pytest.raises(ConfigError, match="set RAY_TMPDIR to a folder of at most 38 bytes"):
        _ray_temp_dir()


def test_a_closed_terminal_is_a_sigterm_for_the_driver_and_nothing_for_its_children(monkeypatch):
    heard = []
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
        heed_hangup()
        signal.raise_signal(signal.SIGHUP)
        assert heard == [signal.SIGTERM]
        handler = signal.getsignal(signal.SIGHUP)
        with _children_ignore_hangup():  # a process that is started inherits what is ignored
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is handler
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        heed_hangup()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def test_a_cluster_that_is_joined_needs_no_temporary_folder_here(monkeypatch):
    asked = {}

    def init(**options):
        asked.update(options)
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_TMPDIR", "/" + "t" * LONGEST_TEMP_DIR_BYTES)
    monkeypatch.setattr("pipeline.cluster.SHORT_TEMP_DIR", "/nowhere")
    with (
        pytest.raises(ConfigError, match=r"no Ray cluster at '10\.0\.0\.1:6379'"),
        cluster(RayConfig(address="10.0.0.1:6379"), 2),
    ):
        pass
    assert asked.keys() == {"address", "log_to_driver", "logging_level"}
