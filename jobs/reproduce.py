"""`ddpm reproduce --samples URI --id K`"""

from jobs.command import Argument, Call, Result, Verb
from pipeline.errors import ConfigError


def _run(call: Call) -> Result:
    from pipeline.generation.reproduce import reproduce

    given = call.arguments
    if not given.id.isdecimal():
        raise ConfigError(f"--id must be a whole number (got {given.id})")
    return reproduce(call.config, given.samples, int(given.id), given.model)


VERB = Verb(
    name="reproduce",
    purpose="Make one stored sample again and compare it, to the bit on the same kind of machine.",
    arguments=(
        Argument("--samples", "URI of samples made by ddpm generate", required=True),
        Argument("--id", "which sample", required=True),
        Argument("--model", "where the model lies now (default: where it lay)"),
    ),
    run=_run,
)
