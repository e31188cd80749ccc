"""Diagnosis of planted facts: level and remedy."""

import pytest

from pipeline.operations.diagnosis import Finding, Node, clock, dashboard, devices, latency, package, versions
from pipeline.operations.submission import MIB

pytestmark = pytest.mark.unit

SOUND = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "ddpm-pipeline": "0.1.0"}
GPU = Node("10.0.0.2", SOUND, gpus=1, cuda="12.8", driver="570.1", devices=("A10G",))


def says(finding, level, *parts):
    assert finding.level == level, finding
    assert all(part in str(finding) for part in parts), finding


def test_a_finding_is_one_line():
    assert str(Finding("warn", "clock", "late")) == "warn  clock: late"


@pytest.mark.parametrize("package_name", SOUND)
def test_one_other_version_on_one_node_is_named_with_both_sides(package_name):
    odd = Node("10.0.0.3", {**SOUND, package_name: "9.9"})
    found = versions([Node("here", SOUND), Node("10.0.0.2", SOUND), odd])
    says(found, "fail", f"{package_name} is 9.9 on 10.0.0.3", f"{SOUND[package_name]} on here", "constraints.txt")


def test_equal_versions_and_a_node_that_cannot_be_asked():
    says(versions([Node("here", SOUND), Node("10.0.0.2", SOUND)]), "ok", "ray 2.60.0", "here and on 1 node")
    lost = Node("10.0.0.4", {}, error="ModuleNotFoundError: No module named 'pipeline'")
    says(versions([Node("here", SOUND), lost]), "fail", "10.0.0.4", "No module named 'pipeline'", "same image")


def test_devices():
    says(devices([GPU], True, True), "ok", "A10G (driver 570.1)")
    says(devices([GPU._replace(cuda=None)], True, True), "fail", "CPU build", "install the CUDA build")
    says(devices([GPU._replace(driver=None)], True, True), "fail", "no NVIDIA driver")
    says(devices([GPU._replace(devices=())], True, True), "fail", "driver 570.1 does not run CUDA 12.8", "update")
    cpu = Node("here", SOUND)
    says(devices([cpu], False, False), "ok", "CPU")
    says(devices([cpu], True, False), "fail", "ray.use_gpu is true")
    says(devices([cpu], True, True), "warn", "no node has a GPU now")


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.2", "head.example.com", "[fd00::1]"])
def test_a_dashboard_that_others_reach_must_ask_for_the_token(host):
    says(dashboard(f"{host}:8265", 200), "fail", "any client", "RAY_AUTH_MODE=token")
    says(dashboard(f"{host}:8265", 401), "ok", "refuses calls without a token")
    says(dashboard(f"{host}:8265", None), "warn", "does not answer")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_loopback_dashboard_without_a_token_is_a_warning(host):
    says(dashboard(f"{host}:8265", 200), "warn", "RAY_AUTH_MODE=token")
    says(dashboard(f"{host}:8265", 403), "ok")


def test_no_dashboard_is_fine():
    says(dashboard(None, None), "ok", "none")


@pytest.mark.parametrize(
    ("offset", "level", "side"),
    [(0, "ok", ""), (-4, "ok", ""), (30, "warn", "30 s behind"), (-30, "warn", "30 s ahead of"), (900, "fail", "NTP")],
)
def test_clock(offset, level, side):
    says(clock(offset), level, side)


def test_latency():
    says(latency(0.02), "ok", "20 ms")
    says(latency(0.8), "warn", "800 ms", "region")


def test_package():
    says(package("/w", {"a": 3 * MIB}, 512 * MIB), "ok", "3.0 MiB")
    says(package("/w", {"a": 3 * MIB, "data": 90 * MIB}, 512 * MIB), "warn", "data 90.0 MiB, a 3.0 MiB", ".rayignore")
    says(package("/w", {"data": 512 * MIB}, 512 * MIB), "fail", "data 512.0 MiB")
