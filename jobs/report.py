"""`ddpm report URI...`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.stages.report import report

    return report(call.config, call.arguments.uris, out=call.arguments.out, dry_run=call.dry_run)


VERB = Verb(
    name="report",
    purpose="Put runs, samples and datasets on one HTML page that needs nothing else, beside the first of them.",
    arguments=(
        Argument("uris", "URIs of runs, samples folders and datasets", required=True, nargs="*"),
        Argument("--out", "a further file to write the page to"),
    ),
    run=_run,
)
