"""`ddpm rollback --registry URI --reason TEXT`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "rollback",
    "Make the previous champion champion again.",
    Argument("--registry", "URI of the registry, such as s3://bucket/models/NAME", required=True),
    Argument("--reason", "reason; stored in the record", required=True),
    Argument("--version", "version of an earlier champion (default: the previous one)", kind=int),
)
def run(call: Call) -> Result:
    from pipeline.nightly.promote import rollback

    given = call.arguments
    return rollback(call.config, given.registry, given.version, given.reason)
