"""A table of requests becomes samples that say whose they are; what cannot be met is said before anything is made."""

import json

import pytest
from tiny_model import write_model

from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError
from pipeline.generation.commit import read_manifest, read_plan
from pipeline.generation.driver import generate
from pipeline.operations.verify import verify
from pipeline.storage.files import read_parquet
from pipeline.storage.store import resolve
from tiny import config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

CONDITIONAL = {"model": {"num_classes": 3}, "train": {"label_dropout": 0.1}}
TABLE = """request_id,count,label,guidance,seed,steps,sampler,prompt
ones,20,1,,,,,a one
twos,3,2,,9,,,a two
all,7,,,,,,anything
guided,10,1,3.0,,,,a bolder one
fast,6,0,,,2,heun,
"""


def rows(uri):
    job = resolve(uri, StorageConfig())
    return [row for marker in read_manifest(job).shards for row in read_parquet(job, marker).to_pylist()]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("model") / "run")
    write_model(uri, config(**CONDITIONAL))
    return uri


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("requests")
    (folder / "table.csv").write_text(TABLE)
    out = str(folder / "samples")
    result = generate(config(ray={"workers": 2}), model, out, requests=str(folder / "table.csv"))
    return result, folder


def test_every_row_says_whose_it_is_and_what_it_got(made):
    result, _ = made
    assert (result["samples"], result["failed"], result["shards"]) == (46, 0, 4)
    found = rows(result["uri"])
    assert [row["sample_id"] for row in found] == list(range(46))
    names = ["ones"] * 20 + ["twos"] * 3 + ["all"] * 7 + ["guided"] * 10 + ["fast"] * 6
    assert [row["request_id"] for row in found] == names
    assert [row["label"] for row in found] == [1] * 20 + [2] * 3 + [i % 3 for i in range(23, 30)] + [1] * 10 + [0] * 6
    assert [row["seed"] for row in found] == [0] * 20 + [9] * 3 + [0] * 23
    assert [row["guidance"] for row in found] == [None] * 30 + [3.0] * 10 + [None] * 6
    assert {(row["sampler"], row["steps"]) for row in found[:40]} == {("ddim", 5)}
    assert {(row["sampler"], row["steps"]) for row in found[40:]} == {("heun", 2)}
    assert json.loads(found[0]["extra"]) == {"prompt": "a one"}
    assert len({row["sha256"] for row in found}) == 46
    # Segments 0..29, 30..39, 40..45: a shard of 16, its rest, and two of their own.
    assert [m.rows for m in read_manifest(resolve(result["uri"], StorageConfig())).shards] == [16, 14, 10, 6]
    assert verify(config(), result["uri"])["counts"]["samples"] == 46


def test_one_actor_and_another_format_make_the_same(made, model, tmp_path):
    result, _ = made
    names, *lines = [line.split(",") for line in TABLE.splitlines()]
    asked = [{name: value for name, value in zip(names, line, strict=True) if value} for line in lines]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    other = generate(
        config(ray={"workers": 1}), model, str(tmp_path / "samples"), requests=str(tmp_path / "table.jsonl")
    )
    assert [row["sha256"] for row in rows(other["uri"])] == [row["sha256"] for row in rows(result["uri"])]


def test_a_request_is_what_a_plain_job_of_its_settings_makes(made, model, tmp_path):
    """The first 16 samples share a shard in both, and batch-mates do not matter."""
    result, _ = made
    plain = config(ray={"workers": 1}, generate={"num_samples": 16, "labels": "1:1"})
    alone = generate(plain, model, str(tmp_path / "samples"))
    assert [row["sha256"] for row in rows(alone["uri"])] == [row["sha256"] for row in rows(result["uri"])[:16]]


def test_again_needs_no_table_and_another_one_is_refused(made, model, tmp_path):
    result, folder = made
    (folder / "table.csv").rename(folder / "moved.csv")
    again = generate(config(ray={"workers": 2}), model, result["uri"])
    assert (again["state"], again["digest"]) == ("already done", result["digest"])
    (tmp_path / "other.csv").write_text(TABLE + "more,1,1,,,,,\n")
    with pytest.raises(ConfigError, match="requests sha256"):
        generate(config(), model, result["uri"], requests=str(tmp_path / "other.csv"))
    assert len(list(resolve(result["uri"], StorageConfig()).list("requests/"))) == 1
    told = generate(config(), model, result["uri"], requests=str(folder / "moved.csv"), dry_run=True)
    assert "46 samples in 4 shards (0 missing)" in told["summary"]
    assert "5 requests" in told["summary"]


def test_bad_rows_are_listed_before_anything_is_made(model, tmp_path):
    (tmp_path / "bad.csv").write_text(TABLE + "ones,1,1,,,,,\nx,-1,7,inf,,,euler,\n")
    out = str(tmp_path / "samples")
    with pytest.raises(DataError) as caught:
        generate(config(), model, out, requests=str(tmp_path / "bad.csv"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 of 7 requests are invalid:"
    assert lines[1] == "line 7: request_id 'ones' repeats line 2"
    for reason in ("count must be at least 1", "label 7 is unknown", "guidance must be a finite", "sampler 'euler'"):
        assert reason in lines[2]
    assert not (tmp_path / "samples").exists()


def test_a_model_without_label_dropout_is_not_guided(tmp_path):
    uri = str(tmp_path / "run")
    write_model(uri, config(model={"num_classes": 3}))
    (tmp_path / "a.csv").write_text("request_id,count,guidance\na,1,2\n")
    with pytest.raises(DataError, match=r"line 2: guidance 2: .* was trained without label dropout"):
        generate(config(), uri, str(tmp_path / "samples"), requests=str(tmp_path / "a.csv"))
    with pytest.raises(ConfigError, match="the request table has the labels"):
        generate(config(generate={"labels": "0:1"}), uri, str(tmp_path / "s"), requests=str(tmp_path / "a.csv"))
    assert not (tmp_path / "samples").exists()


def test_only_what_is_missing_is_made(made, model, tmp_path):
    """The copy of the table is all that a second invocation has."""
    result, _ = made
    source, job = resolve(result["uri"], StorageConfig()), resolve(str(tmp_path / "samples"), StorageConfig())
    plan = read_plan(source)
    kept = [plan.requests.file.key, "plan.json", *(m.key for m in read_manifest(source).shards[:3])]
    kept += [f"commits/shard-{i:09d}.json" for i in range(3)]
    for key in kept:
        job.put(key, source.read(key))
    finished = generate(config(ray={"workers": 1}), model, job.uri)
    assert (finished["images"], finished["samples"]) == (6, 46)
    assert [row["sha256"] for row in rows(job.uri)] == [row["sha256"] for row in rows(source.uri)]
