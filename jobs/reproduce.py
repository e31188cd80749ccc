"""`ddpm reproduce --samples URI --id K`"""

from jobs.command import Argument, Call, Result, verb
from pipeline.errors import ConfigError


@verb(
    "reproduce",
    "Generate one stored sample again and compare: bit-equal on the same kind of machine.",
    Argument("--samples", "URI of samples made by ddpm generate", required=True),
    Argument("--id", "sample id", required=True),
    Argument("--model", "URI of the model now (default: its URI in the plan)"),
)
def run(call: Call) -> Result:
    from pipeline.generation.reproduce import reproduce

    given = call.arguments
    if not given.id.isdecimal():
        raise ConfigError(f"--id must be a whole number (got {given.id})")
    return reproduce(call.config, given.samples, int(given.id), given.model)
