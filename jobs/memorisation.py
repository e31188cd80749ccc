"""`ddpm memorisation --samples URI --dataset URI`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "memorisation",
    "Search the training split for near-copies of samples; held-out real images are the baseline.",
    Argument("--samples", "URI of samples made by ddpm generate", required=True),
    Argument("--dataset", "URI of the dataset that the model was trained on", required=True),
    Argument("--num-samples", "samples to search for, by id (default 10000)", path="memorisation.num_samples"),
)
def run(call: Call) -> Result:
    from pipeline.evaluation.memorisation.driver import memorisation

    return memorisation(call.config, call.arguments.samples, call.arguments.dataset, dry_run=call.dry_run)
