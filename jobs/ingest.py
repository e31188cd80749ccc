"""`ddpm ingest --source S --dataset URI`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.ingest.driver import ingest

    return ingest(call.config, call.arguments.source, call.arguments.dataset, dry_run=call.dry_run)


VERB = Verb(
    name="ingest",
    purpose="Turn images into a dataset: shuffled Parquet shards and a manifest.",
    arguments=(
        Argument(
            "--source",
            "images, Parquet, tar, zip, npz or IDX (a file or a folder of them), a list of images, or 'digits'",
            required=True,
        ),
        Argument("--dataset", "URI of the dataset's folder", required=True),
        Argument("--image-size", "height and width of the stored images, pixels", path="ingest.image_size"),
        Argument("--channels", "1 is grey, 3 is RGB", path="ingest.channels"),
        Argument("--max-reject-share", "a larger share of bad rows ends with exit 3", path="ingest.max_reject_share"),
    ),
    run=_run,
)
