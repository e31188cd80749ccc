"""`ddpm doctor [--root URI] [--address A]`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.operations.doctor import doctor

    return doctor(call.config, call.arguments.root)


VERB = Verb(
    name="doctor",
    purpose="Check cluster, store and working directory; one line a check: ok, warn or fail, with the remedy.",
    arguments=(Argument("--root", "storage root that jobs will use"),),
    run=_run,
)
