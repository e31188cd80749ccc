"""README.md of a samples folder: a Hugging Face dataset card with the settings and code to read the images."""

from collections.abc import Iterator

from pipeline.generation.manifest import MergedManifest, SampleManifest, SamplePlan

_SAMPLERS = {"ddpm": "ancestral sampling", "ddim": "DDIM"}
_LOAD_PARQUET = """```python
import datasets, duckdb, polars

datasets.load_dataset("parquet", data_files="data/*.parquet", split="train")[0]["image"]  # a PIL image
duckdb.sql("SELECT status, count(*) FROM 'data/*.parquet' GROUP BY status")  # reads no pixels
polars.scan_parquet("data/*.parquet").select("sample_id", "label", "sha256").collect()
```"""
_LOAD_TAR = """```python
import glob, webdataset

for sample in webdataset.WebDataset(sorted(glob.glob("data/*.tar")), shardshuffle=False).decode("pil"):
    sample["png"], sample["json"]  # a PIL image; the other columns. Failed samples have no "png"
```"""


def sample_card(plan: SamplePlan, manifest: SampleManifest) -> str:
    """Markdown with YAML front matter; equal samples folders give equal cards."""
    tar = plan.format == "webdataset"
    size = sum(marker.bytes for marker in manifest.shards)
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        f"  data_files: data/*.{'tar' if tar else 'parquet'}",
        "task_categories: [unconditional-image-generation]",
        "---",
        "",
        f"# {manifest.rows:,} generated images",
        "",
        f"Synthetic images of {plan.image_size} x {plan.image_size} pixels and {plan.channels} channel(s), sampled "
        f"from a denoising diffusion model. Failed samples: {manifest.failed:,} (status `failed`, no image).",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(plan)),
        f"| files | {len(manifest.shards):,}, {size:,} bytes in total |",
        f"| model digest | `{plan.model_digest}` |",
        f"| plan | `{manifest.plan}` |",
        "",
        "## Reading the images",
        "",
        _LOAD_TAR if tar else _LOAD_PARQUET,
        "",
        "## Guarantees",
        "",
        "- Sample ids are 0 to N-1, each exactly once.",
        "- `manifest.json` lists every data file with its sha256; listed files never change. After an extension, the",
        "  highest-numbered manifest is the current one.",
        "- Before the manifest exists, only files named by a marker in `commits/` are valid.",
        "- `ddpm verify` checks the folder against the manifest.",
        "- Every row stores its settings. Pixels depend only on the model, the plan and `sample_id`, and",
        "  `ddpm reproduce --samples FOLDER --id K` makes sample K again.",
        "",
    ]
    return "\n".join(lines)


def _facts(plan: SamplePlan) -> Iterator[tuple[str, str]]:
    sampler = f"{_SAMPLERS.get(plan.sampler, plan.sampler)}, {plan.steps} steps"
    if plan.sampler == "ddim":
        sampler += f", eta {plan.eta:g}"
    if plan.sampler == "ddpm":
        sampler += f", variance {plan.variance}"
    if plan.requests is not None:
        yield "requests", f"{plan.requests.rows:,}, in `{plan.requests.file.key}`; defaults are below"
    yield "sampler", sampler
    yield "seed", str(plan.seed)
    yield "weights", plan.weights
    mix = ", ".join(f"{k} : {weight:g}" for k, weight in plan.labels or ()) or "every class equally often"
    yield "classes", "none" if plan.num_classes is None else f"{plan.num_classes}; {mix}"
    if plan.guidance is not None:
        interval = plan.guidance_interval
        where = "" if interval is None else f" at timesteps {interval[0]} to {interval[1]}"
        yield "guidance", f"{plan.guidance:g}{where}"
    if plan.earlier:
        yield "extended", ", then ".join(f"{end:,}" for end in plan.ends)


def merged_card(merged: MergedManifest, ending: str) -> str:
    """Markdown with YAML front matter. ending: file name extension of the shards."""
    files = [
        line
        for number, part in enumerate(merged.parts)
        for line in (f"  - split: part_{number:03d}", f"    path: parts/{part.plan[:16]}/data/*.{ending}")
    ]
    rows = [
        f"| part_{number:03d} | {part.rows:,} | {part.failed:,} | `parts/{part.plan[:16]}` | `{part.plan}` |"
        for number, part in enumerate(merged.parts)
    ]
    return "\n".join(
        [
            *("---", "configs:", "- config_name: default", "  data_files:", *files),
            *("task_categories: [unconditional-image-generation]", "---", ""),
            f"# {merged.rows:,} generated images in {len(merged.parts)} parts",
            "",
            "Each part is an unchanged copy of one samples folder. `ddpm verify` checks the whole folder.",
            "`ddpm evaluate` and `ddpm reproduce` take one part. The pair (part, `sample_id`) identifies a sample.",
            "",
            *("| split | images | failed | folder | plan |", "|---|---|---|---|---|", *rows, ""),
            *("```python", 'datasets.load_dataset("FOLDER", split="part_000+part_001")', "```", ""),
        ]
    )
