"""Why an input row is not in the dataset: one fixed list of reasons, from listing to decoding."""

from typing import Final, Literal, NamedTuple, get_args

__all__ = ["REASONS", "Reason", "Reject"]

Reason = Literal[
    # where it lay
    "missing",  # listed, but gone when it was read
    "unreadable",  # the store refused it: permissions, a damaged disk
    "unsafe-name",  # an absolute name, "..", a place outside the source
    "unsafe-member",  # a link, device or other member of an archive that is no file
    "nested-archive",  # an archive inside an archive or among images
    "damaged-container",  # a tar, zip, Parquet, npz or list that ends or breaks before its end
    "wrong-schema",  # a Parquet file, list or archive without the columns that hold images
    # what it is
    "empty",  # no bytes, or null
    "too-many-bytes",  # encoded size over ingest.max_image_bytes
    "not-an-image",
    "truncated",
    "decode-error",
    "unsupported-mode",  # pixels that have no known range
    "too-large",  # more pixels than ingest.max_image_pixels
    "too-small",  # a side shorter than ingest.min_size
    "too-many-frames",  # more than ingest.max_frames
    "animated",  # more than one frame, where ingest.animation is "reject"
    "too-slow",  # more processor time than ingest.max_decode_seconds
    "too-much-memory",  # the decoder's memory limit
    "decoder-crashed",  # the codec took its process down
    # what it means
    "unknown-label",  # a label that ingest.label_map does not name
    "duplicate",  # pixels equal to those of another row
]

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)


class Reject(NamedTuple):
    """In place of an image: the reason, and what was seen there."""

    reason: Reason
    detail: str
