"""ddpm verify of datasets, runs and samples: intact ones pass; each kind of damage is reported by name."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_model import write_model
from tiny_samples import sample_plan, sample_png, write_samples

from jobs.__main__ import main
from pipeline.config.base import FileEntry
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import DataError, VerificationFailed
from pipeline.generation.commit import marker_key
from pipeline.images.png import encode_png
from pipeline.ingest.dataset import dataset_version_key, write_dataset
from pipeline.ingest.manifest import DatasetManifest, ShardEntry, channel_statistics
from pipeline.ingest.partitioning import shuffle_key
from pipeline.ingest.source_listing import write_snapshot
from pipeline.ingest.sources.source import Partition, SourceFile
from pipeline.model_store.checkpoint import checkpoint_key
from pipeline.model_store.manifest import RunSuccess
from pipeline.operations.verify import verify
from pipeline.schema import DATASET, REJECTS
from pipeline.storage.documents import to_json
from pipeline.storage.files import parquet_bytes, put_file, put_hashed
from pipeline.storage.store import resolve
from tiny import config

pytestmark = pytest.mark.unit


@pytest.fixture
def place(tmp_path):
    return resolve(str(tmp_path / "artefact"), StorageConfig())


def check(place, key=""):
    return verify(Config(), place.location(key))


def fails(place, *what, key=""):
    """Findings of verify; each of `what` must be among them."""
    with pytest.raises(VerificationFailed) as caught:
        check(place, key)
    text = str(caught.value)
    for words in what:
        assert words in text, text
    return text


def edit(place, key, **changes):
    place.put(key, json.dumps({**json.loads(place.read(key)), **changes}).encode())


# Samples


def rewrite(job, shard, change):
    """Change rows of a shard and update file, marker and manifest to the new hash: only the rows are wrong."""
    manifest = json.loads(job.read("manifest.json"))
    entry = manifest["shards"][shard]
    table = change(pq.read_table(pa.BufferReader(job.read(entry["key"]))))
    data = parquet_bytes(table, 100)
    job.put(entry["key"], data)
    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    job.put("manifest.json", json.dumps(manifest).encode())
    job.put(marker_key(shard), json.dumps(entry).encode())


def column(table, name, values):
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


def replace(table, name, row, value):
    values = table[name].to_pylist()
    values[row] = value
    return column(table, name, values)


def test_whole_samples_pass_and_are_counted(place):
    write_samples(place, failed=(5,))
    place.put("data/shard-000000001-zombie.parquet", b"late")
    result = check(place)
    counts = {name: result["counts"][name] for name in ("samples", "shards", "failed", "unnamed")}
    assert counts == {"samples": 10, "shards": 3, "failed": 1, "unnamed": 1}
    assert result["kind"] == "samples"


def test_no_gap_and_no_stranger_among_the_markers(place):
    write_samples(place)
    job = place
    job.put(marker_key(3), job.read(marker_key(2)))
    job.delete(marker_key(0))
    edit(job, marker_key(1), attempt="other")
    fails(job, "marker of shard 3 is in no manifest", "marker of shard 0 is missing", "marker of shard 1 differs")


def test_manifest_must_name_every_shard_once(place):
    write_samples(place)
    shards = json.loads(place.read("manifest.json"))["shards"]
    edit(place, "manifest.json", shards=[shards[0], shards[2], shards[2]])
    fails(place, "must list shards 0..2 once each", "lacks [1]", "counts 10 rows, its shards 8")


def test_counts_and_ranges(place):
    write_samples(place, failed=(1,))
    manifest = json.loads(place.read("manifest.json"))
    manifest["shards"][1].update(first_id=5, last_id=8)
    place.put("manifest.json", json.dumps({**manifest, "rows": 12, "failed": 0}).encode())
    fails(place, "counts 12 rows", "counts 0 failed", "claims samples 5..8", "by the plan it has 4..7")


def test_one_plan_only(place):
    write_samples(place)
    edit(place, "plan.json", seed=4)
    fails(place, "manifest.json is of plan", "shard 0 is of plan", "column seed holds [3], the plan says 4")


def test_the_order_of_the_seal(place):
    write_samples(place, sealed=False)
    fails(place, "not sealed: 3 of 3 shards")
    place.put("_SUCCESS", b"")
    fails(place, "_SUCCESS exists without manifest.json")
    place.delete("_SUCCESS")
    write_samples(place)
    place.delete("_SUCCESS")
    fails(place, "_SUCCESS is missing")
    place.delete("plan.json")
    fails(place, "plan.json is missing")


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_file(place, damage):
    write_samples(place)
    key = json.loads(place.read("manifest.json"))["shards"][1]["key"]
    data = place.read(key)
    if damage == "gone":
        place.delete(key)
    else:
        place.put(key, data[:-1] if damage == "cut" else data[:50] + bytes([data[50] ^ 1]) + data[51:])
    text = fails(place, key, "missing" if damage == "gone" else "is not what its manifest names")
    assert "1 contradictions" in text


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: column(t, "sample_id", [4, 5, 5, 7]), "does not hold samples 4..7 in order"),
        (lambda t: column(t, "sample_id", [4, 6, 5, 7]), "does not hold samples 4..7 in order"),
        (lambda t: replace(t, "image", 1, {"bytes": sample_png(0), "path": None}), "sample 5 in"),
        (lambda t: replace(t, "sha256", 2, "0" * 64), "whose sha256 differs from its row"),
        (lambda t: replace(t, "image", 2, None), "status 'ok' and no image"),
        (lambda t: replace(t, "status", 2, "failed"), "failed, but has an image"),
        (lambda t: replace(t, "seed", 0, 9), "column seed"),
        (lambda t: replace(t, "model_digest", 0, "x"), "column model_digest"),
        (lambda t: replace(t, "steps", 3, 6), "column steps"),
        (lambda t: t.drop_columns(["error"]), "other names or types"),
    ],
)
def test_wrong_rows_under_a_right_hash(place, change, what):
    write_samples(place)
    rewrite(place, 1, change)
    fails(place, what)


def test_images_must_decode_at_the_stated_size(place):
    write_samples(place)
    large, broken = encode_png(np.zeros((5, 4, 1), np.uint8)), sample_png(0)[:40]

    def change(table):
        for row, png in ((0, large), (1, broken)):
            table = replace(table, "image", row, {"bytes": png, "path": None})
            table = replace(table, "sha256", row, hashlib.sha256(png).hexdigest())
        return table

    rewrite(place, 1, change)
    fails(place, "[5, 4, 1] pixels, not [4, 4, 1]", "cannot be decoded")


def test_twenty_findings_are_listed_and_all_are_counted(place):
    write_samples(place)
    for shard in range(3):
        rewrite(place, shard, lambda t: column(t, "sha256", ["0" * 64] * t.num_rows))
        rewrite(place, shard, lambda t: column(t, "status", ["odd"] * t.num_rows))
        edit(place, marker_key(shard), attempt="x", rows=77)
    manifest = json.loads(place.read("manifest.json"))
    for shard in manifest["shards"]:
        shard.update(plan="p", first_id=9)
    place.put("manifest.json", json.dumps({**manifest, "rows": 3}).encode())
    text = fails(place, "23 contradictions", "and 3 more")
    assert len(text.splitlines()) == 1 + 20 + 1


# Datasets


def pixels_of(number):
    return np.full((4, 4, 1), number, np.uint8)


def is_heldout(number):
    """Ingest's rule at a share of one half: the first bit of the pixels' sha256."""
    return int(hashlib.sha256(pixels_of(number).tobytes()).hexdigest()[0], 16) < 8


def dataset_table(numbers, first):
    rows = [
        {
            "sample_id": first + place,
            "image": {"bytes": encode_png(pixels_of(number)), "path": f"{number}.png"},
            "label": number % 2,
            "width": 4,
            "height": 4,
            "sha256": hashlib.sha256(pixels_of(number).tobytes()).hexdigest(),
        }
        for place, number in enumerate(numbers)
    ]
    return pa.Table.from_pylist(rows, schema=DATASET)


def write_small_dataset(place, change=lambda table: table, **fields):
    """Six training images in two shards, and some that are held out; `change` is applied to the second shard."""
    train = [n for n in range(60) if not is_heldout(n)][:6]
    heldout = [n for n in range(60) if is_heldout(n)][:2]
    entries, first = [], 0
    for name, split, numbers in (("t0", "train", train[:4]), ("t1", "train", train[4:]), ("h0", "heldout", heldout)):
        table = dataset_table(numbers, first)
        data = parquet_bytes(change(table) if name == "t1" else table, 100)
        file = put_file(place, f"data/{name}.parquet", data)
        entries.append(ShardEntry(**file.model_dump(), split=split, rows=len(numbers), first_id=first))
        first += len(numbers)
    rejects = pa.Table.from_pylist([{"source": "x", "reason": "empty", "detail": "d"}], schema=REJECTS)
    values = {
        "source": "s",
        "source_rows": 9,
        "image_size": 4,
        "channels": 1,
        "classes": ("a", "b"),
        "shards": tuple(entries),
        "rejects": (put_file(place, "rejects/part-0.parquet", parquet_bytes(rejects, 1)),),
        "reject_counts": {"empty": 1},
        "channel_mean": (0.0,),
        "channel_std": (1.0,),
        "ingest": {"heldout_share": 0.5},
    }
    write_dataset(place, DatasetManifest(**{**values, **fields}))


def test_a_whole_dataset_passes(place):
    write_small_dataset(place)
    result = check(place)
    assert result["kind"] == "dataset"
    assert (result["counts"]["images"], result["counts"]["rejects"], result["counts"]["shards"]) == (8, 1, 3)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"source_rows": 8}, "8 source images are not 8 images and 1 rejects"),
        ({"reject_counts": {"truncated": 1}}, "counts rejects {'truncated': 1}, lists {'empty': 1}"),
        ({"classes": ("a",)}, "has label 1, but the dataset has 1 classes"),
        ({"ingest": {"heldout_share": 0.0}}, "belongs in the train split"),
        ({"ingest": {"heldout_share": 1.0}}, "belongs in the heldout split"),
        ({"channels": 3}, "[4, 4, 1] pixels, not [4, 4, 3]"),
    ],
)
def test_a_dataset_manifest_that_does_not_add_up(place, fields, what):
    write_small_dataset(place, **fields)
    fails(place, what)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: column(t, "sample_id", [4, 4]), "does not hold samples 4..5"),
        (lambda t: replace(t, "sha256", 0, "0" * 64), "pixels with another sha256"),
        (lambda t: replace(t, "image", 0, {"bytes": b"text", "path": None}), "cannot be decoded"),
        (lambda t: replace(t, "width", 0, 5), "has columns for 5x4 pixels"),
        (lambda t: t.slice(1), "does not hold samples 4..5"),
    ],
)
def test_a_dataset_shard_with_wrong_rows(place, change, what):
    write_small_dataset(place, change)
    fails(place, what)


def test_dataset_shards_must_follow_each_other(place):
    write_small_dataset(place)
    shards = json.loads(place.read("manifest.json"))["shards"]
    edit(place, "manifest.json", shards=[shards[2], *shards[:2]])
    fails(place, "begins at sample 6", "a held-out shard comes before")


def test_a_damaged_dataset_manifest_is_a_failure_not_nothing(place):
    write_small_dataset(place)
    place.put("manifest.json", place.read("manifest.json")[:-10])
    fails(place, "is not a DatasetManifest")


# Dataset versions: a dataset as ingest makes it since it can grow


GROWN = {"heldout_share": 0.5, "seed": 3, "duplicates": "keep-first"}


def placed(numbers, split):
    """Images of one split in the order that their content gives them."""
    mine = [n for n in numbers if is_heldout(n) == (split == "heldout")]
    return sorted(mine, key=lambda n: shuffle_key(hashlib.sha256(pixels_of(n).tobytes()).hexdigest(), 3))


def grown(place, versions=((0, 20), (20, 30)), change=lambda shards: shards, **fields):
    """Images `first`..`stop`-1 in each dataset version; `change` is applied to the last one's own shards."""
    before, channel_sums, first = None, [0, 0], 0
    for version, (low, stop) in enumerate(versions, 1):
        numbers = range(low, stop)
        shards = []
        for split in ("train", "heldout"):
            mine = placed(numbers, split)
            file = put_hashed(place, f"data/{split}-{version}", parquet_bytes(dataset_table(mine, first), 100))
            ends = [f"{shuffle_key(hashlib.sha256(pixels_of(n).tobytes()).hexdigest(), 3):016x}" for n in mine]
            entry = {"split": split, "rows": len(mine), "first_id": first, "keys": (ends[0], ends[-1])}
            shards.append(ShardEntry(**file.model_dump(), **entry))
            first += len(mine)
        channel_sums = [channel_sums[0] + 16 * sum(numbers), channel_sums[1] + 16 * sum(n * n for n in numbers)]
        files = [Partition(str(low), (SourceFile(f"{low}.png", 1, "v"),))]
        listed = write_snapshot(place, version, files)
        last = version == len(versions)
        mean, std = channel_statistics(channel_sums, 16 * first)
        values = {
            "source": "s",
            "source_rows": first,
            "image_size": 4,
            "channels": 1,
            "classes": ("a", "b"),
            "shards": (() if before is None else before.shards) + tuple(change(shards) if last else shards),
            "rejects": (),
            "reject_counts": {},
            "channel_mean": mean,
            "channel_std": std,
            "channel_sums": channel_sums,
            "ingest": GROWN,
            "generation": version,
            "parent": before and before.digest(),
            "snapshot": listed.digest,
            "snapshots": (() if before is None else before.snapshots) + listed.parts,
            **(fields if last else {}),
        }
        before = DatasetManifest(**values)
        write_dataset(place, before)
    return before


