"""The README.md of merged samples: a Hugging Face dataset card in which each part is a split."""

from pipeline.sample_manifests import MergedManifest

__all__ = ["merged_card"]


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
