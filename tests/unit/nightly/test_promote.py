"""promote, rollback and models on the command line; a resumed job keeps the version that its alias named first."""

import json
from pathlib import Path

import pytest
import yaml
from tiny_model import write_model

from jobs.__main__ import main
from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError
from pipeline.generation.commit import create_plan
from pipeline.generation.driver import generate
from pipeline.generation.make_plan import plan_folder
from pipeline.model_store.export import export
from pipeline.model_store.load_model import find_model
from pipeline.nightly.promote import promote, rollback
from pipeline.storage.store import resolve
from tiny import config, settings

pytestmark = pytest.mark.unit


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A registry with two versions; the first is champion."""
    registry = str(tmp_path / "models" / "digits")
    for step in (1, 2):
        write_model(str(tmp_path / f"run-{step}"), config(), step=step)
    promote(config(), f"{registry}@{tmp_path}/run-1", export, "the first", None)
    return registry


def called(capsys, tmp_path, *words: str) -> tuple[int, dict, str]:
    """Exit code, the JSON object, stderr."""
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings()))
    code = main([*words, "--config", str(file), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if code == 0 else {}, err


def test_promote_roll_back_look(capsys, tmp_path, place):
    code, result, _ = called(capsys, tmp_path, "promote", "--model", f"{place}@{tmp_path}/run-2", "--reason", "crisp")
    assert (code, result["champion"], result["uri"]) == (0, 2, f"{place}/v000002")
    again = called(capsys, tmp_path, "promote", "--model", f"{place}@2", "--reason", "crisp")[1]
    assert (again["state"], again["record"]) == ("already done", 2)
    code, result, _ = called(capsys, tmp_path, "rollback", "--registry", place, "--reason", "too crisp")
    assert (code, result["champion"]) == (0, 1)
    code, result, err = called(capsys, tmp_path, "rollback", "--registry", place, "--reason", "again")
    assert (code, "nothing to go back to" in err) == (3, True)
    assert main(["models", place]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [" ".join(line.split()) for line in lines[:3]] == [f"{place}: 2 versions", "v000001 champion", "v000002"]
    assert [line.split()[2:5] for line in lines[3:]] == [
        ["promote", "v000001", "the"],
        ["promote", "v000002", "crisp"],
        ["rollback", "v000001", "too"],
    ]


def test_who_decides_must_be_said(place):
    with pytest.raises(ConfigError, match="either --reason"):
        promote(config(), f"{place}@1", export, None, None)
    with pytest.raises(ConfigError, match="write REGISTRY@challenger"):
        promote(config(), place, export, "why", None)
    with pytest.raises(DataError, match="no challenger"):
        promote(config(), f"{place}@challenger", export, "why", None)


def test_an_alias_means_what_it_meant_when_the_job_was_planned(tmp_path, place):
    job = resolve(str(tmp_path / "samples"), StorageConfig())
    alias = f"{place}@champion"
    first = find_model(alias, "ema", StorageConfig())
    assert first.uri == f"{place}/v000001"
    plan = create_plan(job, plan_folder(config().generate, job, first, None).plan)
    assert (plan.model_uri, plan.model_digest) == (first.uri, first.digest)
    promote(config(), f"{place}@{tmp_path}/run-2", export, "newer", None)
    assert find_model(alias, "ema", StorageConfig()).uri == f"{place}/v000002"
    assert f"from {first.uri} with" in generate(config(), alias, job.uri, dry_run=True)["summary"]
    fresh = generate(config(), alias, str(tmp_path / "other"), dry_run=True)
    assert f"from {place}/v000002 with" in fresh["summary"]
    with pytest.raises(ConfigError):
        generate(config(), f"{place}/v000002", job.uri, dry_run=True)
    rollback(config(), place, None, "older")
    assert find_model(alias, "ema", StorageConfig()).uri == first.uri
