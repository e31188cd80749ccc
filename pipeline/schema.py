"""Arrow schemas of all stored Parquet tables.

Tables with images carry Hugging Face `features` metadata, so `datasets.load_dataset("parquet")` yields PIL images.
"""

import json
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1
"""Increase this number when a stored table changes in a way that an older reader would misread."""

STATUS_OK = "ok"
STATUS_FAILED = "failed"

IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""An encoded image file and its original name."""


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
        pa.field("image", IMAGE),  # never null, but declared nullable: `datasets` decodes only nullable image fields
        pa.field("label", pa.int32()),  # index into the manifest's class names
        pa.field("width", pa.int32(), nullable=False),  # pixels
        pa.field("height", pa.int32(), nullable=False),  # pixels
        pa.field("sha256", pa.string(), nullable=False),  # of the uint8 pixels, row-major [H, W, C]
    ]
)

REJECTS = pa.schema(
    [
        pa.field("source", pa.string(), nullable=False),  # file, archive member or table row of the image
        pa.field("reason", pa.string(), nullable=False),  # one of pipeline.images.reject_reasons.REASONS
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
"""Samples of a samples folder that was generated from a request table."""

REQUESTS = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),  # samples
        pa.field("label", pa.int32()),  # null: every class in turn, or an unconditional model
        pa.field("guidance", pa.float64()),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),
        pa.field("sampler", pa.string(), nullable=False),
        pa.field("extra", pa.string()),
    ]
)
"""The request table as stored beside the plan: validated, with defaults filled in."""

EXPLORED = _with_features(
    [
        pa.field("row", pa.int32(), nullable=False),  # of the sheet
        pa.field("column", pa.int32(), nullable=False),
        pa.field("image", IMAGE),
        pa.field("sample_id", pa.int64(), nullable=False),
        pa.field("t", pa.int32(), nullable=False),  # timestep index: of the last step done, or of the first step
        pa.field("label", pa.int32()),
        pa.field("other_id", pa.int64()),  # the second sample of an interpolation
        pa.field("share", pa.float64()),  # interpolation weight of that second sample, 0..1
        pa.field("noise_id", pa.int64()),  # sample id whose noise was added after t
    ]
)
"""One row a picture of `ddpm explore`, modes progressive, interpolate and shared."""

RATE_DISTORTION = pa.schema(
    [
        pa.field("t", pa.int32(), nullable=False),  # timestep index of the x_t that the receiver holds
        pa.field("reverse_time", pa.int32(), nullable=False),  # T - t, as in table 4 of Ho et al. 2020
        pa.field("rate", pa.float64(), nullable=False),  # bits/dim sent so far: L_T and the terms of T-1..t+1
        pa.field("distortion", pa.float64(), nullable=False),  # RMSE of the predicted x_0, grey levels 0..255
        pa.field("term", pa.float64(), nullable=False),  # bits/dim of timestep t alone; L_0 at t = 0
        pa.field("images", pa.int64(), nullable=False),  # number of held-out images behind the means
    ]
)
"""One row a timestep, from T-1 down to 0: `ddpm explore --mode rate-distortion`."""

PREVIEWS = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),  # sampling steps done
        pa.field("t", pa.int32(), nullable=False),  # timestep index of the last step done
        pa.field("metric", pa.string(), nullable=False),  # FD-<extractor>
        pa.field("fd", pa.float64(), nullable=False),  # of the predicted x_0; in the last row, of the finished sample
        pa.field("floor", pa.float64(), nullable=False),  # Frechet distance of n held-out real images
        pa.field("n", pa.int64(), nullable=False),
        pa.field("reference_n", pa.int64(), nullable=False),  # training images
        pa.field("extractor", pa.string(), nullable=False),
        pa.field("weights_sha256", pa.string(), nullable=False),
    ]
)
"""One row a number of sampling steps: `ddpm explore --mode frechet`."""

METRICS = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),  # optimiser steps taken
        pa.field("images", pa.int64(), nullable=False),  # training images seen
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),  # mean over the global batch
        pa.field("lr", pa.float64(), nullable=False),
        pa.field("grad_norm", pa.float64(), nullable=False),  # before clipping
        pa.field("step_seconds", pa.float64(), nullable=False),
        pa.field("data_wait_seconds", pa.float64(), nullable=False),  # part of step_seconds spent waiting for data
        pa.field("world_size", pa.int32(), nullable=False),
        pa.field("skew_seconds", pa.float64()),  # longest minus shortest compute time of a rank, all-reduce excluded
        pa.field("slowest_rank", pa.int32()),  # rank of that longest time
        pa.field("loss_by_t", pa.list_(pa.float64())),  # MSE in ten equal ranges of t; null: no image in the range
    ]
)
"""One row an optimiser step that the run logged."""

SWEEP = pa.schema(
    [
        pa.field("sampler", pa.string(), nullable=False),
        pa.field("steps", pa.int32(), nullable=False),
        pa.field("ema", pa.string(), nullable=False),  # which weights of the checkpoint
        pa.field("eta", pa.float64(), nullable=False),
        pa.field("guidance", pa.float64()),
        pa.field("seed", pa.uint64(), nullable=False),  # equal in all rows, like the sample ids: common random numbers
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("failed", pa.int64(), nullable=False),  # samples with status "failed"; excluded from all scores
        pa.field("evaluations", pa.int64(), nullable=False),  # network evaluations for one sample
        # Frechet distances between the training split and n images each: samples, held-out images, two ceilings.
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
        # Measured while all actors worked; null when the shard log is lost.
        pa.field("img_s", pa.float64()),  # images a second of all actors together
        pa.field("actors", pa.int32()),  # actors that worked at once, one CPU or GPU each
        pa.field("actor_seconds", pa.float64()),  # actors / img_s: actor time for one image
        pa.field("point", pa.string(), nullable=False),  # samples folder, relative to the sweep's folder
        pa.field("plan", pa.string(), nullable=False),  # fingerprint of the generation plan
        pa.field("evaluation", pa.string(), nullable=False),  # id of the evaluation
    ]
)
"""One row a point of the `ddpm sweep` grid."""
