"""The server's reply decides the error class, and whether a conditional write may be repeated."""

import botocore.exceptions as boto
import pytest

from pipeline.config.storage import StorageConfig
from pipeline.errors import AlreadyExists, Denied, MissingBucket, NotFound, StorageError, Transient
from pipeline.storage.s3_errors import has_no_effect, is_missing_object, translated

pytestmark = pytest.mark.unit

WHERE = "http://host:1"
CONFIG = StorageConfig(endpoint=WHERE)


def _wrapped(code: str, status: int) -> OSError:
    """As s3fs raises it: an OSError whose cause is the reply."""
    error = OSError("whatever")
    response = {"Error": {"Code": code, "Message": "hush"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error.__cause__ = boto.ClientError(response, "PutObject")
    return error


@pytest.mark.parametrize(
    ("code", "status", "expected", "says"),
    [
        ("NoSuchKey", 404, NotFound, "no object s3://bucket/key"),
        ("404", 404, NotFound, "no object s3://bucket/key"),
        (
            "NoSuchBucket",
            404,
            MissingBucket,
            "bucket 'bucket' does not exist at http://host:1: create it or correct the URI",
        ),
        ("PreconditionFailed", 412, AlreadyExists, "exists already"),
        ("AccessDenied", 403, Denied, "check AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", 403, Denied, "SignatureDoesNotMatch"),
        ("ExpiredToken", 400, Denied, "check AWS_ACCESS_KEY_ID"),
        ("SlowDown", 503, Transient, "run again later"),
        ("InternalError", 500, Transient, "run again later"),
        ("TooManyRequests", 429, Transient, "run again later"),
        ("ConditionalRequestConflict", 409, Transient, "run again later"),
        ("RequestTimeout", 400, Transient, "run again later"),
        ("PermanentRedirect", 301, StorageError, "storage.region"),
        ("AuthorizationHeaderMalformed", 400, StorageError, "storage.region"),
        ("NotImplemented", 501, StorageError, "501 NotImplemented"),
        ("InvalidRequest", 400, StorageError, "400 InvalidRequest"),
    ],
)
def test_replies(code: str, status: int, expected: type, says: str):
    for error in (_wrapped(code, status), _wrapped(code, status).__cause__):
        found = translated(error, "bucket/key", CONFIG)
        assert type(found) is expected
        assert says in str(found)
        assert "hush" not in str(found)
        assert "\n" not in str(found)


def test_lost_connections_are_transient_and_program_bugs_are_not_translated():
    for error in (
        boto.EndpointConnectionError(endpoint_url=WHERE),
        boto.ReadTimeoutError(endpoint_url=WHERE),
        boto.ConnectionClosedError(endpoint_url=WHERE),
        TimeoutError(),
        ConnectionResetError(),
    ):
        assert type(translated(error, "bucket/key", CONFIG)) is Transient
    assert type(translated(boto.NoCredentialsError(), "bucket/key", CONFIG)) is Denied
    assert type(translated(boto.SSLError(endpoint_url=WHERE, error="x"), "bucket/key", CONFIG)) is StorageError
    assert translated(TypeError("bytes please"), "bucket/key", CONFIG) is None


def test_the_advice_on_refused_access_names_the_setting_that_may_help():
    anonymous = StorageConfig(endpoint=WHERE, anonymous=True)
    pays = StorageConfig(endpoint=WHERE, requester_pays=True)
    for code in ("AccessDenied", "403"):
        assert "storage.requester_pays=true" in str(translated(_wrapped(code, 403), "bucket/key", CONFIG))
        assert "storage.requester_pays" not in str(translated(_wrapped(code, 403), "bucket/key", pays))
        refused = translated(_wrapped(code, 403), "bucket/key", anonymous)
        assert type(refused) is Denied
        assert "storage.anonymous=true sends no credentials" in str(refused)
        assert "to write" in str(refused)
    assert "requester_pays" not in str(translated(_wrapped("SignatureDoesNotMatch", 403), "bucket/key", CONFIG))
    assert "storage.anonymous=true" in str(translated(boto.NoCredentialsError(), "bucket/key", CONFIG))
    assert "AWS (us-east-1) refused" in str(
        translated(_wrapped("AccessDenied", 403), "bucket/key", StorageConfig(endpoint=None))
    )


def test_a_conditional_write_is_repeated_only_if_it_cannot_have_happened():
    assert has_no_effect(boto.EndpointConnectionError(endpoint_url=WHERE))
    assert has_no_effect(boto.ConnectTimeoutError(endpoint_url=WHERE))
    assert has_no_effect(_wrapped("SlowDown", 503))
    assert has_no_effect(_wrapped("ConditionalRequestConflict", 409))
    for error in (
        boto.ReadTimeoutError(endpoint_url=WHERE),
        boto.ConnectionClosedError(endpoint_url=WHERE),
        TimeoutError(),
        _wrapped("InternalError", 500),
    ):
        assert not has_no_effect(error)


def test_only_the_object_counts_as_a_missing_object():
    assert is_missing_object(_wrapped("NoSuchKey", 404))
    assert is_missing_object(_wrapped("404", 404))
    assert not is_missing_object(_wrapped("NoSuchBucket", 404))
    assert not is_missing_object(_wrapped("AccessDenied", 403))
    assert not is_missing_object(None)
