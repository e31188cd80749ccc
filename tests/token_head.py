"""A real Ray head with dashboard and token authentication, on ports and in a folder of its own."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

from processes import titled, wait_for
from s3_server import _end_with_parent

START_SECONDS = 120.0
STOP_SECONDS = 30.0
TRIES = 4
TOKEN = "token-of-the-test-cluster-0123456789abcdef"


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class TokenHead:
    """`ray start --head --block` as a child; its jobs find `python` and Ray of the environment that runs the tests."""

    def __init__(self, environment: dict[str, str]) -> None:
        """environment: what the cluster has of its own, such as its credentials."""
        self.folder = Path(tempfile.mkdtemp(prefix="ddpm-head-"))  # short: Unix sockets lie in it
        self.port, self.dashboard_port, *rest = free_ports(6)
        self.url = f"http://127.0.0.1:{self.dashboard_port}"
        paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        here = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
        patience = {name: value for name, value in os.environ.items() if name.startswith("RAY_TRAIN_")}
        self._environment = {
            **here,
            **patience,
            **environment,
            "PATH": paths,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        self._command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *(f"--port={self.port}", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
            *(f"--dashboard-port={self.dashboard_port}", f"--dashboard-agent-listen-port={rest[0]}"),
            *(f"--dashboard-agent-grpc-port={rest[1]}", f"--metrics-export-port={rest[2]}"),
            *("--num-cpus=8", "--object-store-memory=200000000", f"--temp-dir={self.folder}/ray"),
            *(f"--ray-client-server-port={rest[3]}", "--include-dashboard=true", "--disable-usage-stats"),
            *("--no-monitor", "--include-log-monitor=false"),
        ]

    def __enter__(self) -> "TokenHead":
        self.log = self.folder / "head.log"
        for _ in range(TRIES):  # Ray gives its own processes 30 s, which a busy machine may not have
            if self._start():
                return self
            said = self.log.read_text()[-4000:]
            self._stop()
        self.__exit__()
        raise RuntimeError(f"the head did not start:\n{said}")

    def _start(self) -> bool:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent(),
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.3)
        return True

    def _serves(self) -> bool:
        if "Ray runtime started" not in self.log.read_text():
            return False
        request = urllib.request.Request(f"{self.url}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                return reply.status == 200
        except OSError:
            return False

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(AssertionError):  # its processes end with it, and write until then
            wait_for(lambda: not titled(str(self.folder)), STOP_SECONDS)

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self.folder, ignore_errors=True)
