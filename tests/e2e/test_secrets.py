"""A night on S3, as a job of a cluster with a token: afterwards no key, token or webhook is at rest anywhere."""

import base64
import gzip
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from processes import wait_for
from secrets_scan import Secrets

from pipeline.config.storage import StorageConfig
from pipeline.storage.store import resolve
from tiny import ROOT, settings

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.s3, pytest.mark.timeout(1200)]

SUBMISSION = "night-of-secrets"


@dataclass(frozen=True)
class Head:
    """A Ray head of its own, with dashboard and token."""

    folder: Path
    port: int
    token: str
    environment: dict[str, str]

    def ask(self, path: str, token: str) -> bytes:
        address = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()

    def answers(self) -> bool:
        with suppress(OSError):
            self.ask("/api/jobs/", self.token)
            return True
        return False

    def run(self, *words: str, seconds: float = 900) -> subprocess.CompletedProcess:
        return subprocess.run(
            words, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=seconds, check=False
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def planted(seaweed) -> Secrets:
    return Secrets(
        {
            "access key": seaweed.environment["AWS_ACCESS_KEY_ID"],
            "secret key": seaweed.environment["AWS_SECRET_ACCESS_KEY"],
            "own key": secrets.token_hex(20),
            "Ray token": secrets.token_hex(32),
            "webhook token": f"T0K/{secrets.token_hex(12)}",
            "tracker key": secrets.token_hex(20),
        }
    )


@pytest.fixture
def head(seaweed, planted) -> Iterator[Head]:
    folder, port, values = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")), free_port(), planted.values
    environment = {
        **os.environ,
        **seaweed.environment,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": values["Ray token"],
        "WANDB_API_KEY": values["tracker key"],
        "NIGHT_WEBHOOK": f"http://127.0.0.1:{free_port()}/{values['webhook token']}",
        "DDPM_TEST_KEY": values["own key"],
    }
    words = ["ray", "start", "--head", "--block", "--port=0", f"--dashboard-port={port}", f"--temp-dir={folder}"]
    words += ["--num-cpus=4", "--disable-usage-stats", f"--object-store-memory={300 * 2**20}"]
    program = [str(Path(sys.executable).with_name("ray")), *words[1:]]
    with (folder / "start.log").open("wb") as log:
        process = subprocess.Popen(program, env=environment, stdout=log, stderr=log, start_new_session=True)
    there = Head(folder, port, values["Ray token"], environment)
    try:
        wait_for(there.answers, 240)
        yield there
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def night_settings(folder: Path) -> Path:
    """Everything that could carry an environment variable to a store is on: hooks of every kind, grids, a report."""
    hooks = [{"webhook_env": "NIGHT_WEBHOOK"}, {"command": ["cat"]}, {"textfile": str(folder / "night.prom")}]
    values = settings(
        train={"steps": 24, "lanes": 1, "micro_batch": 32, "checkpoint_every": 12, "grid_every": 24},
        generate={"num_samples": 64},
        evaluate={"classifier_epochs": 1, "classifier_width": 8},
        gate={"ceiling": 1e6},
        nightly={"name": "digits", "source": "digits", "on_success": hooks, "on_failure": hooks},
        ray={"address": "auto"},
    )
    file = folder / "night.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.mark.nightly
def test_neither_key_nor_token_is_left_anywhere(head, planted, s3_uri, tmp_path):
    config = night_settings(tmp_path)
    night = [sys.executable, "-m", "jobs", "nightly", "--root", s3_uri, "--config", str(config), "--json"]
    submit = ["job", "submit", f"--address=http://127.0.0.1:{head.port}", f"--submission-id={SUBMISSION}", "--"]
    ray_command = str(Path(sys.executable).with_name("ray"))
    while "No available agent" in (done := head.run(ray_command, *submit, *night)).stderr:
        time.sleep(1)  # the dashboard answers some seconds before the node can run a job
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '"state": "promoted"' in done.stdout
    assert "hook NIGHT_WEBHOOK of on_success failed" in done.stdout, "the webhook was tried, and its URL is not told"

    again = head.run(*night)
    assert "already done (promoted)" in again.stdout
    jobs = head.ask("/api/jobs/", head.token)
    assert SUBMISSION in {job["submission_id"] for job in json.loads(jobs)}
    with pytest.raises(urllib.error.HTTPError, match=r"401|403"):
        head.ask("/api/jobs/", "x" * 64)

    root = resolve(s3_uri, StorageConfig())
    kinds = {entry.key.rpartition(".")[2] for entry in root.list()}
    assert kinds >= {"json", "parquet", "safetensors", "html", "yaml", "png"}, "the scan would see too little"
    logs = next(head.folder.glob("session_2*"))
    assert any((logs / "logs").glob(f"job-driver-{SUBMISSION}.log"))
    found = [
        *planted.in_store(root),
        *planted.in_folder(logs),
        *planted.in_folder(tmp_path),
        *planted.in_bytes("metadata of jobs", jobs),
        *planted.in_bytes("what was printed", "".join([done.stdout, done.stderr, again.stdout, again.stderr]).encode()),
    ]
    assert found == []


@pytest.mark.unit
def test_the_scan_finds_what_is_hidden(tmp_path):
    planted_value = "k3y/" + "ab12" * 6
    planted = Secrets({"key": planted_value})
    store = resolve(str(tmp_path / "root"), StorageConfig())
    table = pa.table({"text": ["x" * 100 + planted_value] * 50})
    deep = pa.table({"row": [{"note": planted_value}]})
    store.put("plain.json", json.dumps({"url": f"https://host/?k={planted_value}"}).encode())
    store.put("quoted.log", b"https://host/k3y%2F" + b"ab12" * 6)
    store.put("base64.log", base64.b64encode(b"user:" + planted_value.encode()))
    store.put("packed.gz", gzip.compress(planted_value.encode()))
    for name, one in (
        ("column", table),
        ("nested", deep),
        ("metadata", pa.table({"n": [1]}).replace_schema_metadata({"from": planted_value})),
    ):
        sink = pa.BufferOutputStream()
        pq.write_table(one, sink, compression="zstd")
        store.put(f"{name}.parquet", sink.getvalue().to_pybytes())
    store.put("clean.json", b"{}")
    hit = {line.split(" in ")[1].removesuffix(" (unpacked)") for line in planted.in_store(store)}
    assert hit == {entry.key for entry in store.list()} - {"clean.json"}
    assert {line.split(" in ")[1].removesuffix(" (unpacked)") for line in planted.in_folder(tmp_path / "root")} == hit
