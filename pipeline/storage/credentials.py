"""Remove credentials from URIs before a message, log or document shows them."""

import re

_USER = re.compile(r"(?<=//)[^/\s]+@")
_SECRET = re.compile(
    r"(?<=[?&;])([\w.%-]*(?:signature|sig|token|secret|credential|password|accesskey)[\w.%-]*)=[^&;\s]*", re.I
)


def without_credentials(text: str) -> str:
    """`text` with the user part and the signed query values of every URI replaced by ***."""
    return _SECRET.sub(r"\1=***", _USER.sub("***@", text))
