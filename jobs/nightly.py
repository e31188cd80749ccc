"""`ddpm nightly --root URI --source S --date D`"""

from jobs.command import Argument, Call, Result, Verb
from pipeline.config_nightly import as_date
from pipeline.errors import ConfigError


def _run(call: Call) -> Result:
    from pipeline.stages.evaluate import evaluate
    from pipeline.stages.export import export
    from pipeline.stages.generate import generate
    from pipeline.stages.ingest import ingest
    from pipeline.stages.night_work import Actions, NightWork
    from pipeline.stages.nightly import nightly
    from pipeline.stages.report import report
    from pipeline.stages.train import train
    from pipeline.storage.store import resolve

    given, config, root = call.arguments, call.config, call.config.nightly.root
    if root is None:
        raise ConfigError("ddpm nightly needs --root (nightly.root): where everything is kept")
    try:
        day = None if given.date is None else as_date(given.date)
    except ValueError as error:
        raise ConfigError(f"--date: {error}") from error
    work = NightWork(config, resolve(root, config.storage), Actions(ingest, train, export, generate, evaluate, report))
    return nightly(config, root, work, day, dry_run=call.dry_run)


VERB = Verb(
    name="nightly",
    purpose="One night: what is new becomes data, a model trains from the champion, and takes its place or not.",
    arguments=(
        Argument("--root", "storage root of datasets, runs, models, samples and ledgers", path="nightly.root"),
        Argument("--date", "YYYY-MM-DD (default: today in nightly.time_zone)"),
        Argument("--source", "images, as for ddpm ingest", path="nightly.source"),
        Argument("--name", "of dataset, models and nights under the root", path="nightly.name"),
    ),
    run=_run,
)
