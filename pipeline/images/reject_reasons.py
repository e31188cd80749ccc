"""The fixed list of reasons why ingest rejects an image or a source file."""

from typing import Final, Literal, NamedTuple, get_args

Reason = Literal[
    # location and container
    "missing",  # listed, but absent at reading time
    "unreadable",  # the store refused the read: permissions, a damaged disk
    "unsafe-name",  # an absolute name, "..", or a path outside the source
    "unsafe-member",  # an archive member that is not a file: a link, a device, ...
    "nested-archive",  # an archive inside an archive or among images
    "damaged-container",  # a truncated or damaged tar, zip, Parquet, npz or list file
    "wrong-schema",  # a Parquet file, list or archive without an image column
    # file content
    "empty",  # no bytes, or null
    "too-many-bytes",  # encoded size over ingest.max_image_bytes
    "not-an-image",
    "truncated",
    "decode-error",
    "unsupported-mode",  # pixel values without a known range
    "too-large",  # more pixels than ingest.max_image_pixels
    "too-small",  # a side shorter than ingest.min_size
    "too-many-frames",  # more than ingest.max_frames
    "animated",  # more than one frame, where ingest.animation is "reject"
    "too-slow",  # more CPU time than ingest.max_decode_seconds
    "too-much-memory",  # more than the decoder's memory limit
    "decoder-crashed",  # the decoder process died on this image
    # label and pixels
    "unknown-label",  # a label that ingest.label_map does not name
    "duplicate",  # pixels equal to those of another image
]

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)


class Reject(NamedTuple):
    """A rejected image: the reason, and a detail for the user."""

    reason: Reason
    detail: str
