"""The README.md beside a job's samples: a Hugging Face dataset card that says what made them and how to read them."""

from collections.abc import Iterator

from pipeline.generation.manifest import MergedManifest, SampleManifest, SamplePlan

__all__ = ["merged_card", "sample_card"]

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
    sample["png"], sample["json"]  # a PIL image; the columns. A sample that failed has no "png"
```"""


def sample_card(plan: SamplePlan, manifest: SampleManifest) -> str:
    """Markdown with front matter; equal jobs give equal cards."""
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
        f"{plan.image_size} x {plan.image_size} x {plan.channels}, sampled from a denoising diffusion model. "
        f"No photograph is among them; {manifest.failed:,} could not be made and have status `failed` and no image.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _facts(plan)),
        f"| files | {len(manifest.shards):,} of {size:,} bytes together |",
        f"| model digest | `{plan.model_digest}` |",
        f"| plan | `{manifest.plan}` |",
        "",
        "## How to read them",
        "",
        _LOAD_TAR if tar else _LOAD_PARQUET,
        "",
        "## What holds",
        "",
        "Ids are 0 to N-1, once each. A shard counts when its marker in `commits/` was created, which happens once;",
        "then its file never changes. `manifest.json` (of a job that was extended the one of the highest number) names",
        "every file with its sha256, and `ddpm verify` proves the folder from that. Before the seal, `data/` may hold",
        "files that do not count. Each row says what made it: pixels are a function of model, plan and `sample_id`.",
        "`ddpm reproduce --samples FOLDER --id K` makes row K again.",
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
        yield "requests", f"{plan.requests.rows:,}, in `{plan.requests.file.key}`; what they leave open is as follows"
    yield "sampler", sampler
    yield "seed", str(plan.seed)
    yield "weights", plan.weights
    mix = "every class in turn" if plan.labels is None else ", ".join(f"{k} : {weight:g}" for k, weight in plan.labels)
    yield "classes", "none" if plan.num_classes is None else f"{plan.num_classes}; {mix}"
    if plan.guidance is not None:
        interval = plan.guidance_interval
        where = "" if interval is None else f" at timesteps {interval[0]} to {interval[1]}"
        yield "guidance", f"{plan.guidance:g}{where}"
    if plan.earlier:
        yield "extended", ", then ".join(f"{end:,}" for end in plan.ends)


def merged_card(merged: MergedManifest, ending: str) -> str:
    """Markdown with front matter; ending: of the shards' files."""
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
            f"# {merged.rows:,} generated images of {len(merged.parts)} jobs",
            "",
            "Each part is a job as it was made, byte by byte. `ddpm verify` proves this folder, and each part is one",
            "to evaluate or reproduce samples from. A sample is named by its part and its `sample_id`.",
            "",
            *("| split | images | failed | folder | plan |", "|---|---|---|---|---|", *rows, ""),
            *("```python", 'datasets.load_dataset("FOLDER", split="part_000+part_001")', "```", ""),
        ]
    )
