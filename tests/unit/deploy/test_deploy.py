"""Deployment files: valid KubeRay fields, metrics that the code exports, one image everywhere."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from manifests_schema import SCHEMAS

from pipeline import __version__
from pipeline.nightly.notify import prometheus_text
from pipeline.training.distributed.coordinator import StepStatus

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
CLUSTER, JOB = ROOT / "deploy/kuberay/raycluster.yaml", ROOT / "deploy/kuberay/rayjob.yaml"
DASHBOARD, ALERTS = ROOT / "deploy/grafana/dashboard.json", ROOT / "deploy/grafana/alerts.yaml"


METRIC = r"\b(?:ray_)?ddpm_\w+"


def load(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", [CLUSTER, JOB], ids=lambda path: path.name)
def test_manifests_hold_known_fields_only(path):
    manifest = load(path)
    jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])


@pytest.mark.parametrize(
    "damage",
    [
        lambda spec: spec.update(authOption={"mode": "token"}),
        lambda spec: spec["headGroupSpec"]["template"]["spec"].update(serviceaccountname="ddpm"),
        lambda spec: spec["workerGroupSpecs"][0].update(maxReplica=3),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0].update(image="ddpm:latest"),
    ],
)
def test_a_misspelt_field_a_number_for_a_text_and_a_moving_tag_are_refused(damage):
    manifest = load(CLUSTER)
    damage(manifest["spec"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMAS["RayCluster"])


def test_the_job_s_cluster_is_the_standing_one():
    assert load(JOB)["spec"]["rayClusterSpec"] == load(CLUSTER)["spec"]


def test_the_cluster_keeps_to_the_rules_of_the_house():
    spec = load(CLUSTER)["spec"]
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}, (
        "the dashboard must be open to the submitter, so it needs the token"
    )
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 600
    templates = [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    assert {t["containers"][0]["image"].partition(":")[2] for t in templates} == {f"{__version__}-ray{ray.__version__}"}
    assert all(t["serviceAccountName"] == "ddpm" for t in templates), "the bucket is reached by role"
    environment = {item["name"] for t in templates for item in t["containers"][0]["env"]}
    assert environment == {"DDPM__RAY__ADDRESS"}, "no key or token is written into a manifest"
    spot = [g for g in spec["workerGroupSpecs"] if "nodeSelector" in g["template"]["spec"]]
    assert [g["groupName"] for g in spot] == ["generate"]
    assert all(g["minReplicas"] == 0 for g in spec["workerGroupSpecs"])


def test_a_night_in_kubernetes_ends_by_itself():
    spec = load(JOB)["spec"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["activeDeadlineSeconds"] < 24 * 3600
    assert spec["entrypoint"].startswith("ddpm nightly --date ")


def test_the_image_is_the_ray_that_we_test_with_and_installs_by_our_constraints():
    text = (ROOT / "Dockerfile").read_text()
    (image,) = re.findall(r"^ARG RAY_IMAGE=(\S+)$", text, re.MULTILINE)
    assert image == load(ROOT / "cluster.yaml")["docker"]["image"] == f"rayproject/ray:{ray.__version__}-py311-gpu"
    assert "--constraint /home/ray/ddpm/constraints.txt" in text
    for line in re.findall(r"^COPY --chown=ray:users (.+) \S+$", text, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()


def exported():
    """Our metrics by Prometheus name, with kind and labels, collected from the code that creates them."""
    source = "\n".join(path.read_text() for path in (ROOT / "pipeline").rglob("*.py"))
    made = re.findall(r"(Gauge|Counter|Histogram)\(\s*f?\"(ddpm_[^\"]+)\"", source)
    names = {}
    for kind, name in made:
        for field in StepStatus._fields if "{name}" in name else ("",):
            names["ray_" + name.replace("{name}", field)] = kind
    return names | dict.fromkeys(told(), "Gauge")


def told():
    """Labels of the textfile hook's metrics by name, parsed from its output."""
    facts = {"name": "digits", "event": "hold", "at": "2026-11-24T03:00:00+00:00", "champion": 1, "attempts": 1}
    text = prometheus_text({**facts, "seconds": 5.0, "metrics": {"KD": 0.5}})
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    names = [re.match(r"(\w+)\{(.*)\} [-+.e0-9]+$", line).groups() for line in lines]
    return {name: {pair.partition("=")[0] for pair in labels.split(",")} for name, labels in names}


def expressions():
    panels = [target["expr"] for panel in load(DASHBOARD)["panels"] for target in panel["targets"]]
    variables = [v["query"] for v in load(DASHBOARD)["templating"]["list"] if v["type"] == "query"]
    alerts = [rule["expr"] for group in load(ALERTS)["groups"] for rule in group["rules"]]
    return [*panels, *variables, *alerts]


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_that_is_shown_exists_with_its_label(expression):
    known = exported()
    used = re.findall(METRIC, expression)
    assert used
    assert set(used) <= set(known)
    for call, name in re.findall(r"\b(rate|increase|changes)\((ray_ddpm_\w+)", expression):
        assert (known[name] == "Counter") == (call != "changes"), f"{call} of a {known[name]}"
    for name, selector in re.findall(rf"({METRIC})\{{([^}}]*)\}}", expression):
        label = "run" if name.startswith("ray_ddpm_train_") else "exported_job"
        assert set(re.findall(r"(\w+)=", selector)) <= told().get(name, {label})


def test_every_metric_that_exists_is_shown():
    shown = set(re.findall(METRIC, " ".join(expressions())))
    assert shown == set(exported())


def test_the_dashboard_is_one_that_grafana_can_import():
    board = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places)
    assert {v["name"] for v in board["templating"]["list"]} == {"datasource", "run", "job", "name"}
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in board["panels"])


RULE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["alert", "expr", "for", "labels", "annotations"],
    "properties": {
        "alert": {"type": "string", "pattern": "^Ddpm[A-Za-z]+$"},
        "expr": {"type": "string", "minLength": 1},
        "for": {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"},
        "labels": {"type": "object", "required": ["severity"], "additionalProperties": {"type": "string"}},
        "annotations": {
            "type": "object",
            "required": ["summary", "action"],
            "additionalProperties": {"type": "string", "minLength": 10},
        },
    },
}
"""A rule of Prometheus, and what every rule of ours must have."""
RULES = {
    "type": "object",
    "additionalProperties": False,
    "required": ["groups"],
    "properties": {
        "groups": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "rules"],
                "properties": {"name": {"type": "string"}, "rules": {"type": "array", "minItems": 1, "items": RULE}},
            },
        }
    },
}


def test_alerts_are_rules_that_prometheus_reads_and_say_what_to_do():
    rules = load(ALERTS)
    jsonschema.validate(rules, RULES)
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert {"DdpmNoGoodNight", "DdpmNoCommit"} <= {rule["alert"] for rule in alerts}
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    for rule in alerts:
        expr = re.sub(r'"[^"]*"', "", rule["expr"])
        assert all(expr.count(a) == expr.count(b) for a, b in ("()", "[]", "{}")), rule["alert"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (apt-get install prometheus) is not here")
def test_prometheus_itself_fires_them_when_it_should():
    done = subprocess.run(
        ["promtool", "test", "rules", str(Path(__file__).with_name("alerts_test.yaml"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
