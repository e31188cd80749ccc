"""`ddpm submit` against a scripted cluster: package, attach, follow, interrupt, versions."""

import importlib.metadata
import io
import itertools
import json
import platform
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

from jobs.__main__ import main
from pipeline.errors import ConfigError, PipelineError
from pipeline.operations import jobs_client, log_follower, package
from pipeline.operations import submit as stage
from pipeline.operations.jobs_client import JobsClient, JobState, dashboard_address, find_token
from pipeline.operations.log_follower import LogFollower
from pipeline.operations.package import job_files, packed_files, sizes_of, zipped

pytestmark = pytest.mark.unit

TOKEN = "a-token-of-thirty-two-characters!"


@pytest.fixture(autouse=True)
def nobody_s_settings(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


# ---- package


@pytest.fixture
def root(tmp_path):
    """A checkout with files that a job needs and files that it does not."""
    folder = tmp_path / "checkout"
    for name in (
        *(
            "pipeline/config/root.py",
            "pipeline/operations/a.j2",
            "pipeline/__pycache__/a.pyc",
            "pipeline/scratch/own.log",
        ),
        *("jobs/__main__.py", "jobs/recipes/digits.yaml", "pyproject.toml", "tests/test_a.py", "big.bin", ".git/HEAD"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / ".gitignore").write_text("*.log\n__pycache__/\n")
    (folder / "pipeline" / ".rayignore").write_text("scratch/\n")
    return folder


def test_a_package_holds_the_program_and_nothing_else(root, tmp_path):
    assert sorted(job_files(root, tmp_path, ())) == [
        *("jobs/__main__.py", "jobs/recipes/digits.yaml", "pipeline/.rayignore", "pipeline/config/root.py"),
        *("pipeline/operations/a.j2", "pyproject.toml"),
    ]


def test_the_same_files_are_left_out_as_by_ray(root, tmp_path):
    archive = tmp_path / "ray.zip"
    create_package(str(root), archive, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    theirs = {name for name in zipfile.ZipFile(archive).namelist() if not name.endswith("/")}
    assert {path.relative_to(root).as_posix() for path in packed_files(root)} == theirs
    assert "pipeline/config/root.py" in theirs
    assert not any("own.log" in name or ".git/" in name or ".pyc" in name for name in theirs)


def test_included_data_comes_along_although_git_ignores_it(root, tmp_path):
    (tmp_path / ".gitignore").write_text("data/\n")
    (tmp_path / "data" / "__pycache__").mkdir(parents=True)
    (tmp_path / "data" / "asked.csv").write_text("request_id,count\na,1\n")
    files = job_files(root, tmp_path, ("data",))
    assert files["data/asked.csv"].read_text().startswith("request_id")
    assert sizes_of(files.items())["data"] == 21


@pytest.mark.parametrize(
    ("name", "text"), [("../outside", "is not below"), ("/etc/hosts", "is not below"), ("no", "does not exist")]
)
def test_what_cannot_be_included_is_named(root, tmp_path, name, text):
    with pytest.raises(ConfigError, match=f"{name} {text}"):
        job_files(root, tmp_path / "work", (name,))


def test_a_checkout_that_ignores_its_own_program_is_refused(root, tmp_path):
    (root / ".rayignore").write_text("jobs/\n")
    with pytest.raises(ConfigError, match="pipeline or jobs"):
        job_files(root, tmp_path, ())


def test_equal_contents_make_equal_archives():
    one, other = zipped({"a": b"1", "b/c": b"2"}), zipped({"b/c": b"2", "a": b"1"})
    assert one == other != zipped({"a": b"1", "b/c": b"3"})
    assert zipfile.ZipFile(io.BytesIO(one)).read("b/c") == b"2"


# ---- address and token


def test_the_address_is_ours_then_ray_s_then_this_machine():
    environment = {"RAY_API_SERVER_ADDRESS": "http://a:1/", "RAY_ADDRESS": "http://b:2"}
    assert dashboard_address("http://c:3", environment) == "http://c:3"
    assert dashboard_address(None, environment) == "http://a:1"
    assert dashboard_address(None, {"RAY_ADDRESS": "http://b:2"}) == "http://b:2"
    assert dashboard_address(None, {"RAY_ADDRESS": "10.0.0.1:6379"}) == "http://127.0.0.1:8265"


def test_the_token_is_found_where_ray_finds_it(tmp_path):
    assert find_token({}) is None
    (home := tmp_path / "home" / ".ray").mkdir(parents=True)
    (home / "auth_token").write_text("at-home\n")
    (tmp_path / "named").write_text(" named \n")
    assert find_token({}) == "at-home"
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "named")}) == "named"
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "named"), "RAY_AUTH_TOKEN": "here"}) == "here"
    assert find_token({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "here"}) is None


