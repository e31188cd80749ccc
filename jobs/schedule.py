"""`ddpm schedule run` and `ddpm schedule render --target T`"""

from jobs.command import Argument, Call, Result, verb
from pipeline.errors import ConfigError


@verb(
    "schedule",
    "Run the command of the `schedule` section on schedule (run), or render it for another scheduler (render).",
    Argument("action", "run or render", required=True, nargs="?"),
    Argument("--target", "systemd, cron, k8s-cronjob, raycronjob or airflow (render)"),
    Argument("--out", "local folder for the files (render; default: stdout)"),
)
def run(call: Call) -> Result:
    from pipeline.operations.schedule import render, run_here

    if call.arguments.action == "render":
        return render(call.config.schedule, call.arguments.target, call.arguments.out)
    if call.arguments.action == "run":
        return run_here(call.config.schedule, dry_run=call.dry_run)
    raise ConfigError(f"ddpm schedule {call.arguments.action}: must be run or render")
