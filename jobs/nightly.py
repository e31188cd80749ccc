"""`ddpm nightly --root URI --source S --date D`"""

from jobs.command import Argument, Call, Result, verb
from pipeline.config.nightly import as_date
from pipeline.errors import ConfigError


@verb(
    "nightly",
    "Run one night: ingest new images, train from the champion, evaluate, promote or hold.",
    Argument("--root", "storage root of datasets, runs, models, samples and ledgers", path="nightly.root"),
    Argument("--date", "YYYY-MM-DD (default: today in nightly.time_zone)"),
    Argument("--source", "images to ingest, as for ddpm ingest", path="nightly.source"),
    Argument("--name", "name of dataset, models and nights under the root", path="nightly.name"),
)
def run(call: Call) -> Result:
    from pipeline.evaluation.driver import evaluate
    from pipeline.generation.driver import generate
    from pipeline.ingest.driver import ingest
    from pipeline.model_store.export import export
    from pipeline.nightly.driver import nightly
    from pipeline.nightly.night_stages import Drivers, NightStages
    from pipeline.report.driver import report
    from pipeline.storage.store import resolve
    from pipeline.training.driver import train

    given, config, root = call.arguments, call.config, call.config.nightly.root
    if root is None:
        raise ConfigError("ddpm nightly needs --root (nightly.root): the storage root")
    try:
        day = None if given.date is None else as_date(given.date)
    except ValueError as error:
        raise ConfigError(f"--date: {error}") from error
    drivers = Drivers(ingest, train, export, generate, evaluate, report)
    return nightly(config, root, NightStages(config, resolve(root, config.storage), drivers), day, dry_run=call.dry_run)
