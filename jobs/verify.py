"""`ddpm verify URI`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.operations.verify import verify

    return verify(call.config, call.arguments.uri)


VERB = Verb(
    name="verify",
    purpose="Check a dataset, run, checkpoint, samples, registry or nights against its manifest.",
    arguments=(Argument("uri", "URI of the artefact", required=True, nargs="?"),),
    run=_run,
)
