"""Stragglers, repeated shards, restarts and cost; settings that differ from defaults, recipes and other runs."""

import pyarrow as pa
import pytest

from pipeline.config.root import Config
from pipeline.report.run_history import Work, cost_table, shard_table, starts_table
from pipeline.report.settings import changed_settings, different_settings, nearest_recipe

pytestmark = pytest.mark.unit


def shards(*rows):
    """(shard, seconds, node, started) of 100 images each."""
    columns = ("shard", "seconds", "node", "started")
    table = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
    return pa.table({**table, "rows": [100] * len(rows)})


def test_stragglers_are_named_slowest_first_and_nodes_by_their_median():
    rows = [(k, 10.0, "fast", 10.0 * k) for k in range(6)]
    rows += [(6, 14.0, "slow", 0.0), (7, 15.5, "slow", 14.0), (8, 40.0, "slow", 30.0)]
    table = shard_table("x", shards(*rows))
    assert table.rows == (("slow", "3", "6.452", "2.5", "2"), ("fast", "6", "10", "10", "0"))
    assert "2 of 9 shards took more than 1.5 times the median; the slowest: 8, 7." in table.note
    assert "Repeated shards: 0." in table.note
    assert "pause" not in table.note


def test_the_note_counts_repeated_shards_and_pauses():
    table = shard_table("x", shards((0, 10.0, "n", 0.0), (0, 10.0, "n", 12.0), (1, 10.0, "n", 500.0)))
    assert "Repeated shards: 1." in table.note
    assert "1 pause, as between two commands." in table.note
    assert "No shard took more than" in table.note
    assert shard_table("x", shards()) is None


def test_of_many_nodes_the_slowest_are_listed():
    table = shard_table("x", shards(*((k, 1.0 + k, f"n{k:02d}", 0.0) for k in range(40))))
    assert [row[0] for row in table.rows[:2]] == ["n39", "n38"]
    assert len(table.rows) == 12
    assert "The table lists the slowest 12 of 40 nodes." in table.note


def test_of_many_starts_the_newest_are_listed():
    starts = [{"step": k, "world_size": 1, "node": "n", "started": f"2026-11-01T{k:02d}:00:00Z"} for k in range(20)]
    table = starts_table("x", starts[::-1])
    assert [row[1] for row in table.rows] == [str(k) for k in range(8, 20)]
    assert table.note.startswith("Restarted 19 times. The table lists the newest 12 starts.")
    assert starts_table("x", []) is None
    assert starts_table("x", starts[:1]).note.startswith("Never restarted.")


def test_cost_is_worker_hours_times_the_price():
    works = [Work("a", 2.0, 3600), Work("nothing", 0.0, 0)]
    assert cost_table(works, None).rows == (("a", "3,600", "2", "2"),)
    assert cost_table(works, 1.25).rows == (("a", "3,600", "2", "2", "2.50"),)
    assert cost_table(works[1:], 1.25) is None


DEFAULTS = Config().model_dump(mode="json")


def settings(**sections):
    return Config.model_validate(sections).model_dump(mode="json")


def test_the_nearest_recipe_is_the_one_with_the_fewest_differences():
    recipes = {
        "one": settings(train={"steps": 10, "lr": 0.1}),
        "two": settings(train={"steps": 10, "lr": 0.1, "flip": True}),
    }
    assert nearest_recipe(settings(train={"steps": 10, "lr": 0.1, "flip": True, "seed": 4}), DEFAULTS, recipes) == "two"
    assert nearest_recipe(settings(train={"steps": 10, "lr": 0.2}), DEFAULTS, recipes) == "one"
    assert nearest_recipe(settings(train={"seed": 1}), DEFAULTS, recipes) is None, "the defaults are nearer"
    table = changed_settings("x", settings(train={"steps": 10, "lr": 0.1, "seed": 4}), DEFAULTS, recipes)
    assert table.rows == (
        ("train.steps", "10", "10", "800000"),
        ("train.lr", "0.1", "0.1", "0.0002"),
        ("train.seed", "4", "0", "0"),
    )
    assert table.note == "Differs from recipe one in train.seed."


def test_settings_of_ray_are_listed_and_settings_of_other_verbs_are_not():
    here = settings(ray={"workers": "4"}, generate={"steps": 10}, storage={"region": "eu-1"})
    assert changed_settings("x", here, DEFAULTS, {}).rows == (("ray.workers", "4", "1"),)


def test_only_what_differs_between_runs_is_listed():
    ema = {"fast": {"decay": 0.9}}
    table = different_settings({"a": settings(train={"more_ema": ema}), "b": settings(), "c": settings()})
    assert ("train.more_ema.fast.decay", "0.9", "unset", "unset") in table.rows
    assert all(row[0].startswith("train.more_ema") for row in table.rows)
    assert different_settings({"a": settings(), "b": settings()}).note == "No settings differ."
