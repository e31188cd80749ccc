"""`ddpm export --run URI --out URI`"""

from jobs.command import Argument, Call, Result, verb
from pipeline.errors import ConfigError


@verb(
    "export",
    "Write a checkpoint's weights as a diffusers folder for DDPMPipeline.from_pretrained.",
    Argument("--run", "URI of a run (its latest checkpoint) or of a checkpoint", required=True),
    Argument("--out", "URI of the model's folder: created, or completed", required=True),
    Argument("--step", "step of the checkpoint (default: the latest)"),
    Argument("--ema", "weights: an EMA profile by name, or 'raw'", path="generate.weights"),
)
def run(call: Call) -> Result:
    from pipeline.model_store.export import export

    step = call.arguments.step
    if step is not None and not step.isdecimal():
        raise ConfigError(f"--step must be a whole number (got {step})")
    return export(
        call.config, call.arguments.run, call.arguments.out, None if step is None else int(step), dry_run=call.dry_run
    )
