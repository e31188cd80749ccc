"""`ddpm evaluate --samples URI --dataset URI`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.evaluation.driver import evaluate

    return evaluate(call.config, call.arguments.samples, call.arguments.dataset, dry_run=call.dry_run)


VERB = Verb(
    name="evaluate",
    purpose="Score samples, beside a floor (held-out real images) and two ceilings (blurred real images, noise).",
    arguments=(
        Argument("--samples", "URI of samples made by ddpm generate", required=True),
        Argument("--dataset", "URI of the dataset that the model was trained on", required=True),
        Argument("--num-images", "images on each side (default: as many as exist)", path="evaluate.num_images"),
    ),
    run=_run,
)
