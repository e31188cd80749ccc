"""`ddpm explore --mode MODE --model URI --out URI`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "explore",
    "Look inside a model: denoising steps, interpolations, shared latents, rate-distortion curve.",
    Argument("--mode", "progressive, interpolate, shared, rate-distortion or frechet", path="explore.mode"),
    Argument("--model", "a run, a checkpoint, a diffusers folder or REGISTRY@champion", required=True),
    Argument("--out", "URI of a folder for MODE.png, MODE.parquet and MODE.html", required=True),
    Argument("--dataset", "URI of the training dataset (rate-distortion, frechet)"),
    Argument("--ids", "sample ids, such as 0,1 (interpolate: two; shared: one)", path="explore.ids"),
    Argument("--num-images", "number of images (rate-distortion, frechet)", path="explore.num_images"),
)
def run(call: Call) -> Result:
    from pipeline.analysis.explore import explore

    given = call.arguments
    return explore(call.config, given.model, given.out, given.dataset, dry_run=call.dry_run)
