"""`ddpm explore --mode MODE --model URI --out URI`"""

from jobs.command import Argument, Call, Result, Verb


def _run(call: Call) -> Result:
    from pipeline.analysis.explore import explore

    given = call.arguments
    return explore(call.config, given.model, given.out, given.dataset, dry_run=call.dry_run)


VERB = Verb(
    name="explore",
    purpose="Show a model between noise and image: predictions on the way, interpolations, rate and distortion.",
    arguments=(
        Argument("--mode", "progressive, interpolate, shared, rate-distortion or frechet", path="explore.mode"),
        Argument("--model", "a run, a checkpoint, a diffusers folder or REGISTRY@champion", required=True),
        Argument("--out", "URI of a folder for MODE.png, MODE.parquet and MODE.html", required=True),
        Argument("--dataset", "rate-distortion, frechet: the dataset that the model was trained on"),
        Argument("--ids", "sample ids, such as 0,1 (interpolate: two, shared: one)", path="explore.ids"),
        Argument("--num-images", "rate-distortion, frechet: how many images", path="explore.num_images"),
    ),
    run=_run,
)
