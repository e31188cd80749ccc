"""`ddpm submit` against a real head with dashboard and token: one head, and a store whose credentials only it has."""

import fcntl
import json
import os
import platform
import pty
import select
import subprocess
import sys
import termios
import time
import urllib.request
from pathlib import Path

import pytest
from processes import wait_for
from token_head import TOKEN, TokenHead

import tiny
from jobs.__main__ import main
from pipeline.operations import submit as stage

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

OWN = {"AWS_ACCESS_KEY_ID": "AKIAOFTHEPERSON00000", "AWS_SECRET_ACCESS_KEY": "secret-of-the-person-who-submits"}


@pytest.fixture(scope="module")
def head(seaweed):
    with TokenHead(seaweed.environment) as head:
        yield head


@pytest.fixture
def submit(head, monkeypatch, tmp_path, capfd):
    """submit(*words) -> exit code, lines of stdout, lines of stderr; as a person with credentials of their own."""
    for name, value in {**OWN, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # what is written wins
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main(["submit", "--address", head.url, *words])
        out, err = capfd.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


def asked(head, path="/api/jobs/", body=None):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(head.url + path, data, headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return reply.read().decode()


def test_a_verb_runs_once_is_followed_and_then_already_done(submit, head):
    words = ("--date", "2026-01-01", "doctor")
    code, (line,), _ = submit("--detach", *words)
    assert code == 0
    job = line.removeprefix("submitted: ").partition(" ")[0]
    assert job.startswith("ddpm-doctor-")

    code, out, err = submit("--json", *words)
    assert code == 0
    assert err[0] == f"attached to {job} at {head.url}"
    assert any(said.startswith("ok    versions: python") for said in out)  # joined with the cluster's own token
    assert any("refuses calls without a token" in said for said in out)
    expected = {"submission_id": job, "address": head.url, "attached": True, "status": "SUCCEEDED", "exit_code": 0}
    assert json.loads(out[-1]) == expected

    code, (line,), _ = submit(*words)
    assert code == 0
    assert line.startswith(f"already done: {job}")
    assert [found["submission_id"] for found in json.loads(asked(head))].count(job) == 1


def test_a_verb_as_a_plain_ray_job_joins_the_cluster_that_runs_it(head, tmp_path):
    """`ray job submit -- python -m jobs ...`, without --address: Ray sets RAY_ADDRESS in every job."""
    words = f"ingest --source digits --dataset {tmp_path}/d --image-size 8 --channels 1"
    environment = {"env_vars": {"PYTHONPATH": str(tiny.ROOT)}}
    body = {"entrypoint": f"{sys.executable} -m jobs {words}", "runtime_env": environment}
    job = json.loads(asked(head, body=body))["submission_id"]
    wait_for(lambda: json.loads(asked(head, f"/api/jobs/{job}"))["status"] in ("SUCCEEDED", "FAILED"))
    log = json.loads(asked(head, f"/api/jobs/{job}/logs"))["logs"]
    assert json.loads(asked(head, f"/api/jobs/{job}"))["status"] == "SUCCEEDED", log
    assert "cluster: joined " in log
    assert "ingested: 1,576 training" in log


def test_the_exit_code_is_the_verb_s_and_the_credentials_are_the_cluster_s(submit, seaweed):
    code, out, err = submit("verify", f"{seaweed.uri}/nothing-here")
    assert code == 3  # the store answered: with this machine's credentials it would be 4, denied
    assert any(line.startswith("error: ") and "nothing-here" in line for line in out)
    assert err[-1].endswith("failed, exit code 3")


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"RAY_AUTH_TOKEN": "another-token-of-32-characters-0123"}, "refuses this token"),
        ({"RAY_AUTH_TOKEN": ""}, "RAY_AUTH_MODE is token, but no token exists"),
        ({"RAY_AUTH_TOKEN": "", "RAY_AUTH_MODE": ""}, "requires a token"),
        ({"RAY_AUTH_MODE": "disabled"}, "requires a token (RAY_AUTH_MODE is disabled here)"),
    ],
    ids=["wrong", "missing", "missing without a mode", "disabled"],
)
def test_a_wrong_or_missing_token_is_one_line(submit, head, monkeypatch, environment, text):
    before = asked(head)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, out, (line,) = submit("doctor")
    assert (code, out) == (2, [])
    assert line.startswith("error: ")
    assert text in line
    assert asked(head) == before