def test_a_whole_grown_dataset_passes(place):
    grown(place)
    place.put("data/train-9-left.parquet", b"by an attempt")
    counts = check(place)["counts"]
    assert (counts["images"], counts["generations"], counts["shards"], counts["unnamed"]) == (30, 2, 4, 1)
    assert counts["files"] == 4 + 2


def replace_shard(place, number, numbers):
    """A change of the last version: another shard of these images, rightly named in every other respect."""

    def change(shards):
        old = shards[number]
        file = put_hashed(place, "data/changed", parquet_bytes(dataset_table(numbers, old.first_id), 100))
        shards[number] = old.model_copy(update=file.model_dump())
        return shards

    return change


def test_images_lie_where_their_content_puts_them(place):
    mine = placed(range(20, 30), "train")
    grown(place, change=replace_shard(place, 0, [mine[1], mine[0], *mine[2:]]))
    fails(place, "is not where its content belongs")


@pytest.mark.parametrize("of", ["this version", "another"])
def test_no_image_twice(place, of):
    mine = placed(range(20, 30), "train")
    other = mine[0] if of == "this version" else placed(range(20), "train")[0]
    changed = sorted([other, mine[0], *mine[2:]], key=placed([*mine, other], "train").index)
    grown(place, change=replace_shard(place, 0, changed))
    fails(place, "repeats the one before it" if of == "this version" else "pixels of an image of another version")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"parent": "0" * 64}, "names another parent"),
        ({"classes": ("b", "a", "c")}, "does not only append to the classes"),
        ({"source": "t"}, "has another source than its parent"),
        ({"snapshot": "0" * 64}, "the files listed for dataset version 2 do not have its snapshot digest"),
        ({"channel_sums": (1, 2)}, "channel_sums are [1, 2]"),
        ({"channel_mean": (0.5,)}, "do not follow from channel_sums"),
    ],
)
def test_a_version_that_contradicts_its_parent_or_itself(place, fields, what):
    grown(place, **fields)
    fails(place, what)


