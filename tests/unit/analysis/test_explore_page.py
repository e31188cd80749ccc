"""Pages of `ddpm explore`: charts of the table, and a warning about unreliable distances."""

import pyarrow as pa
import pytest
from reported import DIGITS

from pipeline.analysis.explore_page import preview_page, rate_page, sheet_page
from pipeline.images.png import encode_png
from pipeline.report.render.page import render
from pipeline.schema import PREVIEWS, RATE_DISTORTION

pytestmark = pytest.mark.unit

PNG = encode_png(DIGITS[0])


def rates() -> pa.Table:
    rows = [(3, 1, 0.0, 90.0, 0.5), (2, 2, 0.5, 60.0, 0.75), (1, 3, 1.25, 30.0, 0.5), (0, 4, 1.75, 1.0, 2.0)]
    names = ("t", "reverse_time", "rate", "distortion", "term")
    table = [dict(zip(names, row, strict=True)) | {"images": 7} for row in rows]
    return pa.Table.from_pylist(table, schema=RATE_DISTORTION)


def test_rate_and_distortion_of_a_table():
    page = rate_page(rates(), PNG, (), (1, 4))
    facts = {fact.name: fact.value for fact in page.facts}
    assert facts["Codelength"] == "3.75 bits/dim, a bound", "1.75 + 2, as in the paper"
    assert facts["Distortion, L_0"] == "2 bits/dim"
    assert page.tables[0].rows == (("4", "1.75", "1"), ("1", "0", "90"))
    first = page.charts[0].series[0]
    assert (first.x, first.y) == ((0.0, 0.5, 1.25, 1.75), (90.0, 60.0, 30.0, 1.0))
    assert render(page).count("<svg") == 3


@pytest.mark.parametrize(("feature_dim", "warned"), [(99, False), (100, True), (500, True)])
def test_few_previews_are_a_warning(feature_dim: int, warned: bool):
    of = {"metric": "FD-x", "floor": 1.0, "n": 100, "reference_n": 900, "extractor": "x", "weights_sha256": "a" * 64}
    rows = [{"step": 5, "t": 90, "fd": 40.0, **of}, {"step": 10, "t": 0, "fd": 2.0, **of}]
    page = preview_page(pa.Table.from_pylist(rows, schema=PREVIEWS), PNG, (), feature_dim)
    assert (page.verdict is not None) == warned
    assert page.charts[0].log, "from 40 to 1"
    assert page.charts[0].series[0].y == (40.0, 2.0)
    assert page.charts[0].series[1].y == (1.0, 1.0)


@pytest.mark.parametrize("mode", ["progressive", "interpolate", "shared"])
def test_every_sheet_says_what_it_shows(mode: str):
    (picture,) = sheet_page(mode, PNG, ()).samples
    assert "figure" in picture.caption
