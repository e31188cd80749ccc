"""`ddpm report URI...`, `ddpm report --runs RUN RUN ...`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.report.driver import compare, report

    given, config = call.arguments, call.config
    if given.runs:
        return compare(config, given.runs, given.uris, out=given.out, dry_run=call.dry_run)
    return report(config, given.uris, out=given.out, dry_run=call.dry_run, check=given.verify)


VERB = Verb(
    name="report",
    purpose="Put runs, samples, datasets and nights on one HTML page that needs nothing else, beside the first.",
    arguments=(
        Argument("uris", "URIs of runs, samples folders, datasets and nights", required=True, nargs="*"),
        Argument("--runs", "runs to compare side by side; URIs are then samples whose scores count", nargs="+"),
        Argument("--verify", "verify everything first, and say on the page what came of it", switch=True),
        Argument("--out", "a further file to write the page to"),
    ),
    run=_run,
)
