"""What every test may ask for: a store of each kind, a real S3 server, one Ray cluster.

Set before anything imports torch or ray: one compute thread a process, no Ray telemetry or token files, no AWS
settings of the person who runs the tests, and Ctrl-C is heeded by what the tests start.
"""

import os
import signal
import uuid
from collections.abc import Iterator

import hypothesis
import pytest
from s3_server import SeaweedServer
from xdist.scheduler import LoadScopeScheduling

from pipeline.config.storage import StorageConfig
from pipeline.storage.store import Store, resolve

_DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",  # loopback only; token mode would write into the home directory
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon an end or a death of workers is seen
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",  # the default 60 is tight on a loaded machine
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
for _name in [name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE"]:
    del os.environ[_name]
os.environ.update(AWS_CONFIG_FILE=os.devnull, AWS_SHARED_CREDENTIALS_FILE=os.devnull, AWS_EC2_METADATA_DISABLED="true")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job, and what it starts, ignore Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no defect
hypothesis.settings.load_profile("untimed")

HEAVY = ("oracle/test_compiled", "faults", "ray", "e2e")
"""With several test processes (-n): each of these is one piece of work, in this order; then every other file is one."""


def _piece(nodeid: str) -> str:
    name = nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")
    return next((piece for piece in HEAVY if name.startswith(piece)), name)


class ByPiece(LoadScopeScheduling):
    """One process runs all tests of a piece, so that a folder of Ray tests shares one cluster."""

    def _split_scope(self, nodeid: str) -> str:
        return _piece(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByPiece:
    return ByPiece(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # the long pieces first, so that none is left over at the end
        items.sort(key=lambda item: HEAVY.index(_piece(item.nodeid)) if _piece(item.nodeid) in HEAVY else len(HEAVY))


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """One real S3 server for the session; fails with the reason when it cannot start, and never skips."""
    with SeaweedServer() as server:
        yield server


@pytest.fixture
def s3_environment(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> SeaweedServer:
    """The server, with its credentials and endpoint in this process's environment for one test."""
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return seaweed


@pytest.fixture
def s3_uri(s3_environment: SeaweedServer) -> str:
    """A fresh s3:// prefix on the real server; the environment holds credentials and endpoint."""
    return f"{s3_environment.uri}/{uuid.uuid4().hex}"


@pytest.fixture(
    params=[
        pytest.param("local", marks=pytest.mark.unit),
        pytest.param("memory", marks=pytest.mark.unit),
        pytest.param("s3", marks=pytest.mark.s3),
    ]
)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A fresh, empty store of each kind."""
    if request.param == "s3":
        uri = request.getfixturevalue("s3_uri")
    elif request.param == "local":
        uri = str(request.getfixturevalue("tmp_path") / "root")
    else:
        uri = f"memory://{uuid.uuid4().hex}"
    fresh = resolve(uri, StorageConfig())
    yield fresh
    if request.param == "memory":
        for entry in fresh.list():
            fresh.delete(entry.key)


@pytest.fixture(scope="session")
def ray_cluster(seaweed: SeaweedServer) -> Iterator[None]:
    """One local Ray cluster for the session. Workers inherit the server's credentials as environment variables,
    not as a runtime_env, which Ray would store."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment.items():
            patch.setenv(name, value)
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=300 * 2**20,
            logging_level="ERROR",
        )
    yield
    ray.shutdown()
