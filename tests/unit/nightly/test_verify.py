"""ddpm verify of registries and ledgers: intact ones pass, and each kind of damage is reported with its location."""

import json
from datetime import UTC, date, datetime

import pytest
from light_nights import NAME, Killed, Simulation
from tiny_model import write_model

from jobs.__main__ import main
from pipeline.config.storage import StorageConfig
from pipeline.errors import DataError
from pipeline.model_store.export import export
from pipeline.model_store.register import register
from pipeline.model_store.registry import ChangeRequest, Registry
from pipeline.nightly.run_night import NightRun
from pipeline.operations.verify import check_artefact
from pipeline.storage.store import resolve
from tiny import config

pytestmark = pytest.mark.unit

AT = datetime(2026, 11, 24, 3, tzinfo=UTC)


def findings(store):
    return list(check_artefact(store.uri, StorageConfig(), lambda data: data).findings)


def edit(store, key, **changes):
    value = json.loads(store.read(key))
    store.put(key, json.dumps({**value, **changes}).encode())


# --- registries ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two versions; champions 1, 2, then 1 again by rollback; 2 is the challenger again."""
    root = tmp_path_factory.mktemp("whole")
    settings, registry = config(), Registry(resolve(str(root / "models/digits"), StorageConfig()))
    for number in (1, 2):
        write_model(str(root / f"run-{number}"), settings, number)
        register(settings, registry, export, str(root / f"run-{number}"), {"night": f"2026-11-{number:02d}"})
        registry.challenge(number, ChangeRequest("night", f"n{number}", AT, {}))
        registry.promote(number, ChangeRequest("better", f"n{number}", AT, {"KD": 0.5}), number - 1 or None)
    registry.rollback(None, ChangeRequest("nines only", "person", AT, {}))
    registry.challenge(2, ChangeRequest("look again", "n3", AT, {}))
    return {entry.key: registry.store.read(entry.key) for entry in registry.store.list()}


@pytest.fixture
def registry(whole, tmp_path):
    store = resolve(str(tmp_path / "models/digits"), StorageConfig())
    for key, data in whole.items():
        store.put(key, data)
    return store


def test_a_whole_registry_passes_and_is_counted(registry):
    report = check_artefact(registry.uri, StorageConfig(), lambda data: data)
    assert (report.kind, report.findings) == ("registry", ())
    counts = {name: report.counts[name] for name in ("versions", "claims", "records", "files")}
    assert counts == {"versions": 2, "claims": 2, "records": 6, "files": 8}


UNET = "v000002/unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda s: s.put(UNET, s.read(UNET)[:-1] + b"\0"), "is not what its manifest names"),
        (lambda s: s.delete(UNET), "is named by its manifest but missing"),
        (lambda s: s.put("v000002/notes.txt", b"x"), "holds notes.txt, which its manifest does not name"),
        (lambda s: edit(s, "v000002/manifest.json", number=3), "has the number 3"),
        (lambda s: edit(s, "v000002/manifest.json", source="elsewhere"), "its number was claimed by"),
        (lambda s: edit(s, "v000002/manifest.json", model_digest="0" * 64), "model_digest is not that of the files"),
        (lambda s: edit(s, "v000002/manifest.json", sha256="0" * 64), "differ from the sha256 in the manifest"),
        (lambda s: s.put("v000002/manifest.json", b"{"), "v000002/manifest.json"),
        (lambda s: s.delete("claims/000001.json"), "has no number 1"),
        (lambda s: s.put("claims/000001.json", s.read("claims/000002.json")), "one source has claimed two numbers"),
        (lambda s: s.delete("v000002/manifest.json"), "makes v000002 challenger, but that version"),
        (lambda s: s.delete("promotions/00000003.json"), "has no number 3"),
        (lambda s: s.put("promotions/00000006.json", b"{"), "promotions/00000006.json"),
        (lambda s: edit(s, "promotions/00000006.json", champion=2), "is a challenge, but changes the champion"),
        (lambda s: edit(s, "promotions/00000004.json", challenger=2), "is a promote, but changes the challenger"),
        (
            lambda s: edit(s, "promotions/00000004.json", champion=7),
            "makes v000007 champion, but that version",
        ),
        (lambda s: edit(s, "promotions/00000004.json", request="n1"), "repeats promote of request n1"),
        (lambda s: edit(s, "promotions/00000005.json", champion=2), "goes back to 2, which was never champion before"),
        (lambda s: edit(s, "promotions/00000002.json", champion=None), "is a promote without a champion"),
        (lambda s: edit(s, "promotions/00000004.json", number=9), "record 4 has the number 9"),
    ],
)
def test_a_registry_that_contradicts_itself(registry, damage, what):
    damage(registry)
    found = findings(registry)
    assert any(what in line for line in found), found


