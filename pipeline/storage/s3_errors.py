"""Translate errors of botocore, aiohttp and s3fs to the storage errors, by the server's error code and HTTP status.

Messages hold bucket, key, endpoint and error code. They leave out the server's text, which may quote a signed request.
"""

import asyncio
from typing import Any

import aiohttp
import botocore.exceptions as boto  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from pipeline.config.storage import StorageConfig
from pipeline.errors import AlreadyExists, Denied, MissingBucket, NotFound, StorageError, Transient

_DENIED_CODES = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired"}  # these come with status 400
_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
_TRANSIENT_CODES = {"RequestTimeout", "OperationAborted", "ConditionalRequestConflict"}
_TRANSIENT_STATUSES = {408, 409, 425, 429}
# The server refused the request before it did any work, so repeating a conditional write is safe.
_REFUSALS = {"SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "ConditionalRequestConflict"}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.ProfileNotFound,
)
_LOST = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    ResponseParserError,
    aiohttp.ClientError,
    asyncio.TimeoutError,
    ConnectionError,
)
_ACCESS_DENIED = {"AccessDenied", "403"}  # a reply to HEAD has no body, so its code is the status
_KEYS_ADVICE = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or the role) and the bucket's policy"
_PAYER_ADVICE = "; a bucket whose reader pays needs storage.requester_pays=true"
_ANONYMOUS_ADVICE = (
    "storage.anonymous=true sends no credentials, which reads public objects only;"
    " to write, or to read other objects, unset it and set AWS_ACCESS_KEY_ID and its secret"
)


def translated(error: Exception, path: str, config: StorageConfig) -> StorageError | None:
    """The storage error for `error` of a request for s3://`path` with settings `config`; None for a program bug."""
    where = config.endpoint or f"AWS ({config.region})"
    code, status = _reply(error)
    if status:
        return _by_reply(code, status, path, where) or _denied(code, path, where, config)
    if isinstance(error, _NO_CREDENTIALS):
        return Denied(
            f"no usable credentials for s3://{path} at {where}: set AWS_ACCESS_KEY_ID and its secret,"
            " or storage.anonymous=true to read a public bucket"
        )
    if isinstance(error, boto.SSLError):
        return StorageError(
            f"the certificate of {where} is not trusted: set AWS_CA_BUNDLE to its authority"
            " (storage.verify_tls=false skips the check)"
        )
    if isinstance(error, _LOST):
        return Transient(
            f"{where} gave no answer for s3://{path} ({type(error).__name__}):"
            " check storage.endpoint and the network, then run again"
        )
    if isinstance(error, boto.BotoCoreError | OSError):
        return StorageError(f"s3://{path} at {where}: {type(error).__name__}: check the storage settings")
    return None


def is_missing_object(error: BaseException | None) -> bool:
    """True when the server answered 404 for the object, not for the bucket."""
    code, status = _reply(error)
    return status == 404 and code != "NoSuchBucket"


def is_past_the_end(error: BaseException | None) -> bool:
    """True when the requested range begins at or after the end of the object (HTTP 416)."""
    return _reply(error)[1] == 416


def has_no_effect(error: BaseException | None) -> bool:
    """True when the request certainly changed nothing: no connection was made, or the server refused it unread."""
    code, _ = _reply(error)
    return code in _REFUSALS or isinstance(error, boto.EndpointConnectionError | boto.ConnectTimeoutError)


def _reply(error: BaseException | None) -> tuple[str, int]:
    """Error code and HTTP status of the reply, ("", 0) without a reply. s3fs keeps the original error as the cause."""
    source: Any = error if isinstance(error, boto.ClientError) else getattr(error, "__cause__", None)
    if not isinstance(source, boto.ClientError):
        return "", 0
    response: Any = source.response
    return str(response["Error"].get("Code", "")), int(response["ResponseMetadata"].get("HTTPStatusCode", 0))


def _denied(code: str, path: str, where: str, config: StorageConfig) -> Denied:
    if config.anonymous:
        advice = _ANONYMOUS_ADVICE
    else:
        advice = _KEYS_ADVICE + (_PAYER_ADVICE if code in _ACCESS_DENIED and not config.requester_pays else "")
    return Denied(f"{where} refused access to s3://{path} ({code}): {advice}")


def _by_reply(code: str, status: int, path: str, where: str) -> StorageError | None:
    """The storage error for a reply; None when it refuses access."""
    bucket = path.partition("/")[0]
    if code == "NoSuchBucket":
        return MissingBucket(f"bucket '{bucket}' does not exist at {where}: create it or correct the URI")
    if status == 404:
        return NotFound(f"no object s3://{path} at {where}: check the URI")
    if status == 412:
        return AlreadyExists(f"s3://{path} exists already at {where}")
    if code in _REGION_CODES or status in (301, 307):
        return StorageError(f"bucket '{bucket}' is in another region than storage.region says: correct it ({code})")
    if status in (401, 403) or code in _DENIED_CODES:
        return None
    if (status >= 500 and status != 501) or status in _TRANSIENT_STATUSES or code in _TRANSIENT_CODES:
        return Transient(f"{where} could not serve s3://{path} now ({status} {code}): run again later")
    return StorageError(f"{where} refused the request for s3://{path} ({status} {code}): check the storage settings")
