"""`ddpm report URI...`, `ddpm report --runs RUN RUN ...`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "report",
    "Write one self-contained HTML page about runs, samples, datasets and nights, beside the first URI.",
    Argument("uris", "URIs of runs, samples folders, datasets and nights", required=True, nargs="*"),
    Argument("--runs", "URIs of runs to compare; the positional URIs are then their samples folders", nargs="+"),
    Argument("--verify", "verify all URIs first and show the result on the page", switch=True),
    Argument("--out", "URI of a second copy of the page"),
)
def run(call: Call) -> Result:
    from pipeline.report.driver import compare, report

    given, config = call.arguments, call.config
    if given.runs:
        return compare(config, given.runs, given.uris, out=given.out, dry_run=call.dry_run)
    return report(config, given.uris, out=given.out, dry_run=call.dry_run, check=given.verify)
