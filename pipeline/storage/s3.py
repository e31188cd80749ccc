"""Objects in an S3-compatible store.

All calls go through s3fs as single requests, so that the server's error code decides the error class; `pa_fs` is
Arrow's own client with the same settings. Only this module retries s3fs requests: a retry inside the library could
repeat a conditional write whose first reply was lost, and report AlreadyExists for the object just written.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec.asyn
import s3fs

from pipeline.config.storage import StorageConfig
from pipeline.errors import AlreadyExists, NotFound, StorageError
from pipeline.storage.retry import is_transient, limited, retry
from pipeline.storage.s3_errors import has_no_effect, is_missing_object, is_past_the_end, translated
from pipeline.storage.s3_listing import Level, keys_in_order

T = TypeVar("T")

_FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS = 0.2, 10.0
_SLOWEST_BYTES_A_SECOND = 256 * 1024  # an upload below this counts as stalled
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
_CA_BUNDLE = "AWS_CA_BUNDLE"

_backends: dict[tuple[int, StorageConfig], tuple[int, "S3Backend"]] = {}


def backend_for(config: StorageConfig) -> "S3Backend":
    """The client of this process for `config`. A fork or changed credentials need a new client."""
    identity = hash(tuple(os.environ.get(name) for name in _CREDENTIALS))
    key = (os.getpid(), config)
    found = _backends.get(key)
    if found is None or found[0] != identity:
        found = _backends[key] = (identity, S3Backend(config))
    return found[1]


class _Client(s3fs.S3FileSystem):  # type: ignore[misc]
    """Makes no folders, which a bucket does not have, and no buckets, which s3fs does where it finds none."""

    def mkdir(self, path: str, acl: bool = False, create_parents: bool = True, **kwargs: Any) -> None:
        if not _split(self._strip_protocol(path).rstrip("/"))[1]:
            raise PermissionError(f"bucket '{path}' is not created here: create it with the store's own tools")


class S3Backend:
    """Paths are "bucket/key"; the version of an object is its ETag."""

    def __init__(self, config: StorageConfig) -> None:
        self._config = config
        self._known_buckets: set[str] = set()

    @cached_property
    def _fs(self) -> s3fs.S3FileSystem:
        config = self._config
        style = "path" if config.endpoint else "auto"  # the same choice as Arrow's client
        filesystem = _Client(
            anon=config.anonymous,
            requester_pays=config.requester_pays,
            endpoint_url=config.endpoint,
            client_kwargs={"region_name": config.region, "verify": None if config.verify_tls else False},
            config_kwargs={
                "connect_timeout": config.connect_timeout_seconds,
                "read_timeout": config.read_timeout_seconds,
                "retries": {"total_max_attempts": 1},
                "s3": {"addressing_style": style},
            },
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        filesystem.retries = 1
        return filesystem

    @cached_property
    def pa_fs(self) -> Any:
        import pyarrow.fs

        config = self._config
        if config.requester_pays or not config.verify_tls:  # Arrow's client has neither setting
            return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._fs))
        endpoint = urlsplit(config.endpoint or "https://")
        return pyarrow.fs.S3FileSystem(
            anonymous=config.anonymous,
            endpoint_override=endpoint.netloc + endpoint.path.rstrip("/") or None,
            scheme=endpoint.scheme,
            region=config.region,
            connect_timeout=config.connect_timeout_seconds,
            request_timeout=config.read_timeout_seconds,
            allow_bucket_creation=False,
            retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=config.retries + 1),
            tls_ca_file_path=os.environ.get(_CA_BUNDLE),
        )

    def read_versioned(self, path: str) -> tuple[bytes, str]:
        return self._get(path)

    def read_range(self, path: str, start: int, count: int) -> bytes:
        try:
            return self._get(path, Range=f"bytes={start}-{start + count - 1}")[0]
        except StorageError as error:
            if is_past_the_end(error.__cause__):
                return b""
            raise

    def _get(self, path: str, **part: str) -> tuple[bytes, str]:
        bucket, key = _split(path)

        async def get() -> tuple[bytes, str]:
            reply = await self._fs._call_s3("get_object", Bucket=bucket, Key=key, **part)
            async with reply["Body"] as body:
                return await body.read(), reply["ETag"]

        def request() -> tuple[bytes, str]:
            data, version = fsspec.asyn.sync(self._fs.loop, get)
            return data, version

        return self._call(path, request)

    def put(self, path: str, data: bytes) -> None:
        self._call(path, lambda: self._put(path, data))

    def create_once(self, path: str, data: bytes) -> str:
        return self._call(path, lambda: self._put(path, data, IfNoneMatch="*"), conditional=True)

    def compare_and_swap(self, path: str, data: bytes, expected: str) -> str:
        try:
            return self._call(path, lambda: self._put(path, data, IfMatch=expected), conditional=True)
        except (AlreadyExists, NotFound) as error:
            if isinstance(error, NotFound) and not is_missing_object(error.__cause__):
                raise
            raise AlreadyExists(f"s3://{path} was changed by another writer: read it again") from error

    def size(self, path: str) -> int | None:
        bucket, key = _split(path)

        def head() -> int | None:
            try:
                return int(self._fs.call_s3("head_object", Bucket=bucket, Key=key)["ContentLength"])
            except OSError as error:
                if not is_missing_object(error):
                    raise
            if bucket not in self._known_buckets:  # a 404 to HEAD may mean a missing key or a missing bucket
                self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
            return None

        found = self._call(path, head)
        self._known_buckets.add(bucket)
        return found

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        bucket, start = _split(prefix)
        for key, size, *_ in keys_in_order(lambda *args: self._page(bucket, *args), start):
            yield f"{bucket}/{key}", size

    def list_versioned(self, prefix: str) -> Iterator[tuple[str, int, str]]:
        bucket, start = _split(prefix)
        for key, size, *etag in keys_in_order(lambda *args: self._page(bucket, *args), start):
            yield f"{bucket}/{key}", size, "".join(etag)

    def delete(self, path: str) -> None:
        bucket, key = _split(path)
        self._call(path, lambda: self._fs.call_s3("delete_object", Bucket=bucket, Key=key))

    def _page(self, bucket: str, prefix: str, delimiter: str, token: str | None) -> Level:
        more = {"ContinuationToken": token} if token else {}
        reply = self._call(
            f"{bucket}/{prefix}",
            lambda: self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter=delimiter, **more),
        )
        return Level(
            keys=[(item["Key"], int(item["Size"]), str(item["ETag"])) for item in reply.get("Contents", [])],
            folders=[item["Prefix"] for item in reply.get("CommonPrefixes", [])],
            token=reply.get("NextContinuationToken") if reply.get("IsTruncated") else None,
            server=reply["ResponseMetadata"]["HTTPHeaders"].get("server", ""),
        )

    def _put(self, path: str, data: bytes, **condition: str) -> str:
        """Write in one request, so atomically, with a checksum that the server verifies; the new ETag."""
        bucket, key = _split(path)
        config = self._config
        # aiohttp starts its read timeout after the body is sent, so a server that stalls earlier needs its own limit.
        limit = config.connect_timeout_seconds + config.read_timeout_seconds + len(data) / _SLOWEST_BYTES_A_SECOND

        async def send() -> Any:
            await self._fs.set_session()  # outside the time limit: slow the first time, whatever the server does
            async with asyncio.timeout(limit):
                return await self._fs._call_s3("put_object", Bucket=bucket, Key=key, Body=data, **condition)

        return str(fsspec.asyn.sync(self._fs.loop, send)["ETag"])

    def _call(self, path: str, request: Callable[[], T], *, conditional: bool = False) -> T:
        """`request` with retries. A conditional request is repeated only after an error that proves it had no effect.

        Raises StorageError.
        """

        def send() -> T:
            try:
                return request()
            except Exception as error:
                failure = translated(error, path, self._config)
                if failure is None:
                    raise
                raise failure from error

        def repeatable(failure: Exception) -> bool:
            return is_transient(failure) and (not conditional or has_no_effect(failure.__cause__))

        return retry(send, limited(self._config.retries, _FIRST_DELAY_SECONDS, _LONGEST_DELAY_SECONDS, repeatable))


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key