def test_a_token_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE is token, but no token exists"):
        find_token({"RAY_AUTH_MODE": "token"})
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH: cannot read"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")})


@pytest.mark.parametrize(
    ("status", "body", "token", "text"),
    [
        (401, "", None, "requires a token"),
        (403, "", TOKEN, "refuses this token"),
        (404, "", None, "no Ray dashboard"),
        (200, "<html>", None, "no Ray dashboard"),
        (200, "[]", None, "no Ray dashboard"),
    ],
)
def test_what_a_dashboard_answers_is_one_line(status, body, token, text):
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            return None

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=lambda: [server.handle_request(), server.handle_request()], daemon=True).start()
        with pytest.raises(ConfigError, match=text) as caught:
            JobsClient(f"http://127.0.0.1:{server.server_port}", token)
    assert seen[-1] == ("/api/version", token and f"Bearer {TOKEN}")
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_dashboard_that_accepts_and_never_answers_is_an_error(monkeypatch):
    monkeypatch.setattr(jobs_client, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ConfigError, match="no Ray dashboard"):
        JobsClient(f"http://127.0.0.1:{silent.getsockname()[1]}", None)


def test_nobody_at_the_address_is_one_line_and_exit_2(capsys):
    assert main(["submit", "--address", "127.0.0.1:1", "doctor"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no dashboard answers at http://127.0.0.1:1: start the head")


NOT_YET = RuntimeError("Request failed with status code 500: No available agent to submit job, please try again later.")


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ([NOT_YET, NOT_YET, None], True),
        ([NOT_YET, RuntimeError("Job with submission_id one already exists.")], False),
        ([NOT_YET] * 9, "No available agent"),
        ([RuntimeError("no space")], "no space"),
    ],
)
def test_a_head_that_has_just_started_is_asked_again(monkeypatch, answers, outcome):
    class Client:
        def __init__(self, address, headers):
            pass

        def submit_job(self, **job):
            if error := answers.pop(0):
                raise error

    clock = itertools.count()
    monkeypatch.setattr(jobs_client, "_Client", Client)
    monkeypatch.setattr(jobs_client, "is_listening", lambda address: True)
    monkeypatch.setattr(jobs_client, "AGENT_SECONDS", 4)
    monkeypatch.setattr(jobs_client, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None))
    jobs = jobs_client.JobsClient("http://127.0.0.1:8265", None)
    if isinstance(outcome, bool):
        assert jobs.submit("one", "true", {}) is outcome
        assert answers == []
    else:
        with pytest.raises(PipelineError, match=outcome):
            jobs.submit("one", "true", {})


# ---- following


class Played:
    """A scripted cluster. turns: chunks of the log by connection; an exception is a lost connection."""

    address = "http://head:8265"

    def __init__(self, *turns, states=()):
        self.turns, self.states, self.sent, self.stopped = list(turns), list(states), [], []
        self.known = {}

    def tail(self, job_id):
        turn = self.turns.pop(0) if len(self.turns) > 1 else self.turns[0]

        async def pieces():
            for piece in turn:
                if not isinstance(piece, str):
                    raise piece
                yield piece

        return pieces()

    def state(self, job_id):
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        return state

    def all(self):
        return list(self.known.items())

    def submit(self, job_id, entrypoint, runtime_env, **options):
        with_package = dict(runtime_env)
        if "working_dir" in with_package:
            with open(with_package.pop("working_dir"), "rb") as file:
                options["package"] = file.read()
        self.sent.append((job_id, entrypoint, with_package, options))
        return job_id not in self.known

    def stop(self, job_id):
        self.stopped.append(job_id)


DONE, RUNNING = JobState("SUCCEEDED", None, 0), JobState("RUNNING", None, None)


def followed(played):
    out = []
    return LogFollower(played, "job", out.append, sleep=lambda seconds: None), out