def test_older_shards_are_kept_as_they_were(place):
    grown(place)
    for key in ("manifest.json", dataset_version_key(2)):
        shards = json.loads(place.read(key))["shards"]
        edit(place, key, shards=[shards[1], shards[0], *shards[2:]])
    fails(place, "does not only append to the shards", "begins at sample")


def test_the_last_keys_of_a_shard(place):
    def change(shards):
        return [shards[0].model_copy(update={"keys": ("0" * 16, shards[0].keys[1])}), shards[1]]

    grown(place, change=change)
    fails(place, "has other first and last keys")


@pytest.mark.parametrize("damage", ["gone", "cut", "listed file gone", "not the newest"])
def test_a_damaged_chain(place, damage):
    newest = grown(place)
    if damage == "gone":
        place.delete(dataset_version_key(1))
        fails(place, "000001.json is missing or damaged")
    elif damage == "cut":
        place.put(dataset_version_key(1), place.read(dataset_version_key(1))[:-9])
        fails(place, "000001.json is not a DatasetManifest")
    elif damage == "listed file gone":
        place.delete(newest.snapshots[0].key)
        fails(place, "named by its manifest but missing")
    else:
        place.put("manifest.json", place.read(dataset_version_key(1)))
        check(place)  # the older version is whole: a commit that is under way looks like this
        edit(place, "manifest.json", source_rows=1)
        fails(place, "is not its newest version")


