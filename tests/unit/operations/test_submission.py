"""Rules of submit: ids, decisions, exit codes, versions, local paths, credentials."""

import shlex
from datetime import date

import pytest
from pydantic import ValidationError

from jobs import generate, merge, train
from jobs.command import as_job
from pipeline.config.operations import SubmitConfig
from pipeline.errors import ConfigError
from pipeline.operations.submission import (
    Attempt,
    credentials,
    decision,
    entrypoint,
    exit_code,
    newest_attempt,
    next_id,
    refuse_credentials,
    refuse_local_paths,
    refuse_package,
    submission_id,
    version_differences,
)

pytestmark = pytest.mark.unit

DAY = date(2026, 1, 31)
URIS = ("--dataset", "s3://b/d", "--run", "s3://b/r")


def digest(*words, verb=train.run):
    return as_job(verb, [*URIS, *words]).digest()


def test_the_id_is_verb_digest_and_day():
    assert submission_id("train", "0123456789abcdef", DAY) == "ddpm-train-0123456789-20260131"
    assert [next_id("base", last) for last in (None, Attempt(1, "base", ""), Attempt(2, "base-2", ""))] == [
        *("base", "base-2", "base-3")
    ]


def test_the_digest_is_of_what_is_done_and_not_of_how_it_is_sent(monkeypatch, tmp_path):
    first = digest()
    assert digest("--submit.num_cpus", "2", "--submit.address", "http://h:1", "--address", "auto") == first
    assert digest("--schedule.cron", "1 2 * * *") == first
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://only-here:9000")
    assert digest() == first
    assert len({first, digest("--train.lr", "1e-3"), digest("--workers", "2"), digest("--run", "s3://b/r2")}) == 4
    assert digest("--storage.endpoint", "http://other:9000") != first
    assert digest("--dry-run") != first
    (file := tmp_path / "lr.yaml").write_text("train: {lr: 1e-3}\n")
    assert digest("--config", str(file)) == digest("--train.lr", "1e-3") == digest("--steps=800000", "--train.lr=1e-3")


@pytest.mark.parametrize(
    ("status", "again", "expected"),
    [
        (None, False, "start"),
        ("PENDING", False, "attach"),
        ("RUNNING", True, "attach"),
        ("SUCCEEDED", False, "done"),
        ("SUCCEEDED", True, "start"),
        ("FAILED", False, "start"),
        ("STOPPED", False, "start"),
    ],
)
def test_only_a_success_is_final(status, again, expected):
    assert decision(None if status is None else Attempt(1, "x", status), again) == expected


def test_the_newest_attempt_is_the_highest_number_of_this_id_alone():
    base = "ddpm-train-0123456789-20260131"
    jobs = [
        (f"{base}-2", "FAILED"),
        (f"{base}-10", "RUNNING"),
        (base, "STOPPED"),
        (f"{base}-x", "A"),
        (f"{base}0", "B"),
    ]
    assert newest_attempt(base, jobs) == Attempt(10, f"{base}-10", "RUNNING")
    assert newest_attempt(base, [(f"x{base}", "RUNNING")]) is None


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        ("SUCCEEDED", 0, None, 0),
        ("SUCCEEDED", None, "exit code 3", 0),
        ("FAILED", 5, "Job entrypoint command failed with exit code 5, ...", 5),
        ("FAILED", -9, None, 137),
        ("FAILED", None, "Job entrypoint command failed with exit code 6, last available logs:\nexit code 7", 6),
        ("FAILED", None, "failed with exit code -15. No logs available.", 143),
        ("FAILED", None, "runtime_env setup failed", 1),
        ("FAILED", None, "exit code 0", 1),
        ("FAILED", None, None, 1),
        ("STOPPED", None, "Job was intentionally stopped.", 143),
    ],
)
def test_the_exit_code_is_the_verb_s(status, code, message, expected):
    assert exit_code(status, code, message) == expected


HERE = {"python": "3.12.3", "ray": "2.60.0", "torch": "2.9.1"}


@pytest.mark.parametrize(
    ("there", "warnings"),
    [
        ({}, 0),
        ({"python": "3.12.9", "ray": "2.60.1"}, 0),
        ({"torch": "2.8.0"}, 1),
        ({"torch": "2.9.0"}, 1),
    ],
)
def test_versions_that_are_near_enough(there, warnings):
    assert len(version_differences(HERE, HERE | there)) == warnings


