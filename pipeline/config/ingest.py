"""The settings of `ddpm ingest`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.config.base import Section

__all__ = ["IngestConfig"]


def _as_int(value: Any) -> Any:
    """A flag's text to a number, so that Literal can compare it."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


class IngestConfig(Section):
    """From source images to shuffled Parquet shards."""

    image_size: int = Field(32, ge=1, le=4096, description="height and width of the stored images, pixels")
    channels: Annotated[Literal[1, 3], BeforeValidator(_as_int)] = Field(3, description="1 is grey, 3 is RGB")
    fit: Literal["crop", "pad", "stretch"] = Field(
        "crop", description="to a square: cut the longer side's ends, add background to the shorter's, or distort"
    )
    background: int = Field(255, ge=0, le=255, description="grey level under transparent pixels and of padding")
    animation: Literal["first", "reject"] = Field("first", description="of several frames: keep the first, or none")
    duplicates: Literal["keep-first", "keep-all", "reject"] = Field(
        "keep-first", description="of images with equal pixels: the first in the source's order, all, or none"
    )
    label_map: dict[str, str | None] | str | None = Field(
        None, description="new name by label (null: no label), or a JSON or YAML file of it; others are rejected"
    )
    image_column: str | None = Field(None, description="of tables; unset: found by its type")
    label_column: str | None = Field(None, description="of tables; unset: found by its type or name")
    heldout_share: float = Field(0.1, ge=0, lt=1, description="share kept from training, chosen by content hash")
    shard_rows: int = Field(1024, ge=1, description="images a shard; a shard is the unit that a training lane reads")
    shard_bytes: int = Field(
        128 * 2**20, ge=1, description="shards of large images have fewer rows, to stay about here"
    )
    row_group_rows: int = Field(256, ge=1, le=1000, description="fewer where they would take more than 32 MiB")
    partition_rows: int = Field(2000, ge=1, description="source images handled by one task")
    min_size: int = Field(1, ge=1, description="images with a shorter side, pixels, are rejected")
    max_image_pixels: int = Field(89_478_485, ge=1, description="larger images are rejected before decoding")
    max_image_bytes: int = Field(64 * 2**20, ge=1, description="larger files are rejected before reading")
    max_frames: int = Field(10_000, ge=1, description="images with more frames are rejected")
    max_decode_seconds: float = Field(30.0, gt=0, description="of processor time for one image; slower: rejected")
    max_reject_share: float = Field(1.0, ge=0, le=1, description="a larger share of rejects ends the job with exit 3")
    seed: int = Field(0, ge=0, description="key of the shuffle at write time")
