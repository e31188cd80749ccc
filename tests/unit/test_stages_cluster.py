"""Starting or joining Ray, without Ray."""

import pytest
import ray

from pipeline.config import RayConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.stages.cluster import cluster

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (Exception("The current node timed out during startup. This"), PipelineError, "too busy"),
        (ConnectionError("nobody there\nmore"), ConfigError, "'local': nobody there .--address local"),
        (RuntimeError("timed out during startup, but not Ray's own word"), RuntimeError, "not Ray's own word"),
        (Exception("something else"), Exception, "something else"),
    ],
)
def test_ray_that_does_not_come_is_one_line(monkeypatch, raised, expected, message):
    def init(**_):
        raise raised

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(expected, match=message) as caught, cluster(RayConfig(), 2):
        pass
    assert type(caught.value) is expected
