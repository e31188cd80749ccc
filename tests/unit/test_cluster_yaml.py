"""cluster.yaml is what `ray up` accepts, and keeps to the rules that Ray's own validator does not know."""

from pathlib import Path

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

pytestmark = pytest.mark.unit

FILE = Path(__file__).parents[2] / "cluster.yaml"


@pytest.fixture
def cluster():
    return yaml.safe_load(FILE.read_text())


def test_ray_accepts_it(cluster):
    validate_config(prepare_config(cluster))


def test_ray_refuses_a_misspelt_key(cluster):
    cluster["max_wokers"] = 3
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(prepare_config(cluster))


def test_the_image_is_the_ray_that_we_test_with(cluster):
    assert cluster["docker"]["image"] == f"rayproject/ray:{ray.__version__}-py311-gpu"
    constraint = (FILE.parent / "constraints.txt").read_text()
    assert f"ray=={ray.__version__}\n" in constraint


def test_head_does_no_work_and_generation_is_spot(cluster):
    types = cluster["available_node_types"]
    assert types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    spot = [n for n, t in types.items() if t["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}]
    assert len(spot) >= 2
    assert len({types[name]["node_config"]["InstanceType"] for name in spot}) == len(spot)
    assert all("IamInstanceProfile" in t["node_config"] for t in types.values())


def test_dashboard_is_on_loopback_and_every_node_asks_for_the_token(cluster):
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
