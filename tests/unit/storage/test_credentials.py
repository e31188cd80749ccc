"""No message, log or document shows a credential of a URI."""

import pytest

from pipeline.storage.credentials import without_credentials

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://me:pass@host/x.png", "https://***@host/x.png"),
        ("ftp://me:p@ss@host/x.png", "ftp://***@host/x.png"),
        (
            "https://h/x?X-Amz-Credential=AK%2F1&X-Amz-Signature=ab&v=1",
            "https://h/x?X-Amz-Credential=***&X-Amz-Signature=***&v=1",
        ),
        ("https://h/x?token=1;sig=2", "https://h/x?token=***;sig=***"),
        ("s3://bucket/a@b/c d?.png", "s3://bucket/a@b/c d?.png"),
        ("/home/me/signature=1/x", "/home/me/signature=1/x"),
    ],
)
def test_no_credentials_in_names(given, shown):
    assert without_credentials(given) == shown
