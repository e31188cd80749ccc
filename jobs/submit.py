"""`ddpm submit [--detach] [--again] [--date D] VERB ...`"""

from importlib import import_module

from jobs.command import Argument, Call, Result, Verb, as_job, execute, verb
from pipeline.errors import ConfigError


@verb(
    "submit",
    "Run a verb as a job of a Ray cluster, once a day and configuration, and follow it to its exit code.",
    Argument("--detach", "do not follow the job", switch=True),
    Argument("--again", "run again after a success", switch=True),
    Argument("--date", "YYYY-MM-DD in the job's id (default: today in nightly.time_zone)"),
    passes_on=True,
)
def run(call: Call) -> Result:
    from jobs.__main__ import VERBS, unknown
    from pipeline.operations.submit import submit

    given, (name, *words) = call.arguments, call.rest or ("",)
    if not name:
        raise ConfigError("ddpm submit needs a verb and its flags, as in: ddpm submit --detach train --run R")
    if name not in VERBS or name in ("submit", "schedule", "demo"):
        raise ConfigError(f"ddpm {name} cannot be submitted" if name in VERBS else unknown(name))
    chosen: Verb = import_module(f"jobs.{name}").run
    if {"-h", "--help", "--print-config"} & set(words):
        return {"exit_code": execute(chosen, words)}
    words = [*([f"--submit.address={given.address}"] if given.address else []), *words]
    job = as_job(chosen, words)
    return submit(job, given.date, again=given.again, detach=given.detach, dry_run=call.dry_run)
