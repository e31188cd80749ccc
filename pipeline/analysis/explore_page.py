"""HTML pages of `ddpm explore`: sheets, rate-distortion curves and table, quality by sampling steps."""

from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from pipeline.analysis.sweep_page import distance_chart
from pipeline.report.render.content import Chart, Fact, Picture, Report, Series, Table, Verdict
from pipeline.report.render.scales import figures
from pipeline.report.scores import FLOOR_NAME

_SHEETS: Final = {
    "progressive": (
        "Progressive generation",
        "One row per sample: predicted x_0 after more and more steps; the last column is the sample (figure 6).",
    ),
    "interpolate": (
        "Interpolations",
        "From one sample (left) to another (right). One row per timestep at which the states are interpolated; the "
        "first row is x_T (figure 8).",
    ),
    "shared": (
        "Shared latents",
        "One row per timestep: all columns share its x_t and then use different noise; the first row is x_T. What a "
        "row has in common was determined by x_t (figure 7).",
    ),
}


def sheet_page(mode: str, png: bytes, facts: Sequence[Fact]) -> Report:
    """The page of a mode that makes only a sheet of pictures."""
    title, caption = _SHEETS[mode]
    return Report(title=title, facts=tuple(facts), samples=(Picture(caption, f"{title}: a sheet of images", png),))


def rate_page(table: pa.Table, png: bytes, facts: Sequence[Fact], chosen: Sequence[int]) -> Report:
    """The page of a RATE_DISTORTION table. chosen: reverse times to list and to show as columns of the sheet."""
    rows = table.to_pylist()
    last = rows[-1]
    codelength = (
        Fact("Codelength", f"{figures(last['rate'] + last['term'])} bits/dim, a bound"),
        Fact("Rate, L_1 to L_T", f"{figures(last['rate'])} bits/dim"),
        Fact("Distortion, L_0", f"{figures(last['term'])} bits/dim"),
        Fact("Images", f"{last['images']:,}, held out"),
    )
    picked = [row for row in rows if row["reverse_time"] in set(chosen)]
    caption = "Prediction of a receiver after more and more bits, one row per held-out image; last column: the image."
    return Report(
        title="Rate and distortion",
        subtitle="Progressive lossy coding, as section 4.3, figure 5 and table 4 of Ho et al. 2020",
        facts=(*codelength, *facts),
        samples=(Picture(caption, "Sheet of predicted images by rate", png),),
        samples_title="Predictions",
        charts=tuple(_rate_charts(table)),
        charts_title="Progressive coding",
        tables=(_rate_table(picked),),
    )


def _rate_charts(table: pa.Table) -> list[Chart]:
    time, rate, distortion = (tuple(map(float, table[n].to_pylist())) for n in ("reverse_time", "rate", "distortion"))
    steps = "reverse process steps (T - t)"
    return [
        Chart("Distortion by rate", "rate, bits/dim", "", (Series("RMSE, 0 to 255", rate, distortion),), ends=False),
        Chart("Rate by steps", steps, "bits/dim", (Series("bits sent", time, rate),)),
        Chart("Distortion by steps", steps, "", (Series("RMSE, 0 to 255", time, distortion),)),
    ]


def _rate_table(picked: Sequence[dict[str, float]]) -> Table:
    rows = tuple((f"{r['reverse_time']:,}", figures(r["rate"]), figures(r["distortion"])) for r in reversed(picked))
    note = "The prediction of x_0 is clipped to [-1, 1]. Rate: L_T and all terms that led to x_t."
    columns = ("Reverse process time (T - t)", "Rate, bits/dim", "Distortion, RMSE of 0 to 255")
    return Table("By reverse process time", columns, rows, words=0, note=note)


def preview_page(table: pa.Table, png: bytes, facts: Sequence[Fact], feature_dim: int) -> Report:
    """The page of a PREVIEWS table, with a sheet of the first samples. feature_dim: of the extractor."""
    rows = table.to_pylist()
    first, steps = rows[0], tuple(float(row["step"]) for row in rows)
    note = "Distance of the predicted x_0 after each step count; at the last one, of the samples. Lower is better."
    series = Series("predicted x_0", steps, tuple(row["fd"] for row in rows))
    chart = distance_chart(f"{first['metric']} by steps", "sampling steps", [series], first["floor"], note)
    cells = tuple((f"{row['step']:,}", f"{row['t']:,}", figures(row["fd"])) for row in rows)
    few = (
        f"{first['n']:,} images are not more than the {feature_dim:,} features: the distances are biased far upward; "
        "compare only their order, or raise explore.num_images."
    )
    return Report(
        title="Quality by sampling steps",
        subtitle="Progressive generation, as section 4.3 of Ho et al. 2020",
        verdict=Verdict("warning", few) if first["n"] <= feature_dim else None,
        facts=(
            Fact("Measured", f"n = {first['n']:,} against {first['reference_n']:,} training images"),
            Fact("Extractor", f"{first['extractor']} {first['weights_sha256'][:8]}"),
            Fact(f"Floor: {FLOOR_NAME}", figures(first["floor"])),
            *facts,
        ),
        samples=(
            Picture("The first samples after these steps, one row per sample.", "Sheet of previews by step", png),
        ),
        samples_title="Predictions",
        charts=(chart,),
        charts_title="Quality by steps",
        tables=(Table("Steps", ("Steps done", "Timestep left", first["metric"]), cells, words=0),),
    )
