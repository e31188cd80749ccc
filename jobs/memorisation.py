"""`ddpm memorisation --samples URI --dataset URI`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.evaluation.memorisation.driver import memorisation

    return memorisation(call.config, call.arguments.samples, call.arguments.dataset, dry_run=call.dry_run)


VERB = Verb(
    name="memorisation",
    purpose="Search the training split for near-copies of samples; held-out real images are the baseline.",
    arguments=(
        Argument("--samples", "URI of samples made by ddpm generate", required=True),
        Argument("--dataset", "URI of the dataset that the model was trained on", required=True),
        Argument("--num-samples", "samples to search for, by id (default 10000)", path="memorisation.num_samples"),
    ),
    run=_run,
)
