"""`ddpm verify URI`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.operations.verify import verify

    return verify(call.config, call.arguments.uri)


VERB = Verb(
    name="verify",
    purpose="Prove a dataset, a run, a checkpoint, samples, a registry or nights from the store alone.",
    arguments=(Argument("uri", "URI of the artefact", required=True, nargs="?"),),
    run=_run,
)
