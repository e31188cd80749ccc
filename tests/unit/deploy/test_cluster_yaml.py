"""cluster.yaml: accepted by Ray's validator and by the EC2 API model, with our security and spot rules."""

import re
from pathlib import Path

import botocore.session
import pytest
import ray
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

pytestmark = [pytest.mark.unit, pytest.mark.slow]

FILE = Path(__file__).parents[3] / "cluster.yaml"


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


def run_instances_errors(node):
    """Validation errors of RunInstances for this node, by botocore's model of the EC2 API."""
    model = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances")
    request = {"MinCount": 1, "MaxCount": 1, "ImageId": "ami-0", **node}
    return ParamValidator().validate(request, model.input_shape).generate_report()


def choices(shape):
    return botocore.session.get_session().get_service_model("ec2").shape_for(shape).enum


def test_ec2_knows_every_field_and_instance_type_of_every_node(cluster):
    types = choices("InstanceType")
    for name, node in cluster["available_node_types"].items():
        assert run_instances_errors(node["node_config"]) == "", name
        assert node["node_config"]["InstanceType"] in types
        market = node["node_config"].get("InstanceMarketOptions", {"MarketType": "spot"})
        assert market["MarketType"] in choices("MarketType")
        for disk in node["node_config"]["BlockDeviceMappings"]:
            assert disk["Ebs"]["VolumeType"] in choices("VolumeType")
            assert disk["Ebs"]["Encrypted"] is True
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


@pytest.mark.parametrize(
    "damage",
    [{"InstanceMarketOption": {}}, {"InstanceMarketOptions": {"Market": "spot"}}, {"IamInstanceProfile": "arn"}],
)
def test_a_field_that_ec2_does_not_know_is_found(cluster, damage):
    node = {**cluster["available_node_types"]["train"]["node_config"], **damage}
    assert run_instances_errors(node) != ""


def test_one_on_demand_type_trains_and_spot_comes_from_several_types_and_zones(cluster):
    types = cluster["available_node_types"]
    on_demand = {n for n, t in types.items() if "InstanceMarketOptions" not in t["node_config"]}
    assert on_demand == {"head", "train"}
    assert len(types) - len(on_demand) >= 3
    zones = cluster["provider"]["availability_zone"].split(",")
    assert len(set(zones)) == len(zones) >= 2
    assert all(zone.startswith(cluster["provider"]["region"]) for zone in zones)
    assert all(t["min_workers"] == 0 for t in types.values())
    assert 5 <= cluster["idle_timeout_minutes"] <= 10


def test_no_key_is_in_the_file_and_the_token_goes_by_a_mounted_file(cluster):
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--env=RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert not re.search(r"AKIA|SECRET|RAY_AUTH_TOKEN=", FILE.read_text())
