"""Settings of the object store."""

import os
from typing import ClassVar, Self

from pydantic import Field, model_validator

from pipeline.config.base import ExtendedSection


def _endpoint_from_environment() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


class StorageConfig(ExtendedSection):
    """Access to the object store. Credentials come from the environment or the instance role, never from here."""

    added: ClassVar[frozenset[str]] = frozenset({"anonymous", "requester_pays"})

    endpoint: str | None = Field(
        default_factory=_endpoint_from_environment,
        description="S3 endpoint URL; unset: AWS (default: $AWS_ENDPOINT_URL_S3, then $AWS_ENDPOINT_URL)",
    )
    region: str = Field("us-east-1", description="S3 region")
    verify_tls: bool = Field(True, description="verify the endpoint's TLS certificate")
    connect_timeout_seconds: float = Field(10.0, gt=0, description="time limit for opening a connection, seconds")
    read_timeout_seconds: float = Field(
        60.0, gt=0, description="time limit for a reply, seconds; a conditional write under contention needs several"
    )
    retries: int = Field(5, ge=0, description="repeats of a request after a transient failure; 0: none")
    outage_seconds: float = Field(
        600.0, ge=0, description="how long training waits for an unreachable store before it fails, seconds"
    )
    anonymous: bool = Field(
        False, description="send S3 requests without credentials, to read a public bucket; applies to every s3:// URI"
    )
    requester_pays: bool = Field(
        False, description="accept the charges of buckets whose reader pays (header x-amz-request-payer: requester)"
    )

    @model_validator(mode="after")
    def _someone_pays(self) -> Self:
        if self.anonymous and self.requester_pays:
            raise ValueError(
                "storage.anonymous and storage.requester_pays exclude each other: the charges go to the account of the"
                " credentials, so set one of the two"
            )
        return self
