"""The program as its users meet it: the whole line on a real S3 server, and every wrong turn in one clear line."""

import json
import os

import pytest

from jobs.__main__ import main
from pipeline.config.storage import StorageConfig
from pipeline.storage.store import resolve
from tiny import command, run

pytestmark = pytest.mark.e2e


def one_line(code, wanted, errors):
    """The one `error: ` line of a command that ended as wanted."""
    assert code == wanted, errors
    assert "Traceback" not in errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors
    return lines[0]


@pytest.fixture
def refused(capfd):
    """Runs a command in this process: starting a program costs seconds, and only its exit code would be new."""

    def ended(words, wanted):
        capfd.readouterr()
        return one_line(main(words[3:]), wanted, capfd.readouterr().err)

    return ended


def test_the_whole_line_on_s3_and_again(tmp_path, s3_uri):
    """Also: neither key nor secret is in any object under the root, nor in the output of the command."""
    words = command(tmp_path, "demo", "--root", s3_uri, "--json")
    first = run(words)
    assert first.returncode == 0, first.stderr
    for line in first.stderr.splitlines():  # progress and nothing else: no line of Ray's own
        assert line.split()[0] in ("cluster:", "reading", "writing", "train", "generate", "extractor", "features"), line
    result = json.loads(first.stdout.splitlines()[-1])
    assert result["ingest"]["train"] + result["ingest"]["heldout"] == 1797
    assert result["train"]["step"] == 48
    assert result["verify"]["counts"]["samples"] == 80
    assert result["evaluate"]["scores"], result["evaluate"]
    again = run(words)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already done") >= 3
    store = resolve(s3_uri, StorageConfig())
    printed = (first, again, run([*words, "--print-config"]))
    texts = [stream.encode() for ended in printed for stream in (ended.stdout, ended.stderr)]
    texts += [store.read(entry.key) for entry in store.list()]
    assert len(texts) > 10
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert not any(os.environ[name].encode() in text for text in texts)


def test_a_wrong_bucket_is_exit_4(tmp_path, s3_environment, refused):
    line = refused(command(tmp_path, "train", "--dataset", "s3://no-such-bucket/d", "--run", str(tmp_path / "r")), 4)
    assert "no-such-bucket" in line


def test_wrong_credentials_are_exit_4(tmp_path, s3_uri, monkeypatch, refused):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    line = refused(command(tmp_path, "train", "--dataset", f"{s3_uri}/d", "--run", str(tmp_path / "r")), 4)
    assert "AWS_ACCESS_KEY_ID" in line


def test_a_dead_endpoint_is_exit_4(tmp_path, s3_uri, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    words = command(tmp_path, "verify", f"{s3_uri}/d", storage={"retries": 1, "connect_timeout_seconds": 1})
    ended = run(words)
    assert "127.0.0.1:9" in one_line(ended.returncode, 4, ended.stderr)


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["train", "--dataset", "{tmp}/none", "--run", "{tmp}/r"], 3, "no dataset at"),
        (["generate", "--model", "{tmp}/none", "--out", "{tmp}/s"], 3, "{tmp}/none"),
        (["evaluate", "--samples", "{tmp}/none", "--dataset", "{tmp}/none"], 3, "no samples at"),
        (["verify", "{tmp}/none"], 3, "{tmp}/none"),
        (["report", "{tmp}/none"], 3, "{tmp}/none"),
        (["ingest", "--source", "{tmp}/none", "--dataset", "{tmp}/d"], 3, "no images at"),
        (["train", "--train.stepz", "4"], 2, "did you mean --train.steps?"),
        (["train", "--dataset", "d", "--run", "r", "--ingest.channels", "2"], 2, "ingest.channels"),
        (["train", "--dataset", "d", "--run", "r", "--address", "127.0.0.1:9", "--dry-run"], 3, "no dataset at"),
    ],
)
def test_wrong_turns_end_in_one_line(tmp_path, refused, argv, code, text):
    fill = {"tmp": str(tmp_path)}
    words = command(tmp_path, *[word.format(**fill) for word in argv])
    assert text.format(**fill) in refused(words, code)
