"""The MLflow mirror: each version once, aliases and reasons of the newest record."""

from datetime import UTC, datetime

import pytest
from light_nights import Simulation

from pipeline.config.base import FileEntry
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.model_store import mlflow_registry
from pipeline.model_store.mlflow_registry import TAG, mirror_to_mlflow
from pipeline.model_store.registry import ChangeRequest, Registry, Version
from pipeline.nightly.promote import models, rollback
from pipeline.storage.store import resolve

pytestmark = pytest.mark.unit

AT = datetime(2026, 11, 24, 3, tzinfo=UTC)


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    return MlflowClient()


@pytest.fixture
def registry(tmp_path):
    """Three versions; number 2 was claimed and never finished. 1 is champion."""
    registry = Registry(resolve(str(tmp_path / "models/digits"), StorageConfig()))
    file = FileEntry(key="unet/x", bytes=1, sha256="a" * 64)
    for number in (1, 3, 4):
        facts = {"night": f"2026-11-{number:02d}", "parent": None}
        registry.commit(
            Version(number=number, source="s", model_digest=f"d{number}", sha256="b" * 64, files=(file,), facts=facts)
        )
    registry.challenge(1, ChangeRequest("night", "n1", AT, {}))
    registry.promote(1, ChangeRequest("the first", "n1", AT, {"KD": 0.5}), None)
    return registry


def shown(client):
    """{registry number: source}, and {alias: registry number}."""
    versions = {int(v.version): v for v in client.search_model_versions("name='digits'")}
    ours = {number: int(v.tags[TAG]) for number, v in versions.items()}
    aliases = {alias: ours[int(n)] for alias, n in client.get_registered_model("digits").aliases.items()}
    return {ours[number]: v for number, v in versions.items()}, aliases


def test_versions_aliases_and_reasons_are_shown_and_a_repetition_changes_nothing(client, registry):
    assert mirror_to_mlflow(registry, "digits") > 0
    versions, aliases = shown(client)
    assert {number: v.source for number, v in versions.items()} == {n: registry.folder(n).uri for n in (1, 3, 4)}
    assert aliases == {"champion": 1}
    assert versions[1].tags["ddpm.reason"] == "the first"
    assert versions[1].tags["ddpm.metrics"] == '{"KD": 0.5}'
    assert (versions[3].tags["ddpm.night"], versions[3].tags["ddpm.model_digest"]) == ("2026-11-03", "d3")
    assert "ddpm.parent" not in versions[3].tags
    assert mirror_to_mlflow(registry, "digits") == 0


def test_a_challenge_a_promotion_and_a_rollback_are_mirrored(client, registry):
    mirror_to_mlflow(registry, "digits")
    registry.challenge(4, ChangeRequest("night", "n4", AT, {}))
    assert mirror_to_mlflow(registry, "digits") == 1
    assert shown(client)[1] == {"champion": 1, "challenger": 4}
    registry.promote(4, ChangeRequest("better", "n4", AT, {}), 1)
    mirror_to_mlflow(registry, "digits")
    assert shown(client)[1] == {"champion": 4}, "the challenger that won is none any more"
    config = Config.model_validate({"registry": {"mlflow": "digits"}})
    done = rollback(config, registry.store.uri, None, "nines only", lambda: AT)
    assert "warning" not in done["summary"]
    versions, aliases = shown(client)
    assert (aliases, versions[1].tags["ddpm.reason"]) == ({"champion": 1}, "nines only")


def test_more_versions_than_one_page_are_found_again(client, registry, monkeypatch):
    monkeypatch.setattr(mlflow_registry, "PAGE", 2)
    mirror_to_mlflow(registry, "digits")
    assert mirror_to_mlflow(registry, "digits") == 0
    assert len(shown(client)[0]) == 3


def test_an_unreachable_server_is_a_warning_and_ddpm_models_mirrors_later(client, registry, monkeypatch):
    config = Config.model_validate({"registry": {"mlflow": "digits"}})
    registry.promote(3, ChangeRequest("better", "n3", AT, {}), 1)

    def away(self, *_, **__):
        from mlflow.exceptions import MlflowException

        raise MlflowException("503: come back later\nand more")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.tracking.MlflowClient.create_registered_model", away)
        with pytest.raises(PipelineError, match=r"503: come back later$"):
            mirror_to_mlflow(registry, "digits")
        done = rollback(config, registry.store.uri, None, "nines only", lambda: AT)
    assert (done["champion"], registry.head().champion) == (1, 1)
    assert done["summary"].endswith("503: come back later; ddpm models mirrors it again")
    models(config, registry.store.uri)
    assert shown(client)[1] == {"champion": 1}


def test_a_night_mirrors_its_champion_only_with_the_setting(client, tmp_path, monkeypatch):
    sim = Simulation(resolve(str(tmp_path / "root"), StorageConfig()))
    sim.sections = {"registry": {"mlflow": "digits"}}
    assert sim.at(1).run()["warnings"] == []
    assert shown(client)[1] == {"champion": 1}
    monkeypatch.setattr(mlflow_registry, "mirror_to_mlflow", lambda *_: (_ for _ in ()).throw(OSError("no route")))
    away = sim.at(2).run()
    assert (away["state"], sim.champion()) == ("promoted", 2)
    assert away["warnings"] == ["MLflow failed: OSError: no route; ddpm models mirrors it again"]
    sim.sections = {}
    assert sim.at(3).run()["warnings"] == []


def test_a_missing_mlflow_package_is_named(registry, monkeypatch):
    monkeypatch.setattr(mlflow_registry, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install"):
        mirror_to_mlflow(registry, "digits")
