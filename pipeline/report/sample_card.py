"""The README.md beside a job's samples: a Hugging Face dataset card that says what made them."""

from pipeline.manifests import SampleManifest, SamplePlan

__all__ = ["sample_card"]

_SAMPLERS = {"ddpm": "ancestral sampling", "ddim": "DDIM"}


def sample_card(plan: SamplePlan, manifest: SampleManifest) -> str:
    """Markdown with front matter; equal jobs give equal cards."""
    sampler = f"{_SAMPLERS.get(plan.sampler, plan.sampler)}, {plan.steps} steps"
    if plan.sampler == "ddim":
        sampler += f", eta {plan.eta:g}"
    if plan.sampler == "ddpm":
        sampler += f", variance {plan.variance}"
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files: data/*.parquet",
        "task_categories: [unconditional-image-generation]",
        "---",
        "",
        f"# {manifest.rows:,} generated images",
        "",
        f"{plan.image_size} x {plan.image_size} x {plan.channels}, sampled from a denoising diffusion model. "
        f"No photograph is among them; {manifest.failed:,} could not be made and have status `failed` and no image.",
        "",
        "| | |",
        "|---|---|",
        f"| sampler | {sampler} |",
        f"| seed | {plan.seed} |",
        f"| weights | {plan.weights} |",
        f"| classes | {plan.num_classes or 'none'} |",
        f"| model digest | `{plan.model_digest}` |",
        f"| plan | `{manifest.plan}` |",
        "",
        "`manifest.json` names every file with its sha256; `ddpm verify` on this folder proves them. Each row says",
        "what made it; a sample's noise is a function of (seed, sample_id) only.",
        "",
        "```python",
        'datasets.load_dataset("parquet", data_files="data/*.parquet")  # column `image` holds PIL images',
        "```",
        "",
    ]
    return "\n".join(lines)