# Checkpoints and runs


@pytest.fixture
def run(place):
    write_model(place.uri, config(), step=1)
    write_model_step(place, 2)
    return place


def write_model_step(place, step):
    other = resolve(place.uri + "-other", StorageConfig())
    write_model(other.uri, config(), step=step)
    for entry in other.list("checkpoints/"):
        place.put(entry.key, other.read(entry.key))


def test_a_whole_run_and_each_checkpoint_pass(run):
    result = check(run)
    assert (result["kind"], result["counts"]["checkpoints"], result["counts"]["files"]) == ("run", 2, 6)
    result = check(run, checkpoint_key(2))
    assert (result["kind"], result["counts"]["checkpoints"]) == ("checkpoint", 1)


def edit_checkpoint(run, change):
    key = f"{checkpoint_key(2)}/manifest.json"
    manifest = json.loads(run.read(key))
    change(manifest)
    run.put(key, json.dumps(manifest).encode())


def test_a_damaged_weight_file(run):
    key = f"{checkpoint_key(2)}/ema.safetensors"
    data = run.read(key)
    run.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    fails(run, "ema.safetensors is not what its manifest names")
    check(run, checkpoint_key(1))


def test_a_file_that_is_no_safetensors_or_does_not_fit(run):
    folder = run.child(checkpoint_key(2))
    text = put_file(folder, "model.safetensors", b"text")
    small = config(model={"block_out_channels": [4, 16]})

    def change(manifest):
        manifest["files"] = [f for f in manifest["files"] if f["key"] != "model.safetensors"] + [text.model_dump()]
        manifest["config"] = small.model_dump(mode="json")

    edit_checkpoint(run, change)
    fails(
        run,
        "not a safetensors file",
        "config_digest is not that of `config`",
        "ema.safetensors does not fit",
        key=checkpoint_key(2),
    )


