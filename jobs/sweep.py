"""`ddpm sweep --model URI --dataset URI --out URI --samplers ddim,heun --steps 10,20 --ema ema`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "sweep",
    "Measure quality against cost for every combination of sampler, steps and weights: a table and a page.",
    Argument("--model", "URI of a run (its latest checkpoint), a checkpoint or a diffusers folder", required=True),
    Argument("--dataset", "URI of the dataset that the model was trained on", required=True),
    Argument("--out", "URI of the sweep's folder: created, or completed", required=True),
    Argument("--samplers", "such as ddim,dpm++2m,heun", path="sweep.samplers"),
    Argument("--steps", "such as 10,20,50", path="sweep.steps"),
    Argument("--ema", "EMA profiles by name, or raw, such as ema,raw", path="sweep.ema"),
    Argument("--num-samples", "images of each combination", path="generate.num_samples"),
    Argument("--seed", "seed of the noise, shared by all combinations", path="generate.seed"),
    Argument("--num-images", "images on each side of a score (default: as many as exist)", path="evaluate.num_images"),
)
def run(call: Call) -> Result:
    from pipeline.analysis.sweep import describe_sweep, open_sweep, run_sweep
    from pipeline.evaluation.driver import evaluate
    from pipeline.generation.driver import generate

    given = call.arguments
    sweep = open_sweep(call.config, given.model, given.dataset, given.out)
    return describe_sweep(sweep) if call.dry_run else run_sweep(sweep, generate, evaluate)
