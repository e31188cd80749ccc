"""The program as its users meet it: the whole line on a real S3 server, and every wrong turn in one clear line."""

import json
import os

import pytest

from tiny import command, run

pytestmark = pytest.mark.e2e


def refused(words, code):
    """The one line that the command ends with."""
    ended = run(words)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.stderr
    return lines[0]


def test_the_whole_line_on_s3_and_again(tmp_path, s3_uri):
    words = command(tmp_path, "demo", "--root", s3_uri, "--json")
    first = run(words)
    assert first.returncode == 0, first.stderr
    for line in first.stderr.splitlines():  # progress and nothing else: no line of Ray's own
        assert line.split()[0] in ("reading", "writing", "train", "generate", "extractor", "features"), line
    result = json.loads(first.stdout.splitlines()[-1])
    assert result["ingest"]["train"] + result["ingest"]["heldout"] == 1797
    assert result["train"]["step"] == 48
    assert result["verify"]["counts"]["samples"] == 80
    assert result["evaluate"]["scores"], result["evaluate"]
    again = run(words)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already done") >= 3


def test_no_credentials_reach_anything_at_rest_or_printed(tmp_path, s3_uri):
    """Neither key nor secret is in any object under the root, nor in what the command prints."""
    from pipeline.config.root import StorageConfig
    from pipeline.storage.store import resolve

    words = command(tmp_path, "ingest", "--source", "digits", "--dataset", f"{s3_uri}/d", "--json")
    ended = run([*words, "--print-config"])
    made = run(words)
    assert made.returncode == 0, made.stderr
    store = resolve(s3_uri, StorageConfig())
    texts = [ended.stdout.encode(), made.stdout.encode(), made.stderr.encode()]
    texts += [store.read(entry.key) for entry in store.list()]
    assert len(texts) > 10
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        assert not any(os.environ[name].encode() in text for text in texts)


def test_a_wrong_bucket_is_exit_4(tmp_path, s3_environment):
    line = refused(command(tmp_path, "train", "--dataset", "s3://no-such-bucket/d", "--run", str(tmp_path / "r")), 4)
    assert "no-such-bucket" in line


def test_wrong_credentials_are_exit_4(tmp_path, s3_uri, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    line = refused(command(tmp_path, "train", "--dataset", f"{s3_uri}/d", "--run", str(tmp_path / "r")), 4)
    assert "AWS_ACCESS_KEY_ID" in line


def test_a_dead_endpoint_is_exit_4(tmp_path, s3_uri, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    words = command(tmp_path, "verify", f"{s3_uri}/d", storage={"retries": 1, "connect_timeout_seconds": 1})
    assert "127.0.0.1:9" in refused(words, 4)


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
def test_wrong_turns_end_in_one_line(tmp_path, argv, code, text):
    fill = {"tmp": str(tmp_path)}
    words = command(tmp_path, *[word.format(**fill) for word in argv])
    assert text.format(**fill) in refused(words, code)
