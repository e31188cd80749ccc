"""`ddpm generate --model URI --out URI --num-samples N --seed S`"""

from jobs.command import Argument, Call, Result, verb


@verb(
    "generate",
    "Draw samples from a model, each exactly once. The same command resumes an interrupted job.",
    Argument("--model", "a run, a checkpoint, a diffusers folder or REGISTRY@champion", required=True),
    Argument("--out", "URI of the samples folder: created, or completed", required=True),
    Argument("--num-samples", "number of images", path="generate.num_samples"),
    Argument("--requests", "URI of a table (.parquet, .csv, .jsonl) of requests, instead of --num-samples"),
    Argument("--format", "parquet or webdataset (tar)", path="generate.format"),
    Argument("--seed", "seed of the noise", path="generate.seed"),
)
def run(call: Call) -> Result:
    from pipeline.generation.driver import generate

    given = call.arguments
    return generate(call.config, given.model, given.out, dry_run=call.dry_run, requests=given.requests)
