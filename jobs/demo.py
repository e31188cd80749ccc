"""`ddpm demo`: the whole pipeline on handwritten digits, from images to report.html"""

from pathlib import Path

from jobs.command import Argument, Call, Result, verb


@verb(
    "demo",
    "Run the whole pipeline on 1,797 handwritten digits; a few minutes on two CPU cores.",
    Argument("--root", "storage root (default: ./demo-output)"),
    Argument("--source", "other images, as for ddpm ingest; give a matching --recipe (default: digits)"),
    recipe="digits",
)
def run(call: Call) -> Result:
    from pipeline.cluster import cluster
    from pipeline.evaluation.driver import evaluate
    from pipeline.generation.driver import generate
    from pipeline.ingest.driver import ingest
    from pipeline.operations.verify import verify
    from pipeline.report.driver import report
    from pipeline.training.driver import train

    config, source = call.config, call.arguments.source or "digits"
    root = call.arguments.root or str(Path("demo-output").resolve())
    dataset, run, samples = (f"{root}/{kind}/{Path(source).name}" for kind in ("datasets", "runs", "samples"))
    results = {}
    with cluster(config.ray, config.ray.max_workers + 2):
        results["ingest"] = ingest(config, source, dataset)
        results["train"] = train(config, dataset, run)
        results["generate"] = generate(config, run, samples)
        results["verify"] = verify(config, samples)
        results["evaluate"] = evaluate(config, samples, dataset)
        results["report"] = report(config, [run, samples], verified=results["verify"]["summary"])
    return {**results, "summary": "\n".join(["", *(result["summary"] for result in results.values())])}
