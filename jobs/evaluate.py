"""`ddpm evaluate --samples URI --dataset URI`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "evaluate",
    "Score samples, beside a floor (held-out real images) and two ceilings (blurred real images, noise).",
    Argument("--samples", "URI of samples made by ddpm generate", required=True),
    Argument("--dataset", "URI of the dataset that the model was trained on", required=True),
    Argument("--num-images", "images on each side (default: as many as exist)", path="evaluate.num_images"),
)
def run(call: Call) -> Result:
    from pipeline.evaluation.driver import evaluate

    return evaluate(call.config, call.arguments.samples, call.arguments.dataset, dry_run=call.dry_run)