def test_required_groups_and_steps(run):
    def change(manifest):
        manifest["files"] = [f for f in manifest["files"] if f["key"] != "optimizer.safetensors"]
        manifest["step"] = 3
        manifest["ema"] = ["ema", "ema-long"]

    edit_checkpoint(run, change)
    fails(
        run, "no optimizer.safetensors", "no ema-long.safetensors", "the manifest is of step 3", key=checkpoint_key(2)
    )


def test_metric_parts_and_dataset_of_a_run(run):
    part = FileEntry(key="metrics/steps-1.parquet", bytes=3, sha256="0" * 64)

    def change(manifest):
        manifest["metric_parts"] = [part.model_dump()]
        manifest["dataset_digest"] = "another"

    edit_checkpoint(run, change)
    fails(run, "metrics/steps-1.parquet", "was trained on another dataset")


def test_success_must_agree_with_its_checkpoint(run):
    values = {"step": 2, "images": 64, "checkpoint": checkpoint_key(2), "config_digest": config().digest()}
    manifest_digest = hashlib.sha256(b"[]").hexdigest()
    success = RunSuccess(**values, batch_digest=manifest_digest)
    run.put("_SUCCESS.json", to_json(success))
    check(run)
    run.put("_SUCCESS.json", to_json(success.model_copy(update={"images": 65})))
    fails(run, "images is 65, but 64 in its checkpoint")
    run.put("_SUCCESS.json", to_json(success.model_copy(update={"step": 9})))
    fails(run, "which does not exist")


