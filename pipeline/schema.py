"""Arrow schemas of every table at rest, with the Hugging Face features that make the image column an image."""

import json
from typing import Any

import pyarrow as pa

__all__ = [
    "DATASET",
    "EXPLORED",
    "IMAGE",
    "METRICS",
    "PREVIEWS",
    "RATE_DISTORTION",
    "REJECTS",
    "REQUESTED_SAMPLES",
    "REQUESTS",
    "SAMPLES",
    "SCHEMA_VERSION",
    "STATUS_FAILED",
    "STATUS_OK",
    "SWEEP",
]

SCHEMA_VERSION = 1
"""Raised when a table at rest changes in a way that an older reader would misread."""

STATUS_OK = "ok"
STATUS_FAILED = "failed"

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""An encoded image (PNG, or JPEG as it came) and the name it had."""


def _with_features(fields: list[pa.Field]) -> pa.Schema:
    def feature(field: pa.Field) -> dict[str, Any]:
        if field.type == IMAGE:
            return {"_type": "Image"}
        name = {pa.float64(): "float64", pa.float32(): "float32"}.get(field.type, str(field.type))
        return {"_type": "Value", "dtype": name}

    features = {field.name: feature(field) for field in fields}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


DATASET = _with_features(
    [
        pa.field("sample_id", pa.int64(), nullable=False),  # 0..rows-1 over the whole dataset, in shuffled order
        pa.field("image", IMAGE),  # never null, but `datasets` decodes only a field that says it may be
        pa.field("label", pa.int32()),  # index into the manifest's class names
        pa.field("width", pa.int32(), nullable=False),  # pixels
        pa.field("height", pa.int32(), nullable=False),  # pixels
        pa.field("sha256", pa.string(), nullable=False),  # of the uint8 pixels, row-major [H, W, C]
    ]
)

REJECTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),  # where the image was
        pa.field("reason", pa.string(), nullable=False),  # one of refusals.REASONS
        pa.field("detail", pa.string(), nullable=False),
    ]
)

SAMPLES = _with_features(
    [
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("image", IMAGE),  # null when status is "failed"
        pa.field("label", pa.int32()),
        pa.field("seed", pa.uint64(), nullable=False),
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("ema", pa.string(), nullable=False),  # which weights of the checkpoint
        pa.field("sampler", pa.string(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),  # network evaluations
        pa.field("eta", pa.float64(), nullable=False),
        pa.field("guidance", pa.float64()),
        pa.field("width", pa.int32(), nullable=False),  # pixels
        pa.field("height", pa.int32(), nullable=False),  # pixels
        pa.field("sha256", pa.string()),  # of the PNG bytes; null when status is "failed"
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
    ]
)

REQUESTED_SAMPLES = _with_features(
    [
        *SAMPLES,
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("extra", pa.string()),  # the request's further columns, a JSON object; null when there are none
    ]
)
"""Samples of a job that was given a request table."""

REQUESTS = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),  # samples
        pa.field("label", pa.int32()),  # null: every class in turn, or no classes
        pa.field("guidance", pa.float64()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),
        pa.field("sampler", pa.string(), nullable=False),
        pa.field("extra", pa.string()),
    ]
)
"""Requests as a job keeps them: checked, and every setting filled in."""

EXPLORED = _with_features(
    [
        pa.field("row", pa.int32(), nullable=False),  # of the sheet
        pa.field("column", pa.int32(), nullable=False),
        pa.field("image", IMAGE),
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("t", pa.int32(), nullable=False),  # timestep index: left last (progressive), or decoded from
        pa.field("label", pa.int32()),
        pa.field("other_id", pa.int64()),  # the second sample of an interpolation
        pa.field("share", pa.float64()),  # of the way to it
        pa.field("noise_id", pa.int64()),  # whose noise was added after t
    ]
)
"""Pictures of `ddpm explore`."""

RATE_DISTORTION = pa.schema(
    [
        pa.field("t", pa.int32(), nullable=False),  # timestep index whose x_t the receiver has
        pa.field("reverse_time", pa.int32(), nullable=False),  # T - t, as table 4 of the paper counts: 1 first
        pa.field("rate", pa.float64(), nullable=False),  # bits/dim sent so far: L_T and the terms of T-1..t+1
        pa.field("distortion", pa.float64(), nullable=False),  # RMSE of the predicted x_0, grey levels 0..255
        pa.field("term", pa.float64(), nullable=False),  # bits/dim: what t itself adds; L_0 at t = 0
        pa.field("images", pa.int64(), nullable=False),  # held-out images that all are means of
    ]
)
"""A row a timestep, from T-1 down to 0: `ddpm explore --mode rate-distortion`."""

PREVIEWS = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),  # sampling steps done
        pa.field("t", pa.int32(), nullable=False),  # timestep index that was left last
        pa.field("metric", pa.string(), nullable=False),  # FD-<extractor>
        pa.field("fd", pa.float64(), nullable=False),  # of the x_0 predicted there; after the last step of the sample
        pa.field("floor", pa.float64(), nullable=False),  # of n held-out real images
        pa.field("n", pa.int64(), nullable=False),
        pa.field("reference_n", pa.int64(), nullable=False),  # training images
        pa.field("extractor", pa.string(), nullable=False),
        pa.field("weights_sha256", pa.string(), nullable=False),
    ]
)
"""A row a number of steps: `ddpm explore --mode frechet`."""

METRICS = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),  # optimiser steps taken
        pa.field("images", pa.int64(), nullable=False),  # training images seen
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),  # mean over the global batch
        pa.field("lr", pa.float64(), nullable=False),
        pa.field("grad_norm", pa.float64(), nullable=False),  # before clipping
        pa.field("step_seconds", pa.float64(), nullable=False),
        pa.field("data_wait_seconds", pa.float64(), nullable=False),  # of step_seconds, spent waiting for the feed
        pa.field("world_size", pa.int32(), nullable=False),
        # Of the ranks' own work in the step, before they wait for each other: longest minus shortest, and whose.
        pa.field("skew_seconds", pa.float64()),
        pa.field("slowest_rank", pa.int32()),
        pa.field("loss_by_t", pa.list_(pa.float64())),  # plain MSE of tenths of 0..T-1; null where no image fell
    ]
)

SWEEP = pa.schema(
    [
        pa.field("sampler", pa.string(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),
        pa.field("ema", pa.string(), nullable=False),  # which weights of the checkpoint
        pa.field("eta", pa.float64(), nullable=False),
        pa.field("guidance", pa.float64()),
        pa.field("seed", pa.uint64(), nullable=False),  # equal in all rows, as are the sample ids: common noise
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),  # of samples; none of them is measured
        pa.field("evaluations", pa.int64(), nullable=False),  # images that the network is asked about, for one sample
        # Frechet distances to the training split of n images each: samples, held-out real ones, and the two ceilings.
        pa.field("metric", pa.string(), nullable=False),  # FD-<extractor>
        pa.field("fd", pa.float64(), nullable=False),
        pa.field("floor", pa.float64(), nullable=False),
        pa.field("blurred", pa.float64(), nullable=False),
        pa.field("noise", pa.float64(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("reference_n", pa.int64(), nullable=False),
        pa.field("extractor", pa.string(), nullable=False),
        pa.field("weights_sha256", pa.string(), nullable=False),  # of the extractor
        pa.field("kernel_metric", pa.string()),  # KD-<extractor>
        pa.field("kd", pa.float64()),
        pa.field("kd_spread", pa.float64()),  # standard deviation between random subsets
        # While all actors were at work; null when the shard log is lost.
        pa.field("img_s", pa.float64()),  # of all actors together
        pa.field("actors", pa.int32()),  # at work at once; one CPU or GPU each
        pa.field("actor_seconds", pa.float64()),  # actors / img_s: what one image costs
        pa.field("point", pa.string(), nullable=False),  # the samples' folder, relative to the sweep
        pa.field("plan", pa.string(), nullable=False),  # fingerprint of the samples' plan
        pa.field("evaluation", pa.string(), nullable=False),  # its id
    ]
)
"""A row a point of `ddpm sweep`."""