def test_a_number_whose_version_never_came_is_no_contradiction(registry):
    Registry(registry).claim("a run that was killed before its export")
    assert findings(registry) == []


# --- nights ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def sim(tmp_path):
    """Six nights: promoted, held, missed, skipped, promoted, running."""
    sim = Simulation(resolve(str(tmp_path / "root"), StorageConfig()))
    sim.source.quality = {"2026-11-01": 0.5, "2026-11-02": 0.9, "2026-11-05": 0.4}
    sim.source.data = {"2026-11-02": "same", "2026-11-04": "same"}
    for day in (1, 2, 4, 5):
        sim.at(day).run()
    sim.stages.after = lambda stage, night: (_ for _ in ()).throw(Killed) if stage == "samples" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NightRun, "fail", lambda *_: None)
        with pytest.raises(Killed):
            sim.at(6).run()
    for day in (1, 2, 5):
        sim.root.put(f"nightly/{NAME}/2026-11-{day:02d}/report.html", b"<!doctype html>")
    return sim


def nights(sim):
    return sim.root.child("nightly", NAME)


def test_whole_nights_pass_and_are_counted(sim):
    report = check_artefact(nights(sim).uri, StorageConfig(), lambda data: data)
    assert (report.kind, report.findings) == ("nights", ())
    states = {"promoted": 2, "held": 1, "missed": 1, "skipped": 1, "running": 1}
    assert report.counts == {"nights": 6, **states}
    one = check_artefact(nights(sim).location("2026-11-05"), StorageConfig(), lambda data: data)
    assert (one.kind, one.counts, one.findings) == ("nights", {"nights": 1, "promoted": 1}, ())


def state(day):
    return f"2026-11-{day:02d}/state.json"


def change_done(store, day, **stages):
    done = {**json.loads(store.read(state(day)))["done"], **stages}
    edit(store, state(day), done={stage: result for stage, result in done.items() if result is not None})


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda s: edit(s, state(5), date="2026-11-07"), "is the ledger of night 2026-11-07"),
        (lambda s: change_done(s, 5, export=None), "a stage is missing before another"),
        (lambda s: edit(s, state(6), state="promoted"), "is promoted, but its last stage is export"),
        (lambda s: edit(s, state(5), state="running"), "is running, but its last stage is retention"),
        (lambda s: edit(s, state(5), state="skipped"), "is skipped after"),
        (lambda s: edit(s, state(5), state="held"), "is held, but its stage promote is not"),
        (lambda s: edit(s, state(5), ended=""), "is promoted, but has no end time"),
        (lambda s: change_done(s, 5, gate={"decision": "hold", "reason": ""}), "is promoted against its gate"),
        (lambda s: change_done(s, 5, export={"version": 9}), "exported version 9, which does not exist"),
        (lambda s: change_done(s, 5, export={"version": 1}), "exported version 1, but no record names it challenger"),
        (lambda s: edit(s, state(5), state="missed"), "is its promotion"),
        (lambda s: s.delete("2026-11-05/report.html"), "report.html is missing"),
        (lambda s: s.put(state(5), b"{"), "2026-11-05/state.json"),
        (lambda s: s.delete(state(5)), "record 5 is of nightly/light/2026-11-05"),
        (lambda s: change_done(s, 2, export={"version": 1}), "version 1 is of"),
    ],
)
def test_ledgers_that_contradict_themselves_or_the_registry(sim, damage, what):
    damage(nights(sim))
    found = findings(nights(sim))
    assert any(what in line for line in found), found


def test_a_promotion_that_is_not_recorded(sim):
    change_done(nights(sim), 5, promote={"state": "promoted", "reason": "", "champion": 3, "record": 99})
    assert ["99" in line for line in findings(nights(sim))] == [True]


def test_a_folder_of_that_name_without_a_ledger_is_nothing(tmp_path):
    for name in ("nightly/light", "nightly/light/2026-11-01"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        with pytest.raises(DataError, match="nothing to verify"):
            check_artefact(str(tmp_path / name), StorageConfig(), lambda data: data)


def test_from_the_command_line(sim, capsys):
    assert main(["verify", nights(sim).uri]) == 0
    assert "verified: nights" in capsys.readouterr().out
    edit(nights(sim), state(5), state="held")
    assert main(["verify", nights(sim).uri]) == 6
    assert date(2026, 11, 5).isoformat() in capsys.readouterr().err
