"""`ddpm models URI`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "models",
    "List the versions of a model, and all promotions with reason and metrics.",
    Argument("registry", "URI of the registry, such as s3://bucket/models/NAME", required=True, nargs="?"),
)
def run(call: Call) -> Result:
    from pipeline.nightly.promote import models

    return models(call.config, call.arguments.registry)