def test_each_piece_of_the_log_is_written_once_whatever_the_connection_does():
    lost = [["one\n", "tw", ConnectionError("lost")], ["one", "\ntwo", "\n", OSError("lost")], ["one\ntwo\nthree\n"]]
    follower, out = followed(Played(*lost, states=[DONE]))
    assert follower.run() == DONE
    assert "".join(out) == "one\ntwo\nthree\n"


def test_a_log_that_ends_before_the_job_is_asked_for_again():
    follower, out = followed(Played(["a"], ["ab"], states=[RUNNING, DONE]))
    assert follower.run() == DONE
    assert "".join(out) == "ab"


def test_a_dashboard_that_stays_away_ends_following_and_not_the_job():
    follower, _ = followed(Played([ConnectionError("away")], states=[RUNNING]))
    with pytest.raises(PipelineError, match="the job continues, and the same command attaches"):
        follower.run()


def test_a_closed_pipe_is_not_a_lost_connection():
    def closed(text):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        LogFollower(Played(["a"], states=[DONE]), "job", closed).run()


def test_a_job_that_waits_for_room_says_so_once(monkeypatch, caplog):
    import asyncio

    monkeypatch.setattr(log_follower, "QUIET_SECONDS", 0.01)
    waiting = JobState("PENDING", "Job has not started yet.", None)
    played = Played([], states=[waiting, waiting, waiting, DONE])

    async def silent():
        await asyncio.sleep(60)
        yield "never"

    played.tail = lambda job_id: silent()
    caplog.set_level("INFO", "ddpm")
    follower, _ = followed(played)
    assert follower.run() == DONE
    assert caplog.messages == ["waiting: Job has not started yet."]


# ---- the whole command


VERSIONS = dict.fromkeys(("python", "ray", "torch"))


@pytest.fixture
def cluster(monkeypatch):
    """A scripted cluster with equal versions whose jobs succeed at once."""
    played = Played(["the log\n"], states=[DONE])
    monkeypatch.setattr(stage, "JobsClient", lambda address, token: played)
    monkeypatch.setattr(stage, "_check_versions", lambda *_: None)
    return played


COMMAND = ["train", "--dataset", "s3://b/d", "--run", "s3://b/r", "--train.steps", "5"]


def submitted(capsys, *flags, command=COMMAND):
    code = main(["submit", "--date", "2026-01-31", "--json", *flags, *command])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if code in (0, 5, 130, 143) else None, out, err


def test_a_job_is_sent_followed_and_its_exit_code_returned(cluster, capsys):
    cluster.states = [JobState("FAILED", "exit code 5", 5)]
    code, result, out, err = submitted(capsys, "--submit.num_cpus", "0.5", "--submit.resources", '{"a10": 1}')
    ((job_id, entrypoint, env, options),) = cluster.sent
    assert code == result["exit_code"] == 5
    assert out.startswith("the log\n")
    assert job_id == result["submission_id"]
    assert job_id.startswith("ddpm-train-")
    assert job_id.endswith("-20260131")
    assert entrypoint.startswith("python -m jobs train ")
    assert entrypoint.endswith(" --address auto")
    assert "--train.steps 5" in entrypoint
    assert env == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    assert (options["entrypoint_num_cpus"], options["entrypoint_resources"]) == (0.5, {"a10": 1.0})
    names = zipfile.ZipFile(io.BytesIO(options["package"])).namelist()
    assert {"pipeline/config/root.py", "jobs/__main__.py", "jobs/recipes/digits.yaml"} <= set(names)
    assert not any(name.startswith(("tests/", "docs/", ".git")) for name in names)
    assert f"{job_id} failed, exit code 5" in err


@pytest.mark.parametrize("flags", [[], ["--again"]])
def test_a_second_submit_attaches_and_sends_nothing(cluster, capsys, flags):
    first = submitted(capsys)[1]["submission_id"]
    cluster.known[first] = "RUNNING"
    code, result, out, err = submitted(capsys, *flags)
    assert (code, result["attached"], len(cluster.sent)) == (0, True, 1)
    assert f"attached to {first}" in err
    assert out.startswith("the log\n")


def test_two_submits_at_the_same_time_are_one_job(cluster, capsys, monkeypatch):
    first = submitted(capsys)[1]["submission_id"]
    cluster.known[first] = "RUNNING"
    monkeypatch.setattr(cluster, "all", list)  # both looked before either had sent
    code, result, _, _ = submitted(capsys)
    assert (code, result["attached"]) == (0, True)


