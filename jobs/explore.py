"""`ddpm explore --mode MODE --model URI --out URI`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.stages.explore import explore

    return explore(call.config, call.arguments.model, call.arguments.out, dry_run=call.dry_run)


VERB = Verb(
    name="explore",
    purpose="Show a model between noise and image: predictions on the way, interpolations, what a latent decides.",
    arguments=(
        Argument("--mode", "progressive, interpolate or shared", path="explore.mode"),
        Argument("--model", "a run, a checkpoint, a diffusers folder or REGISTRY@champion", required=True),
        Argument("--out", "URI of a folder for MODE.png and MODE.parquet", required=True),
        Argument("--ids", "sample ids, such as 0,1 (interpolate: two, shared: one)", path="explore.ids"),
    ),
    run=_run,
)
