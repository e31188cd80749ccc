"""Hooks: which event runs which hook, the event's content, and failures that neither raise nor reveal a URL."""

import http.server
import json
import sys
import threading

import pytest
from pydantic import ValidationError

from pipeline.config.nightly import NightlyConfig
from pipeline.nightly.notify import prometheus_text, run_hooks

pytestmark = pytest.mark.unit

EVENT = {
    "event": "hold",
    "name": 'di"gits',
    "date": "2026-11-24",
    "state": "held",
    "reason": "worse",
    "at": "2026-11-24T03:10:00+00:00",
    "seconds": 600.0,
    "attempts": 2,
    "champion": 4,
    "version": 5,
    "metrics": {"KD-class-cnn": 0.25},
    "report": "r",
    "warnings": [],
}


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def receiver(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    server.bodies, server.status = [], 200
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("NIGHT_HOOK", f"http://127.0.0.1:{server.server_port}/T0KEN")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def told(caplog):
    def run(event=EVENT, **hooks) -> list[str]:
        run_hooks(NightlyConfig.model_validate(hooks), event)
        return [record.getMessage() for record in caplog.records if record.name == "ddpm.nightly"]

    return run


def test_a_webhook_gets_the_event(receiver, told):
    assert told(on_hold=[{"webhook_env": "NIGHT_HOOK"}]) == []
    assert receiver.bodies == [EVENT]


def test_only_hooks_of_the_event_are_run(receiver, told):
    hook = [{"webhook_env": "NIGHT_HOOK"}]
    assert told(on_success=hook, on_failure=hook, on_skipped=hook) == []
    assert receiver.bodies == []


def test_a_command_gets_the_event_on_stdin(tmp_path, told):
    script = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.stdin.read())"
    assert told(on_hold=[{"command": [sys.executable, "-c", script, str(tmp_path / "out")]}]) == []
    assert json.loads((tmp_path / "out").read_text()) == EVENT


def test_a_textfile_is_prometheus_text(tmp_path, told):
    assert told(on_hold=[{"textfile": str(tmp_path / "night.prom")}]) == []
    lines = (tmp_path / "night.prom").read_text().splitlines()
    assert [p.name for p in tmp_path.iterdir()] == ["night.prom"]
    assert 'ddpm_nightly_state{name="di\\"gits",state="hold"} 1' in lines
    assert 'ddpm_nightly_state{name="di\\"gits",state="success"} 0' in lines
    assert 'ddpm_nightly_ended_timestamp_seconds{name="di\\"gits"} 1795489800' in lines
    assert 'ddpm_nightly_champion_version{name="di\\"gits"} 4' in lines
    assert 'ddpm_nightly_score{name="di\\"gits",metric="KD-class-cnn"} 0.25' in lines
    assert prometheus_text(EVENT).endswith("\n")


def test_a_broken_hook_is_a_warning_without_its_url_and_the_next_one_runs(receiver, tmp_path, monkeypatch, told):
    receiver.status = 500
    after = {"textfile": str(tmp_path / "night.prom")}
    lines = told(on_hold=[{"webhook_env": "NIGHT_HOOK"}, {"command": ["/no/such/program"]}, after])
    assert len(lines) == 2
    assert "hook NIGHT_HOOK of on_hold failed: HTTPError" in lines[0]
    assert "/no/such/program" in lines[1]
    assert (tmp_path / "night.prom").exists()
    monkeypatch.setenv("NIGHT_HOOK", "ftp://host/T0KEN")
    lines += told(on_hold=[{"webhook_env": "NIGHT_HOOK"}, {"webhook_env": "UNSET_HOOK"}])
    assert "T0KEN" not in str(lines)
    assert "hook UNSET_HOOK of on_hold failed: KeyError" in lines[-1]


@pytest.mark.parametrize(
    "hook",
    [{}, {"webhook_env": "A", "textfile": "b"}, {"webhook_env": "https://hooks.example/secret"}, {"command": []}],
)
def test_a_hook_is_one_thing_and_no_url_is_a_setting(hook):
    with pytest.raises(ValidationError):
        NightlyConfig.model_validate({"on_hold": [hook]})
