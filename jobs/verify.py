"""`ddpm verify URI`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "verify",
    "Check a dataset, run, checkpoint, samples, registry or nights against its manifest.",
    Argument("uri", "URI of the artefact", required=True, nargs="?"),
)
def run(call: Call) -> Result:
    from pipeline.operations.verify import verify

    return verify(call.config, call.arguments.uri)
