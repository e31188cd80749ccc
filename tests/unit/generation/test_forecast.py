"""Forecast of hours, bytes and cost, and the suffix of the progress line."""

import pytest

from pipeline.generation.forecast import Forecast, progress_note

pytestmark = pytest.mark.unit


def test_hours_bytes_and_cost_of_a_million_images():
    told = Forecast(images=1_000_000, images_per_second=50.0, bytes_per_image=900.0, actors=4, price=0.25)
    assert told.seconds == 5000.0
    assert told.bytes == 900_000_000
    assert told.cost == pytest.approx(5000 / 3600 * 4 * 0.25)
    assert str(told) == (
        "forecast: 1,000,000 images at 50.0 img/s an actor, 4 actors: 1 h 23 min, about 900.0 MB, cost 1.39"
    )
    assert told.figures()["seconds"] == 5000.0


def test_without_a_price_there_is_no_cost():
    told = Forecast(images=10, images_per_second=2.0, bytes_per_image=10.0, actors=1)
    assert told.cost is None
    assert str(told) == "forecast: 10 images at 2.0 img/s an actor, 1 actors: 5 s, about 100 bytes"
    assert Forecast(3 * 10**9, 1000.0, 1500.0, 64).bytes == 4_500_000_000_000
    assert "4.5 TB" in str(Forecast(3 * 10**9, 1000.0, 1500.0, 64))


def test_remarks_name_failures_and_the_slowest_of_several_actors():
    assert progress_note(0, {}) == ""
    assert progress_note(0, {"a:1": 3.0}) == ""
    assert progress_note(1200, {"a:1": 3.0, "b:2": 1.25}) == "1,200 failed, slowest actor 1.2 img/s (b:2)"
