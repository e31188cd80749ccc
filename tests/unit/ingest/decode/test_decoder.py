"""A codec that crashes, hangs or exhausts memory rejects its own image and no other."""

import os
import signal
import time
from pathlib import Path

import corpus
import numpy as np
import pytest

from pipeline.config.ingest import IngestConfig
from pipeline.errors import PipelineError, Transient
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.decode.decoder import Decoder
from pipeline.ingest.decode.resize import prepare
from pipeline.ingest.decode.subprocess_client import DecodingProcess

pytestmark = [pytest.mark.unit, pytest.mark.slow]
CONFIG = corpus.CONFIG


@pytest.fixture
def planted(monkeypatch):
    """Plants the faults of tests/planted in the codec of the decoding process."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3] / "planted"))
    return IngestConfig(
        **corpus.LIMITS | {"seed": 1}
    )  # own settings, so that no idle process without the faults is reused


def decoded(config, images):
    with Decoder(config) as decoder:
        found = list(decoder.prepare(enumerate(images)))
    assert [number for number, _ in found] == list(range(len(images)))
    return [image for _, image in found]


def process_of(decoder):
    return decoder._process._process


def test_every_kind_of_image_has_its_expected_result():
    items = list(corpus.images().items())
    for (name, item), found in zip(items, decoded(CONFIG, [item.data for _, item in items]), strict=True):
        if item.reason is not None:
            assert isinstance(found, Reject), name
            assert found.reason == item.reason, (name, found)
            assert found.detail, name
        else:
            assert found.shape == (16, 16, 3), (name, found)
            np.testing.assert_array_equal(found, prepare(item.data, CONFIG), err_msg=name)
            if item.shade is not None:
                np.testing.assert_allclose(found.reshape(-1, 3).mean(0), item.shade, atol=1, err_msg=name)


def test_a_codec_fault_rejects_one_image_of_its_batch(planted):
    faults = corpus.planted_faults()
    good = [corpus.encoded(corpus.photo(seed)) for seed in range(200)]
    expected = {7 + 23 * n: item for n, item in enumerate(faults.values())}  # several in one batch, others alone
    images = [expected[n].data if n in expected else data for n, data in enumerate(good)]
    for number, found in enumerate(decoded(planted, images)):
        if number in expected:
            assert isinstance(found, Reject)
            assert found.reason == expected[number].reason, found
        else:
            np.testing.assert_array_equal(found, prepare(good[number], planted))


def test_a_batch_of_crashing_images_ends(planted):
    found = decoded(planted, [corpus.planted("EXIT")] * 5)
    assert [image.reason for image in found] == ["decoder-crashed"] * 5


def test_a_crash_that_does_not_repeat_rejects_nothing(planted, tmp_path):
    """The system may have killed the process for a reason other than the image."""
    (tmp_path / "once").mkdir()
    data = corpus.planted(f"ONCE {tmp_path / 'once'}")
    (found,) = decoded(planted, [data])
    assert not (tmp_path / "once").exists()
    np.testing.assert_array_equal(found, prepare(data, planted))


def test_a_process_killed_between_batches_rejects_nothing():
    image = corpus.encoded(corpus.photo())
    with Decoder(CONFIG) as decoder:
        rows = decoder.prepare((n, image) for n in range(300))
        next(rows)
        os.kill(process_of(decoder).pid, signal.SIGKILL)
        assert all(isinstance(found, np.ndarray) for _, found in rows)


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_corrupt_decoder_output_rejects_only_that_image(planted, monkeypatch, late):
    """Both when the process is still decoding that image and when it has finished the batch."""
    ended = DecodingProcess._killed

    def noticed(process, *count):
        time.sleep(late)
        return ended(process, *count)

    monkeypatch.setattr(DecodingProcess, "_killed", noticed)
    good = corpus.encoded(corpus.photo())
    found = decoded(planted, [good, corpus.planted("NONSENSE"), good])
    assert isinstance(found[1], Reject)
    assert found[1].reason == "decoder-crashed"
    np.testing.assert_array_equal(found[0], prepare(good, planted))
    np.testing.assert_array_equal(found[2], found[0])


def test_a_stalled_process_is_killed(planted, monkeypatch):
    monkeypatch.setattr("pipeline.ingest.decode.subprocess_client._STALL_FACTOR", 0.0)
    monkeypatch.setattr("pipeline.ingest.decode.subprocess_client._STALL_SECONDS", 1.5)
    config = planted.model_copy(update={"seed": 4})
    start = time.monotonic()
    found = decoded(config, [corpus.planted("SLEEP"), corpus.encoded(corpus.photo())])
    assert found[0].reason == "decoder-crashed"
    assert isinstance(found[1], np.ndarray)
    assert time.monotonic() - start < 60


def test_the_process_is_reused_and_sees_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-codecs")
    config = IngestConfig(**corpus.LIMITS | {"seed": 2})
    image = corpus.encoded(corpus.photo())
    pids = set()
    for _ in range(3):
        with Decoder(config) as decoder:
            list(decoder.prepare((n, image) for n in range(100)))
            pids.add(process_of(decoder).pid)
    (pid,) = pids
    assert b"not-for-codecs" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_an_error_of_the_source_passes_through_and_leaves_no_half_read_results():
    image = corpus.encoded(corpus.photo())

    def rows():
        yield from ((n, image) for n in range(100))
        raise Transient("the store is away")

    with Decoder(CONFIG) as decoder, pytest.raises(Transient, match="away"):
        list(decoder.prepare(rows()))
    other = corpus.encoded(corpus.photo(5))
    (found,) = decoded(CONFIG, [other])
    np.testing.assert_array_equal(found, prepare(other, CONFIG))


def test_rejects_and_pixels_need_no_process():
    pixels = corpus.random_pixels(16, 16, 3)
    reject = Reject("missing", "gone")
    grey = np.full((40, 16), 7, np.uint8)
    five = np.zeros((4, 4, 5), np.uint8)
    with Decoder(CONFIG) as decoder:
        found = [image for _, image in decoder.prepare(enumerate([reject, pixels, grey, five]))]
        assert decoder._process is None
    assert found[0] is reject
    np.testing.assert_array_equal(found[1], pixels)
    assert (found[2] == 7).all()
    assert found[3].reason == "unsupported-mode"


def test_a_process_that_does_not_start_gives_the_cause(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('no such codec')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        Decoder(IngestConfig(seed=3)) as decoder,
        pytest.raises(PipelineError, match="does not start: SystemExit: no such codec"),
    ):
        list(decoder.prepare([(0, b"x")]))


def test_large_images_are_sent_one_by_one():
    config = IngestConfig(image_size=2048, max_image_pixels=10**7)
    images = [corpus.encoded(corpus.photo(seed)) for seed in range(3)]
    for data, found in zip(images, decoded(config, images), strict=True):
        np.testing.assert_array_equal(found, prepare(data, config))


def test_images_with_an_unusable_profile_are_kept_and_listed():
    good = corpus.photo(1, 16, 16)
    images = [corpus.encoded(good), corpus.encoded(good, icc_profile=b"damaged" * 40), b"text"]
    with Decoder(CONFIG) as decoder:
        found = dict(decoder.prepare(enumerate(images)))
        np.testing.assert_array_equal(found[1], found[0])
        assert isinstance(found[2], Reject)
        assert decoder.unusable_profiles == [1]