def test_a_token_in_a_file_is_found(submit, monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    monkeypatch.setattr(stage, "_check_versions", refuse)
    assert submit("--date", "2026-01-02", "doctor")[0] == 2  # past the token


def refuse(*_):
    raise stage.ConfigError("far enough")


def test_a_package_that_is_too_large_is_not_sent(submit, head, tmp_path):
    before = asked(head)
    with (tmp_path / "photos.bin").open("wb") as file:
        file.truncate(101 * 2**20)
    code, out, (line,) = submit("--submit.include", "photos.bin", "doctor")
    assert (code, out) == (2, [])
    assert line.startswith("error: the job's files are 10")
    assert "less than 100 (photos.bin 101.0 MiB" in line
    assert asked(head) == before


def test_another_python_is_refused(submit, monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.1")
    code, out, (line,) = submit("--date", "2026-01-03", "doctor")
    assert (code, out) == (2, [])
    assert "on the cluster and 3.99.1 here: submit from an environment like the cluster's" in line


def test_nothing_that_the_cluster_keeps_holds_a_secret(submit, head, seaweed):
    code, _, _ = submit("--date", "2026-01-04", "--submit.env_vars", '{"LANG": "C.UTF-8"}', "verify", "/nothing-here")
    assert code == 3
    kept = asked(head)
    assert "ddpm-verify-" in kept
    assert "C.UTF-8" in kept
    secrets = [TOKEN, *OWN.values(), seaweed.environment["AWS_SECRET_ACCESS_KEY"]]
    assert [secret for secret in secrets if secret in kept] == []
    logs = [path for path in (head.folder / "ray").rglob("logs/**/*") if path.is_file()]
    assert any("job-driver-ddpm-verify" in path.name for path in logs)
    assert [path for path in logs if any(secret.encode() in path.read_bytes() for secret in secrets)] == []


class Terminal:
    """The program on a terminal of its own."""

    def __init__(self, words):
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            words,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=tiny.ROOT,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = ""

    def until(self, text, seconds=300):
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._master], [], [], 1)[0]:
                try:
                    self.seen += os.read(self._master, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    assert text in self.seen, self.seen

    def type(self, keys):
        os.write(self._master, keys.encode())


@pytest.mark.nightly
def test_ctrl_c_on_a_terminal_stops_a_training_with_a_checkpoint(submit, head, tmp_path):
    dataset, run = str(tmp_path / "digits"), tmp_path / "run"
    settings = {"train": {"steps": 100_000, "checkpoint_every": 90_000}}
    words = tiny.command(tmp_path, "submit", "--address", head.url, **settings)
    sent = words[words.index("--config") :]
    assert submit(*sent, "ingest", "--source", "digits", "--dataset", dataset)[0] == 0
    sent += ["train", "--dataset", dataset, "--run", str(run)]
    words = [*words[: words.index("--config")], *sent]
    terminal = Terminal(words)
    terminal.until("img/s")
    terminal.type("\x03")
    terminal.until("d = detach")
    terminal.type("s\n")
    assert terminal.process.wait(120) == 143
    terminal.until("stopped, exit code 143")
    assert list(Path(run).glob("checkpoints/step-*"))
    code, (line,), err = submit("--detach", *sent)
    assert code == 0
    assert err[0].endswith("stopped: run anew")
    assert line.startswith("submitted: ddpm-train-")
    assert "-2 (" in line