# The verb


def test_nothing_there_is_a_data_error(place):
    for key in ("", "checkpoints/step-000000001"):
        with pytest.raises(DataError):
            check(place, key)
    place.put("run.json", b"{}")
    with pytest.raises(DataError, match="no checkpoint yet"):
        check(place)


def test_exit_codes_and_lines(place, tmp_path, capsys):
    write_samples(place)
    assert main(["verify", place.uri, "--json"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert "10 samples" in out[0]
    assert json.loads(out[1])["counts"]["samples"] == 10
    place.delete(marker_key(1))
    assert main(["verify", place.uri]) == 6
    captured = capsys.readouterr()
    assert "marker of shard 1 is missing" in captured.err
    assert main(["verify", str(tmp_path / "nothing")]) == 3
    assert main(["verify"]) == 2


def test_labels_must_be_those_of_the_plan(place):
    write_samples(place, sample_plan(num_classes=3))
    check(place)
    rewrite(place, 1, lambda table: replace(table, "label", 0, 2))
    fails(place, "column label differs from the plan")


def test_an_unconditional_job_has_no_labels(place):
    write_samples(place)
    rewrite(place, 1, lambda table: replace(table, "label", 0, 2))
    fails(place, "column label holds [2, None], the plan says None")


def test_a_row_that_was_guided_otherwise_is_a_finding(place):
    write_samples(place)
    rewrite(place, 1, lambda table: replace(table, "guidance", 0, 2.0))
    fails(place, "column guidance holds [2.0, None], the plan says None")


def test_a_damaged_parquet_footer_is_a_finding(place):
    """The hash matches, so the file was written damaged."""
    write_samples(place)
    manifest = json.loads(place.read("manifest.json"))
    entry = manifest["shards"][0]
    data = bytearray(place.read(entry["key"]))
    footer = int.from_bytes(data[-8:-4], "little")
    data[-8 - footer : -8 - footer // 2] = b"\xff" * (footer - footer // 2)
    place.put(entry["key"], bytes(data))
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    place.put("manifest.json", json.dumps(manifest).encode())
    place.put(marker_key(0), json.dumps(entry).encode())
    fails(place, "is not a Parquet file")


def test_a_torn_checkpoint_manifest_is_a_finding_beside_the_others(place):
    write_model(place.uri, config(), step=1)
    whole = check(place)["counts"]["checkpoints"]
    place.put(f"{checkpoint_key(999)}/manifest.json", b"{")
    fails(place, "step-000000999", f"{whole} checkpoints")