def test_done_is_done_failed_runs_anew_and_again_means_again(cluster, capsys):
    first = submitted(capsys)[1]["submission_id"]
    cluster.known[first] = "SUCCEEDED"
    code, result, out, _ = submitted(capsys)
    assert (code, len(cluster.sent)) == (0, 1)
    assert out.startswith(f"already done: {first}")
    assert submitted(capsys, "--again")[1]["submission_id"] == f"{first}-2"
    cluster.known[f"{first}-2"] = "FAILED"
    _, result, _, err = submitted(capsys)
    assert result["submission_id"] == f"{first}-3"
    assert f"{first}-2 failed: run anew" in err


def test_detached_is_sent_and_not_followed(cluster, capsys):
    code, result, out, _ = submitted(capsys, "--detach")
    assert code == 0
    assert "the log" not in out
    assert f"ray job stop {result['submission_id']} --address http" in out


def test_a_dry_run_sends_nothing(cluster, capsys):
    code, result, out, _ = submitted(capsys, "--dry-run")
    assert (code, cluster.sent) == (0, [])
    assert result["submission_id"] in out
    assert "python -m jobs train" in out


class Interrupted(Played):
    """Ctrl-C while following the log, `times` times."""

    def __init__(self, times):
        super().__init__(["the log\n"], states=[DONE])
        self.times = times

    def tail(self, job_id):
        if self.times:
            self.times -= 1
            raise KeyboardInterrupt
        return super().tail(job_id)


def interrupted(monkeypatch, capsys, answers):
    played = Interrupted(len(answers))
    monkeypatch.setattr(stage, "JobsClient", lambda address, token: played)
    monkeypatch.setattr("sys.stdin", Terminal("".join(f"{answer}\n" for answer in answers)))
    return played, submitted(capsys)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_ctrl_c_on_a_terminal_asks_and_stops(cluster, monkeypatch, capsys):
    monkeypatch.setattr(Interrupted, "state", lambda self, job_id: JobState("STOPPED", None, None))
    played, (code, result, _, err) = interrupted(monkeypatch, capsys, ["s"])
    assert (code, played.stopped) == (143, [result["submission_id"]])
    assert "d = detach" in err


def test_ctrl_c_on_a_terminal_detaches_or_goes_on(cluster, monkeypatch, capsys):
    played, (code, _, _, err) = interrupted(monkeypatch, capsys, ["d"])
    assert (code, played.stopped) == (130, [])
    assert "the same command attaches; to stop it: ray job stop" in err
    _, (code, _, out, _) = interrupted(monkeypatch, capsys, ["no"])
    assert code == 0
    assert "the log" in out


