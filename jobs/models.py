"""`ddpm models URI`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.nightly.promote import models

    return models(call.config, call.arguments.registry)


VERB = Verb(
    name="models",
    purpose="List the versions of a model, and all promotions with reason and metrics.",
    arguments=(Argument("registry", "URI of the registry, such as s3://bucket/models/NAME", required=True, nargs="?"),),
    run=_run,
)
