"""`ddpm merge --out URI SAMPLES SAMPLES ...`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "merge",
    "Copy finished samples folders into one, each sample once. The same command resumes.",
    Argument("--out", "URI of the merged folder: created, or completed", required=True),
    Argument("jobs", "URIs of samples made by ddpm generate", required=True, nargs="*"),
)
def run(call: Call) -> Result:
    from pipeline.generation.merge import merge

    return merge(call.config, call.arguments.out, call.arguments.jobs, dry_run=call.dry_run)