@pytest.mark.parametrize(
    ("there", "text"),
    [
        ({"python": "3.11.3"}, "Python is 3.11.3 on the cluster and 3.12.3 here"),
        ({"ray": "2.6.0"}, "Ray is 2.6.0 on the cluster and 2.60.0 here"),
        ({"torch": None}, "torch is missing on the cluster"),
    ],
)
def test_versions_that_are_refused(there, text):
    with pytest.raises(ConfigError, match=text) as caught:
        version_differences(HERE, HERE | there)
    assert "constraints.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_and_environment_come_along_and_keep_their_order(monkeypatch, tmp_path):
    (tmp_path / "a").mkdir()
    (one := tmp_path / "night.yaml").write_text("train: {lr: 1.0, steps: 7, lanes: 3}\n")
    (two := tmp_path / "a" / "night.yaml").write_text("train: {lr: 2.0, steps: 8}\n")
    monkeypatch.setenv("DDPM__TRAIN__LR", "3.0")
    job = as_job(train.run, [*URIS, f"--config={one}", "--train.seed", "1", "--config", str(two), "--json"])
    words = shlex.split(entrypoint(job, "sent"))
    assert words[:4] == ["python", "-m", "jobs", "train"]
    assert words[-9:] == [*URIS, "--train.seed", "1", "--json", "--address", "auto"]
    assert (job.config.train.lr, job.config.train.steps, job.config.train.lanes) == (3.0, 8, 3)
    # On the cluster: the same files from the package, no such variable, the same configuration.
    monkeypatch.delenv("DDPM__TRAIN__LR")
    for name, content in job.files.items():
        (tmp_path / name).write_bytes(content)
    there = shlex.split(entrypoint(job, str(tmp_path)))
    again = as_job(train.run, there[4:])
    assert again.config.train == job.config.train
    assert again.arguments == job.arguments
    assert again.digest() == job.digest()


def test_words_reach_the_shell_as_they_were_written():
    job = as_job(merge.run, ["--out", "s3://b/o o", "s3://b/$(id)", "s3://b/'x'"])
    assert shlex.split(entrypoint(job, "sent"))[4:] == [*job.words, "--address", "auto"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--train.lr", "-1"], "train.lr"),
        (["--trian"], "unknown argument --trian"),
        (["--address", "http://head:8265"], "leave out --address"),
        (["--config", "not-there.yaml"], "not-there.yaml"),
    ],
)
def test_a_bad_command_line_is_refused_here(words, text):
    with pytest.raises(ConfigError, match=text):
        as_job(train.run, [*URIS, *words])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--out", "s3://b/o", "--model", "runs/1"], "model: runs/1 is a path on this machine"),
        (["--out", "./o", "--model", "s3://b/r"], "out: ./o is a path"),
        (["--out", "/fs/o", "--model", "/fs/m", "--requests", "asked.csv"], "--submit.include asked.csv"),
        (["--out", "/fs/o", "--model", "/fs/m", "--train.init_from", "old"], "train.init_from: old"),
    ],
)
def test_relative_paths_are_refused(words, text, tmp_path):
    (tmp_path / "asked.csv").write_text("x")
    with pytest.raises(ConfigError, match=text):
        refuse_local_paths(as_job(generate.run, words), tmp_path, ())


def test_what_is_sent_along_and_what_all_nodes_see_is_not_refused(tmp_path):
    job = as_job(generate.run, ["--out", "/fs/o", "--model", "s3://b/m@champion", "--requests", "tables/asked.csv"])
    refuse_local_paths(job, tmp_path, ("tables",))
    with pytest.raises(ConfigError):
        refuse_local_paths(job, tmp_path, ("table",))


def test_a_package_at_the_limit_is_refused_with_what_is_large():
    refuse_package({"jobs": 40, "data": 59}, 100)
    with pytest.raises(ConfigError, match=r"data 90\.0 MiB, jobs 10\.0 MiB") as caught:
        refuse_package({"jobs": 10 * 2**20, "data": 90 * 2**20}, 100 * 2**20)
    assert "100.0 MiB" in str(caught.value)


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjE",
    "WANDB_API_KEY": "0123456789abcdef",
    "DB_PASSWORD": "correct horse",
}


def test_credentials_are_known_by_their_names():
    others = {"HOME": "/home/somebody", "RAY_AUTH_TOKEN_PATH": "/home/somebody/token", "AWS_REGION": "eu-central-1"}
    found = credentials({**SECRETS, **others, "MY_TOKEN": "short"}, "the-cluster-token")
    assert found == {**SECRETS, "the cluster's token": "the-cluster-token"}


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_a_credential_is_refused_wherever_it_is_and_not_repeated(name):
    with pytest.raises(ConfigError, match=f"config.yaml contains the value of {name}") as caught:
        refuse_credentials({"fine": b"x", "config.yaml": b"a: " + SECRETS[name].encode()}, credentials(SECRETS, None))
    assert SECRETS[name] not in str(caught.value)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "aws_session_token", "HF_TOKEN", "OPENAI_API_KEY"])
def test_a_credential_s_variable_is_no_setting(name):
    with pytest.raises(ValidationError, match="credentials are not sent"):
        SubmitConfig(env_vars={name: "x"})


@pytest.mark.parametrize("address", ["ray://head:10001", "auto", "http://user:secret@head:8265", "http://", "a b"])
def test_an_address_is_a_dashboard_s(address):
    with pytest.raises(ValidationError, match="dashboard"):
        SubmitConfig(address=address)


def test_host_and_port_are_enough():
    assert SubmitConfig(address="head:8265/").address == "http://head:8265"
    assert SubmitConfig(address="https://ray.example.com/team/").address == "https://ray.example.com/team"
