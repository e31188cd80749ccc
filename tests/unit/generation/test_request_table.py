"""Request table files: three equivalent formats, line numbers as in an editor, unreadable files."""

import dataclasses
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_samples import sample_plan

from pipeline.errors import ConfigError, DataError, VerificationFailed
from pipeline.generation.commit import create_plan, join_plan, read_plan
from pipeline.generation.manifest import RequestTable
from pipeline.generation.request_table import load_requests, read_source, request_file
from pipeline.generation.requests import BadRow, RequestRules, normalise_requests
from pipeline.storage.files import parquet_bytes

ROWS = [{"request_id": "a", "count": 3, "note": "x"}, {"request_id": "b", "count": 2, "note": "y, z"}]
RULES = RequestRules(None, 100, None, "ddim", 10, 7, None)


def as_csv(rows):
    return "request_id,count,note\n" + "".join(f'{r["request_id"]},{r["count"]},"{r["note"]}"\n' for r in rows)


def as_jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def put(store, name, content):
    store.put(name, content if isinstance(content, bytes) else content.encode())
    return store.location(name)


def rows(store, name, content):
    return list(read_source(put(store, name, content), store.config).rows())


def checked(store, name, content):
    source = read_source(put(store, name, content), store.config)
    return normalise_requests(source.rows(), source.unit, RULES)


def test_the_three_formats_say_the_same(store):
    parquet = parquet_bytes(pa.Table.from_pylist(ROWS), 10)
    tables = [checked(store, "a.csv", as_csv(ROWS)), checked(store, "a.jsonl", as_jsonl(ROWS))]
    tables += [checked(store, "a.parquet", parquet), checked(store, "without-ending", parquet)]
    assert all(table.equals(tables[0]) for table in tables)
    assert tables[0]["count"].to_pylist() == [3, 2]
    assert json.loads(tables[0]["extra"][1].as_py()) == {"note": "y, z"}


PANDAS = "request_id,count,label,steps\na,2,3.0,2.0\nb,2,,2.0\nc,2.0,1.0,\n"
"""A data frame writes floats in a column of whole numbers with an empty cell."""


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "parquet-nulls"])
def test_a_data_frame_s_floats_and_empty_cells_read_alike_in_every_format(store, kind):
    nan = None if kind == "parquet-nulls" else float("nan")
    columns = {
        "request_id": ["a", "b", "c"],
        "count": [2, 2, 2],
        "label": [3.0, nan, 1.0],
        "steps": [2.0, 2.0, nan],
    }
    contents = {
        "csv": PANDAS,
        "jsonl": "".join(
            json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True)
        ),
    }
    content = contents.get(kind) or parquet_bytes(pa.table(columns), 10)
    source = read_source(put(store, f"a.{kind.partition('-')[0]}", content), store.config)
    found = normalise_requests(source.rows(), source.unit, dataclasses.replace(RULES, num_classes=4))
    assert found["count"].to_pylist() == [2, 2, 2]
    assert found["label"].to_pylist() == [3, None, 1]
    assert found["steps"].to_pylist() == [2, 2, 10]


@pytest.mark.parametrize(("name", "says"), [("a.csv", "line 3"), ("a.jsonl", "line 2"), ("a.parquet", "row 2")])
def test_half_a_step_is_refused_with_row_and_column(store, name, says):
    rows = [{"request_id": "a", "count": 1, "steps": 2.0}, {"request_id": "b", "count": 1, "steps": 2.5}]
    csv = "request_id,count,steps\na,1,2.0\nb,1,2.5\n"
    contents = {"a.csv": csv, "a.jsonl": as_jsonl(rows), "a.parquet": parquet_bytes(pa.Table.from_pylist(rows), 10)}
    with pytest.raises(DataError, match=rf"{says}: steps must be a whole number \(got '?2\.5'?\)"):
        checked(store, name, contents[name])


def test_a_json_line_with_a_name_twice_is_refused(store):
    found = rows(store, "a.jsonl", '{"request_id": "a", "count": 1, "count": 2}\n')
    assert found == [(1, BadRow("holds count twice"))]


def test_numbers_are_those_of_the_file(store):
    csv = '\ufeffrequest_id,count\na,1\n\n"b\nc",1\nd,1,9\n'
    assert [number for number, _ in rows(store, "a.csv", csv)] == [2, 4, 6]
    assert rows(store, "a.csv", csv)[2][1] == BadRow("has 3 values for 2 columns")
    jsonl = '{"request_id": "a", "count": 1}\n\n[1]\n{oh\n'
    found = rows(store, "a.jsonl", jsonl)
    assert [number for number, _ in found] == [1, 3, 4]
    assert found[1][1] == BadRow("is list, not an object")
    assert found[2][1].reason.startswith("is not JSON")
    assert [n for n, _ in rows(store, "a.parquet", parquet_bytes(pa.Table.from_pylist(ROWS), 1))] == [1, 2]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", "count,label\n1,0\n", "column request_id is missing; the columns are count, label"),
        ("a.csv", "", "column request_id and count is missing; the columns are none"),
        ("a.csv", "request_id,count,count\na,1,1\n", "column count occurs more than once"),
        ("a.csv", b"request_id,count\n\xff\xfe,1\n", "cannot be read as csv"),
        ("a.csv", 'request_id,count\n"a,1\n', "cannot be read as csv"),
        ("a.parquet", b"PAR1 and no more", "cannot be read as parquet"),
        ("a.txt", "hello", "give .parquet, .csv or .jsonl"),
    ],
)
def test_what_is_no_table_is_said_in_one_line(store, name, content, reason):
    with pytest.raises(DataError) as caught:
        rows(store, name, content)
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there(store):
    with pytest.raises(DataError, match="no request table at"):
        read_source(store.location("nothing.csv"), store.config)
    with pytest.raises(ConfigError, match="names no file"):
        read_source(f"{store.uri}/", store.config)


def requested(store, content=None):
    """A plan of the requests, and the file that it names."""
    source = read_source(put(store, "a.jsonl", content or as_jsonl(ROWS)), store.config)
    entry, data = request_file(normalise_requests(source.rows(), source.unit, RULES))
    return sample_plan(
        num_samples=5, requests=RequestTable(source_sha256=source.sha256, rows=2, shards=2, file=entry)
    ), data


def test_the_copy_lies_beside_the_plan_and_is_proven_when_it_is_read(store):
    plan, data = requested(store)
    job = store.child("job")
    assert create_plan(job, plan, data) == read_plan(job) == plan
    assert load_requests(job, plan).starts.tolist() == [0, 3, 5]
    assert load_requests(job, sample_plan()) is None
    assert create_plan(job, plan, data) == plan
    job.put(plan.requests.file.key, data[:-1])
    with pytest.raises(VerificationFailed):
        load_requests(job, plan)


def test_a_copy_written_by_another_program_is_joined_and_other_requests_are_refused(store):
    """Parquet writers differ between versions; what was asked for is the source."""
    plan, data = requested(store)
    job = store.child("job")
    create_plan(job, plan, data)
    file = plan.requests.file.model_copy(update={"sha256": "0" * 64, "key": "requests/other.parquet"})
    other = plan.model_copy(update={"requests": plan.requests.model_copy(update={"file": file})})
    assert other.fingerprint == plan.fingerprint
    assert join_plan(job, other) == plan
    changed, _ = requested(store, as_jsonl(reversed(ROWS)))
    with pytest.raises(ConfigError, match="requests sha256"):
        join_plan(job, changed)
    assert pq.read_table(pa.BufferReader(job.read(plan.requests.file.key))).num_rows == 2
