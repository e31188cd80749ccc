"""What Ray says when it does not start becomes one line with what to do."""

import pytest
import ray

from pipeline.cluster import cluster
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
