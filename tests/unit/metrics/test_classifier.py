"""The trained extractor: accuracy, reproducibility, stored form, and refusal of other data."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from pipeline.config.evaluation import EvaluateConfig
from pipeline.errors import DataError
from pipeline.metrics.classifier import CLASS_CNN, ROTATION_CNN, Classifier, train_classifier
from pipeline.metrics.features import fingerprint_of
from pipeline.metrics.frechet import frechet
from pipeline.metrics.moments import Moments
from pipeline.metrics.reference_images import blurred, noise_images

pytestmark = pytest.mark.unit
CONFIG = EvaluateConfig(classifier_epochs=8, classifier_width=16)
NUM_HELDOUT = 300


@pytest.fixture(scope="module")
def digits():
    """(images uint8 [1797, 8, 8, 1], labels), shuffled."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.images * 255 / 16).round().astype(np.uint8)[order, :, :, None], data.target[order]


@pytest.fixture(scope="module")
def trained(digits) -> Classifier:
    images, labels = digits
    return train_classifier(images[NUM_HELDOUT:], labels[NUM_HELDOUT:], CONFIG)


@pytest.fixture(scope="module")
def unlabelled(digits) -> Classifier:
    return train_classifier(digits[0][NUM_HELDOUT:], None, CONFIG)


def test_digits_are_learnt(digits, trained):
    images, labels = digits
    assert trained.name == CLASS_CNN
    assert trained.evaluate_accuracy(images[:NUM_HELDOUT], labels[:NUM_HELDOUT]) > 0.95
    shuffled = np.roll(labels[:NUM_HELDOUT], 1)
    assert trained.evaluate_accuracy(images[:NUM_HELDOUT], shuffled) < 0.3


def test_rotations_are_learnt_without_labels(digits, unlabelled):
    assert unlabelled.name == ROTATION_CNN
    assert unlabelled.num_outputs == 4
    assert unlabelled.evaluate_accuracy(digits[0][:NUM_HELDOUT], None) > 0.8


def test_training_repeats_bit_for_bit_and_leaves_the_global_state_alone(digits):
    images, labels = digits
    short = EvaluateConfig(classifier_epochs=1, classifier_width=8)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = train_classifier(images, labels, short)
    torch.rand(3)
    torch.set_num_threads(2)
    again = train_classifier(images, labels, short)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    other = train_classifier(images, labels, EvaluateConfig(classifier_epochs=1, classifier_width=8, seed=1))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_epochs_are_reported(digits):
    records = []
    train_classifier(*digits, EvaluateConfig(classifier_epochs=3, classifier_width=8), records.append)
    assert [(r.epoch, r.num_epochs) for r in records] == [(1, 3), (2, 3), (3, 3)]
    assert records[-1].loss < records[0].loss < 2.31  # ln 10 is a guess among ten
    assert records[0].accuracy < records[-1].accuracy <= 1


def test_a_feature_does_not_depend_on_its_batch(digits, trained):
    images = digits[0][:150]
    features = trained.features(images)
    assert features.dtype == np.float32
    assert features.shape == (150, trained.feature_dim)
    assert trained.feature_dim == 4 * CONFIG.classifier_width
    assert (features >= 0).all()
    np.testing.assert_array_equal(trained.features(images[140:143]), features[140:143])
    np.testing.assert_array_equal(trained.features(images[::-1])[::-1], features)
    assert trained.features(images[:0]).shape == (0, trained.feature_dim)


def test_probabilities_follow_from_the_features(digits, trained):
    probabilities = trained.probabilities(digits[0][:20])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert probabilities.shape == (20, 10)


def test_an_output_holds_features_and_probabilities(digits, trained, unlabelled):
    images = digits[0][:130]
    features, probabilities = trained.extract(images)
    np.testing.assert_array_equal(features, trained.features(images))
    np.testing.assert_array_equal(probabilities, trained.probabilities(images))
    features, probabilities = unlabelled.extract(images)
    np.testing.assert_array_equal(features, unlabelled.features(images))
    assert probabilities is None, "quarter turns are no classes"


def test_storage_keeps_network_and_hash(digits, trained):
    copy = Classifier.from_bytes(trained.to_bytes())
    assert (copy.name, copy.weights_sha256, copy.preprocessing) == (
        trained.name,
        trained.weights_sha256,
        trained.preprocessing,
    )
    np.testing.assert_array_equal(copy.features(digits[0][:9]), trained.features(digits[0][:9]))
    with pytest.raises(DataError, match="classifier"):
        Classifier.from_bytes(trained.to_bytes()[:-8])


def test_the_fingerprint_identifies_network_and_preprocessing(trained, unlabelled):
    fingerprint = fingerprint_of(trained, "digits@12ab/train")
    assert fingerprint.extractor == "class-cnn"
    assert fingerprint.weights_sha256 == trained.weights_sha256
    assert fingerprint.feature_dim == trained.feature_dim
    assert "8x8x1" in fingerprint.preprocessing
    with pytest.raises(DataError, match=r"extractor: .*weights_sha256: "):
        fingerprint.require_same(fingerprint_of(unlabelled, "digits@12ab/train"))


@pytest.mark.parametrize("which", ["trained", "unlabelled"])
def test_real_images_score_far_below_blur_and_noise(digits, which, request):
    extractor = request.getfixturevalue(which)
    images = digits[0]

    def moments(batch: np.ndarray) -> Moments:
        return Moments.empty(fingerprint_of(extractor, "digits/train")).update(extractor.features(batch))

    reference, heldout = moments(images[NUM_HELDOUT:]), images[:NUM_HELDOUT]
    floor = frechet(reference, moments(heldout)).value
    assert frechet(reference, moments(blurred(heldout))).value > 10 * floor
    assert frechet(reference, moments(noise_images(NUM_HELDOUT, (8, 8, 1), seed=0))).value > 10 * floor


def test_what_cannot_be_read_is_refused(digits, trained):
    images, labels = digits
    with pytest.raises(DataError, match=r"\(8, 8, 1\)"):
        trained.features(images[:, :7])
    with pytest.raises(DataError, match="uint8"):
        trained.features(images.astype(np.float32))
    with pytest.raises(DataError, match="label"):
        trained.evaluate_accuracy(images, None)
    for bad_labels in (labels[:-1], np.zeros_like(labels), labels - 1):
        with pytest.raises(DataError, match="labels"):
            train_classifier(images, bad_labels, CONFIG)
    with pytest.raises(DataError, match="square"):
        train_classifier(images[:, :7], None, CONFIG)
    with pytest.raises(DataError, match="at least 2"):
        train_classifier(images[:1], labels[:1], CONFIG)


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 5, 1), (64, 64, 3)])
def test_any_image_size_works(shape):
    images = noise_images(8, shape, seed=0)
    labels = np.arange(8) % 2
    network = train_classifier(images, labels, EvaluateConfig(classifier_epochs=1, classifier_width=4))
    assert network.features(images).shape == (8, 16)
