"""The settings of `ddpm ingest`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from pipeline.config.base import Section

LabelSource = Literal["auto", "none", "folders", "dataset.json", "metadata", "column", "cls", "json", "text", "arrays"]


def _as_int(value: Any) -> Any:
    """Convert the text of a flag to a number: Literal[1, 3] accepts no text."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _none_as_text(value: Any) -> Any:
    """On the command line "none" means no value; of these settings it is a value."""
    return "none" if value is None else value


class IngestConfig(Section):
    """Conversion of source images to shuffled Parquet shards of equal image size."""

    image_size: int = Field(32, ge=1, le=4096, description="height and width of the stored images, pixels")
    channels: Annotated[Literal[1, 3], BeforeValidator(_as_int)] = Field(
        3, description="colour channels of the stored images: 1 is grey, 3 is RGB"
    )
    fit: Literal["crop", "pad", "stretch"] = Field(
        "crop",
        description="how an image becomes square: crop the longer side to its centre, pad the shorter side, or stretch",
    )
    background: int = Field(
        255, ge=0, le=255, description="grey level of padding and behind transparent pixels; 0 is black, 255 white"
    )
    animation: Literal["first", "reject"] = Field(
        "first", description="images of several frames: keep the first frame, or reject the image"
    )
    colour: Literal["convert", "keep"] = Field(
        "convert",
        description="images with an embedded colour profile: convert their pixels to sRGB, or keep the numbers",
    )
    duplicates: Literal["keep-first", "keep-all", "reject"] = Field(
        "keep-first", description="images with equal pixels: keep the first in source order, keep all, or reject all"
    )
    label_map: dict[str, str | None] | str | None = Field(
        None,
        description="new class name by source label (null: no label), or the path of a JSON or YAML file that holds "
        "the mapping; images with other labels are rejected",
    )
    image_column: str | None = Field(None, description="image column of table sources; unset: found by its type")
    label_column: str | None = Field(None, description="label column of table sources; unset: found by type or name")
    label_source: Annotated[LabelSource, BeforeValidator(_none_as_text)] = Field(
        "auto",
        description="where labels come from: auto, none, folders, dataset.json, metadata (.jsonl, .csv), column, "
        "cls, json or text (files of a WebDataset), arrays",
    )
    splits: Annotated[
        Literal["auto", "pool", "none"] | dict[str, Literal["train", "heldout", "out"]], BeforeValidator(_none_as_text)
    ] = Field(
        "auto",
        description="named splits (train, val, test) of the source: auto trains on train and holds out val, else test; "
        "pool ignores them; none takes their names for classes; or a mapping to train, heldout or out",
    )
    heldout_share: float = Field(
        0.1, ge=0, lt=1, description="share of images held out from training, chosen by content hash, without splits"
    )
    shard_rows: int = Field(1024, ge=1, description="images of a shard; a training lane reads shard by shard")
    shard_bytes: int = Field(
        128 * 2**20, ge=1, description="approximate upper size of a shard, bytes; large images: fewer than shard_rows"
    )
    row_group_rows: int = Field(
        256, ge=1, le=1000, description="images of a Parquet row group; fewer where a group would exceed 32 MiB"
    )
    partition_rows: int = Field(2000, ge=1, description="source images that one Ray task processes")
    min_size: int = Field(1, ge=1, description="images with a side below this are rejected, pixels")
    max_image_pixels: int = Field(
        89_478_485, ge=1, description="images of more pixels (width x height) are rejected before decoding"
    )
    max_image_bytes: int = Field(64 * 2**20, ge=1, description="larger files are rejected before reading, bytes")
    max_frames: int = Field(10_000, ge=1, description="images of more frames are rejected")
    max_decode_seconds: float = Field(
        30.0, gt=0, description="CPU time limit for decoding one image, seconds; slower images are rejected"
    )
    max_reject_share: float = Field(
        1.0, ge=0, le=1, description="a larger share of rejected images ends the command with exit 3"
    )
    seed: int = Field(0, ge=0, description="seed of the shuffle of the stored images")
