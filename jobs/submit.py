"""`ddpm submit [--detach] [--again] [--date D] VERB ...`"""

from importlib import import_module

from jobs.command import Argument, Call, Result, Verb, as_job, execute
from pipeline.errors import ConfigError


def _run(call: Call) -> Result:
    from jobs.__main__ import VERBS, unknown
    from pipeline.operations.submit import Options, submit

    given, (name, *words) = call.arguments, call.rest or ("",)
    if not name:
        raise ConfigError("ddpm submit needs a verb and its flags, as in: ddpm submit --detach train --run R")
    if name not in VERBS or name in ("submit", "schedule", "demo"):
        raise ConfigError(f"ddpm {name} cannot be submitted" if name in VERBS else unknown(name))
    verb: Verb = import_module(f"jobs.{name}").VERB
    if {"-h", "--help", "--print-config"} & set(words):
        return {"exit_code": execute(verb, words)}
    words = [*([f"--submit.address={given.address}"] if given.address else []), *words]
    return submit(as_job(verb, words), Options(given.date, given.again, given.detach, call.dry_run))


VERB = Verb(
    name="submit",
    purpose="Run a verb as a job of a Ray cluster, once a day and configuration, and follow it to its exit code.",
    arguments=(
        Argument("--detach", "do not follow the job", switch=True),
        Argument("--again", "run again after a success", switch=True),
        Argument("--date", "YYYY-MM-DD in the job's id (default: today in nightly.time_zone)"),
    ),
    run=_run,
    passes_on=True,
)
