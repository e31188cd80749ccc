"""Buckets of other owners on a real server: public ones, read without credentials, and those whose reader pays."""

import json
import pickle
import uuid
from collections.abc import Iterator

import botocore.session
import pytest
from botocore.config import Config as ClientConfig
from s3_server import SeaweedServer

from pipeline.config.storage import StorageConfig
from pipeline.errors import Denied
from pipeline.storage.store import Store, resolve
from proxy import HttpProxy

pytestmark = pytest.mark.s3

PAYS = "x-amz-request-payer: requester"


@pytest.fixture
def public(s3_environment: SeaweedServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a bucket that everybody may read and list, with two objects; the process has no credentials."""
    bucket = f"public-{uuid.uuid4().hex[:8]}"
    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=s3_environment.endpoint,
        region_name="us-east-1",
        config=ClientConfig(s3={"addressing_style": "path"}),
    )
    client.create_bucket(Bucket=bucket)
    everybody = {
        "Effect": "Allow",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [everybody]}))
    for key in ("a/1", "a/2"):
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    return f"s3://{bucket}"


@pytest.fixture
def line(seaweed: SeaweedServer) -> Iterator[HttpProxy]:
    with HttpProxy("127.0.0.1", int(seaweed.endpoint.rpartition(":")[2])) as proxy:
        yield proxy


def _read_everything(store: Store) -> None:
    """Every reading request of a store, also through Arrow's client and after pickling."""
    assert store.read("a/1") == b"a/1"
    assert store.read_range("a/1", 1, 1) == b"/"
    assert (store.size("a/2"), store.exists("a/2"), store.exists("a/3")) == (3, True, False)
    assert [entry.key for entry in store.list()] == ["a/1", "a/2"]
    assert [entry.size for entry in store.list_versioned("a/")] == [3, 3]
    for filesystem in (store.pa_fs, pickle.loads(pickle.dumps(store.pa_fs))):
        with filesystem.open_input_file(store.path("a/1")) as file:
            assert file.read() == b"a/1"


def test_a_public_bucket_is_read_without_credentials_and_writes_are_refused(public: str, line: HttpProxy):
    store = resolve(public, StorageConfig(endpoint=line.endpoint, anonymous=True))
    _read_everything(store)
    assert line.heads
    assert "authorization:" not in "".join(line.heads).lower()
    for write in (
        lambda: store.put("key", b"1"),
        lambda: store.create_once("key", b"1"),
        lambda: store.compare_and_swap("a/1", b"1", store.read_versioned("a/1")[1]),
        lambda: store.delete("a/1"),
    ):
        with pytest.raises(Denied, match=r"storage\.anonymous=true sends no credentials.*to write"):
            write()
    _read_everything(store)


def test_without_the_setting_the_message_names_it(public: str):
    with pytest.raises(Denied, match=r"storage\.anonymous=true to read a public bucket"):
        resolve(public, StorageConfig()).read("a/1")


def test_credentials_at_hand_are_not_sent_with_anonymous(public: str, seaweed: SeaweedServer, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "no-such-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-0123456789")
    _read_everything(resolve(public, StorageConfig(anonymous=True)))
    private = resolve(seaweed.uri, StorageConfig(anonymous=True))
    for read in (lambda: private.read("key"), lambda: private.exists("key"), lambda: list(private.list())):
        with pytest.raises(Denied, match=r"storage\.anonymous=true .* reads public objects only"):
            read()


def test_every_request_accepts_the_charges_with_requester_pays(s3_uri: str, line: HttpProxy):
    plain = resolve(s3_uri, StorageConfig(endpoint=line.endpoint))
    for key in ("a/1", "a/2"):
        plain.put(key, key.encode())
    _read_everything(plain)
    assert PAYS not in "".join(line.heads).lower()
    line.heads.clear()
    payer = resolve(s3_uri, StorageConfig(endpoint=line.endpoint, requester_pays=True))
    _read_everything(payer)
    payer.compare_and_swap("a/1", b"new", payer.read_versioned("a/1")[1])
    payer.create_once("a/3", b"1")
    payer.put("a/3", b"2")
    payer.delete("a/3")
    payer.pa_fs.create_dir(payer.path("folder"))
    with pytest.raises(OSError, match="not created here"):
        payer.pa_fs.create_dir("no-such-bucket")
    assert {head.split()[0] for head in line.heads} == {"GET", "HEAD", "PUT", "DELETE"}
    assert [head for head in line.heads if PAYS not in head.lower()] == []