def test_ctrl_c_without_a_terminal_detaches(cluster, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("s\n"))
    played = Interrupted(1)
    monkeypatch.setattr(stage, "JobsClient", lambda address, token: played)
    code, _, _, err = submitted(capsys)
    assert (code, played.stopped) == (130, [])
    assert "detached" in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "needs a verb"),
        (["trian"], "unknown verb 'trian': did you mean train?"),
        (["submit", "train"], "ddpm submit cannot be submitted"),
        (["train", "--run", "s3://b/r"], "ddpm train needs --dataset"),
        (["--date", "31.1.2026", *COMMAND], "--date: '31.1.2026' is not a date"),
        ([*COMMAND, "--train.lr", "0"], "train.lr"),
        ([*COMMAND, "--submit.pip", '["x"]', "--submit.num_cpus", "-1"], "submit.num_cpus"),
        ([*COMMAND, "--submit.address", "ray://h:1"], "submit.address"),
        (["train", "--dataset", "here", "--run", "s3://b/r"], "here is a path on this machine"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(cluster, capsys, words, text):
    assert main(["submit", *words]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err
    assert cluster.sent == []


def test_help_and_configuration_of_the_verb_are_shown_here(cluster, capsys):
    assert main(["submit", "train", "--help"]) == 0
    assert "--from-step" in capsys.readouterr().out
    assert main(["submit", "--train.steps", "7", "train", "--print-config"]) == 0
    assert "steps: 7" in capsys.readouterr().out
    assert cluster.sent == []


def test_settings_before_the_verb_are_the_verb_s_too(cluster, capsys, tmp_path):
    (file := tmp_path / "night.yaml").write_text("train: {lr: 0.5}\n")
    submitted(capsys, "--config", str(file), "--workers=2", "--submit.pip", '["einops==0.8"]')
    ((_, entrypoint, env, options),) = cluster.sent
    archive = zipfile.ZipFile(io.BytesIO(options["package"]))
    assert archive.read("submitted/0-night.yaml") == file.read_bytes()
    assert " --config submitted/0-night.yaml --workers=2 " in entrypoint
    assert str(tmp_path) not in entrypoint
    assert env["pip"] == ["einops==0.8"]


def test_a_package_that_is_too_large_is_one_line(cluster, capsys, monkeypatch):
    monkeypatch.setattr(stage, "UPLOAD_LIMIT", 1000)
    assert main(["submit", *COMMAND]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1, err
    assert "Ray's dashboard takes less than" in err
    assert "pipeline" in err
    assert cluster.sent == []
    assert package.UPLOAD_LIMIT == 100 * 2**20


@pytest.mark.parametrize("where", ["word", "file", "environment", "include"])
def test_a_credential_in_what_would_be_sent_is_refused(cluster, capsys, monkeypatch, tmp_path, where):
    secret = "wJalrXUtnFEMI-K7MDENG"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    (file := tmp_path / "c.yaml").write_text(f"nightly: {{source: 's3://{secret}/x'}}\n" if where == "file" else "")
    (tmp_path / "work" / "notes.txt").write_text(secret)
    words = {
        "word": ["--train.init_from", f"s3://k:{secret}@b/r"],
        "file": ["--config", str(file)],
        "environment": ["--submit.env_vars", json.dumps({"HARMLESS": secret})],
        "include": ["--submit.include", "notes.txt"],
    }[where]
    assert main(["submit", *COMMAND, *words]) == 2
    err = capsys.readouterr().err
    assert "contains the value of AWS_SECRET_ACCESS_KEY" in err
    assert secret not in err
    assert cluster.sent == []


# ---- versions


class Probed(Played):
    def __init__(self, log, state=DONE, known=()):
        super().__init__([], states=[state])
        self.log, self.known = log, dict(known)

    def logs(self, job_id):
        return self.log


def versions(played):
    return stage._probe_versions(played, stage.SubmitConfig())


def test_the_probe_s_line_is_read_and_its_echo_is_not(monkeypatch):
    echo = "Running entrypoint for job x: python -c \"print('ddpm-versions', ...)\"\n"
    played = Probed(f'{echo}ddpm-versions {{"python": "3.12.3", "ray": "2.60.0", "torch": null}}\n')
    assert versions(played) == {"python": "3.12.3", "ray": "2.60.0", "torch": None}
    ((job_id, _, env, _),) = played.sent
    assert env == {}
    played.known, played.sent = {job_id: "SUCCEEDED"}, []
    versions(played)
    assert played.sent == []  # once a cluster


def test_a_cluster_that_starts_no_job_is_one_line():
    played = Probed("", JobState("FAILED", "Failed to set up runtime environment.\nTraceback ...", None))
    with pytest.raises(ConfigError, match=r"no job starts on the cluster at http://head:8265: Failed to set up"):
        versions(played)


def test_a_probe_of_this_python_tells_what_this_process_knows():
    import subprocess
    import sys

    said = subprocess.run([sys.executable, "-c", stage._PROBE], capture_output=True, text=True, check=True).stdout
    found = json.loads(said.removeprefix("ddpm-versions"))
    assert found["python"] == platform.python_version()
    assert found["ray"] == importlib.metadata.version("ray")
    assert found["torch"].partition("+")[0] == importlib.metadata.version("torch").partition("+")[0]


def test_another_ray_is_refused_before_a_probe_is_sent(monkeypatch, capsys):
    played = Probed("")
    monkeypatch.setattr(stage, "JobsClient", lambda address, token: played)
    played.ray_version = "2.9.3"
    assert main(["submit", *COMMAND]) == 2
    assert "Ray is 2.9.3 on the cluster" in capsys.readouterr().err
    assert played.sent == []


def test_a_failed_request_of_the_cluster_s_is_its_last_line():
    trace = "Request failed with status code 500: Traceback (most recent call last):\n  File x\nOSError: disk full\n."
    assert jobs_client._reason(RuntimeError(trace)) == "OSError: disk full"
