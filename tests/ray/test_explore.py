"""Quality of previews: at its last step it is the samples' own score, and it comes down on the way there."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_model import write_model

from pipeline.analysis.explore import explore
from pipeline.errors import ConfigError, DataError
from pipeline.evaluation.driver import evaluate
from pipeline.generation.driver import generate
from pipeline.report.driver import report
from pipeline.schema import PREVIEWS
from pipeline.storage.store import resolve
from tiny import config, digits

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

N = 40


def test_previews_end_in_the_samples_and_their_score(tmp_path: Path):
    settings = config(
        evaluate={"num_images": N, "classifier_epochs": 2, "classifier_width": 8},
        explore={"mode": "frechet", "num_images": N, "columns": 4, "rows": 3},
    )
    dataset, samples = digits(str(tmp_path)), str(tmp_path / "samples")
    model, out = write_model(str(tmp_path / "run"), settings), resolve(str(tmp_path / "out"), settings.storage)
    with pytest.raises(DataError, match="run ddpm evaluate first"):
        explore(settings, model, out.uri, dataset)
    generate(settings, model, samples)
    scored = evaluate(settings, samples, dataset)

    explore(settings, model, out.uri, dataset)
    table = pq.read_table(pa.BufferReader(out.read("frechet.parquet")))
    assert table.schema.equals(PREVIEWS)
    assert table["step"].to_pylist() == [1, 2, 4, 5], "four of the five steps"
    assert table["t"].to_pylist() == sorted(table["t"].to_pylist(), reverse=True)
    assert set(table["metric"].to_pylist()) == {scored["metric"]}
    assert table["fd"][-1].as_py() == pytest.approx(scored["value"], rel=1e-3)
    assert table["fd"][0].as_py() > 1.01 * table["fd"][-1].as_py()
    assert table["floor"][0].as_py() == pytest.approx(scored["floor"], rel=1e-6)
    page = out.read("frechet.html").decode()
    assert page.count("<svg") == 1
    assert "are not more than" not in page, "there are 32 features"
    with pytest.raises(ConfigError, match="needs --dataset"):
        explore(settings, model, out.uri)

    made = report(settings, [samples, dataset])
    assert made["pictures"] == 4, "at random, nearest, farthest, and real ones"
    html = resolve(samples, settings.storage).read("report.html").decode()
    assert "Lowest Mahalanobis distance from the training images (class-cnn features) of samples" in html
    alone = report(settings, [samples])
    assert alone["pictures"] == 1, "nobody says where the extractor is"
