"""`ddpm promote --model REGISTRY@challenger ...`"""

from jobs.command import Argument, Call, Result, verb
from pipeline.errors import ConfigError


@verb(
    "promote",
    "Make a version champion: by the gate (--samples --dataset --against), or by decision (--reason).",
    Argument("--model", "REGISTRY@challenger, REGISTRY@NUMBER, or REGISTRY@URI of a run to register", required=True),
    Argument("--reason", "reason of a person's decision; stored in the record"),
    Argument("--samples", "URI of the model's evaluated samples"),
    Argument("--against", "URI of the champion's evaluated samples, with the same seed and number"),
    Argument("--dataset", "URI of the dataset that both were evaluated on"),
)
def run(call: Call) -> Result:
    from pipeline.model_store.export import export
    from pipeline.nightly.promote import GateInputs, promote

    given = call.arguments
    by = None
    if given.samples or given.against or given.dataset:
        if not (given.samples and given.dataset):
            raise ConfigError("the gate needs --samples and --dataset, and --against when there is a champion")
        by = GateInputs(given.dataset, given.samples, given.against)
    return promote(call.config, given.model, export, given.reason, by)
