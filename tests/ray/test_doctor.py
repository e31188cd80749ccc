"""The doctor asks every node of a real cluster."""

import pytest
import ray

from pipeline.config.cluster import RayConfig
from pipeline.config.root import Config
from pipeline.operations import cluster_info, doctor

pytestmark = pytest.mark.ray


def test_every_node_answers_with_the_versions_of_this_process(ray_cluster):
    here, *nodes = cluster_info.every_node()
    assert len(nodes) == len(ray.nodes()) == 1
    assert nodes[0].versions == here.versions
    assert nodes[0].error is None


def test_a_cluster_without_dashboard_is_three_lines_of_ok(ray_cluster):
    findings = doctor.check_cluster(Config(ray=RayConfig(address="auto")))
    assert [(finding.level, finding.subject) for finding in findings] == [
        ("ok", "versions"),
        ("ok", "device"),
        ("ok", "dashboard"),
    ]


def test_a_node_whose_environment_is_broken_is_named(ray_cluster, monkeypatch):
    def broken(name, gpus=0):
        if name != "this process":
            raise ModuleNotFoundError("No module named 'pipeline'")
        return cluster_info.Node(name, {})

    monkeypatch.setattr(cluster_info, "this_node", broken)
    found = doctor.diagnosis.versions(cluster_info.every_node())
    assert found.level == "fail"
    assert "No module named 'pipeline'" in found.text
