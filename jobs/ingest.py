"""`ddpm ingest --source S --dataset URI`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "ingest",
    "Turn images into a dataset: shuffled Parquet shards and a manifest.",
    Argument(
        "--source",
        "URI of a folder, zip, tar, Parquet, Arrow, npz, IDX, CIFAR or LMDB of images, a list of images, or 'digits'",
        required=True,
    ),
    Argument("--dataset", "URI of the dataset's folder", required=True),
    Argument("--image-size", "height and width of the stored images, pixels", path="ingest.image_size"),
    Argument("--channels", "1: grey, 3: RGB", path="ingest.channels"),
    Argument("--max-reject-share", "largest share of rejects; above: exit code 3", path="ingest.max_reject_share"),
)
def run(call: Call) -> Result:
    from pipeline.ingest.driver import ingest

    return ingest(call.config, call.arguments.source, call.arguments.dataset, dry_run=call.dry_run)
