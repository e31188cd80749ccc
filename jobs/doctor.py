"""`ddpm doctor [--root URI] [--address A]`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "doctor",
    "Check cluster, store and working directory; one line a check: ok, warn or fail, with the remedy.",
    Argument("--root", "storage root that jobs will use"),
)
def run(call: Call) -> Result:
    from pipeline.operations.doctor import doctor

    return doctor(call.config, call.arguments.root)
