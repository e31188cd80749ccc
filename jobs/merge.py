"""`ddpm merge --out URI SAMPLES SAMPLES ...`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.generation.merge import merge

    return merge(call.config, call.arguments.out, call.arguments.jobs, dry_run=call.dry_run)


VERB = Verb(
    name="merge",
    purpose="Copy finished samples folders into one, each sample once. The same command resumes.",
    arguments=(
        Argument("--out", "URI of the merged folder: created, or completed", required=True),
        Argument("jobs", "URIs of samples made by ddpm generate", required=True, nargs="*"),
    ),
    run=_run,
)
