"""Cross entropy and top-k sums against scikit-learn, hand numbers and their mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
import sklearn.metrics

from vgg_flax import metrics

BATCH, CLASSES = 64, 12


def random_batch(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (so wide that many labels miss the top 5), labels and a mask."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 3, (BATCH, CLASSES)).astype(np.float32)
    labels = random.integers(0, CLASSES, BATCH).astype(np.int32)
    return logits, labels, random.random(BATCH) < 0.7


def expected_sums(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """scikit-learn's, over all the examples it is given."""
    classes = np.arange(CLASSES)
    probabilities = scipy.special.softmax(logits.astype(np.float64), axis=1)
    top1, top5 = (
        sklearn.metrics.top_k_accuracy_score(
            labels, logits, k=k, normalize=False, labels=classes
        )
        for k in (1, 5)
    )
    loss = sklearn.metrics.log_loss(
        labels, probabilities, normalize=False, labels=classes
    )
    return {"loss": loss, "top1": top1, "top5": top5, "count": len(labels)}


def sums(
    logits: np.ndarray, labels: np.ndarray, mask: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    mask = np.ones(len(labels), bool) if mask is None else mask
    return jax.tree.map(
        np.asarray, metrics.sums(*map(jnp.asarray, (logits, labels, mask)))
    )


@pytest.mark.parametrize("seed", range(5))
def test_sums_over_the_unmasked_examples_are_scikit_learns(seed):
    logits, labels, mask = random_batch(seed)
    expected = expected_sums(logits[mask], labels[mask])
    assert 0 < expected["top1"] < expected["top5"] < expected["count"] < BATCH
    actual = sums(logits, labels, mask)
    assert set(actual) == set(expected)
    assert actual["loss"] == pytest.approx(expected.pop("loss"), rel=1e-5)
    assert {name: int(actual[name]) for name in expected} == expected


def test_cross_entropy_of_each_example_is_scikit_learns():
    logits, labels, _ = random_batch(0)
    actual = metrics.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    expected = [
        expected_sums(logits[i : i + 1], labels[i : i + 1])["loss"]
        for i in range(BATCH)
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_in_nats():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    actual = metrics.cross_entropy(logits, jnp.array([1, 2]))
    np.testing.assert_allclose(actual, [np.log(4), -np.log(0.7)], rtol=1e-6)


def test_cross_entropy_of_huge_logits_is_finite():
    logits = jnp.array([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4]])
    actual = metrics.cross_entropy(logits, jnp.array([0, 2]))
    np.testing.assert_allclose(actual, [0, 2e4])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_losss_dtype_is_the_logits(dtype):
    logits, labels = jnp.zeros((2, 3), dtype), jnp.zeros(2, jnp.int32)
    assert metrics.cross_entropy(logits, labels).dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_counts_are_int32_and_the_loss_a_float_scalar(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        logits, mask = jnp.zeros((3, 7), dtype), jnp.array([True, False, True])
        actual = metrics.sums(logits, jnp.zeros(3, jnp.int32), mask)
    assert {name: value.shape for name, value in actual.items()} == dict.fromkeys(
        ("loss", "top1", "top5", "count"), ()
    )
    assert {actual[name].dtype for name in ("top1", "top5", "count")} == {
        jnp.dtype("int32")
    }
    assert actual["loss"].dtype == dtype


@pytest.mark.parametrize("garbage", [-1, 10**6, CLASSES, np.iinfo(np.int32).min])
def test_labels_of_masked_examples_may_be_anything(garbage):
    logits, labels, mask = random_batch(1)
    expected = sums(logits[mask], labels[mask])
    actual = sums(logits, np.where(mask, labels, garbage).astype(np.int32), mask)
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=1e-6)
    for name in ("top1", "top5", "count"):
        assert actual[name] == expected[name]


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38])
def test_logits_of_masked_examples_do_not_leak_into_the_sums(garbage):
    logits, labels, mask = random_batch(2)
    expected = sums(logits[mask], labels[mask])
    actual = sums(np.where(mask[:, None], logits, np.float32(garbage)), labels, mask)
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=1e-6)
    for name in ("top1", "top5", "count"):
        assert actual[name] == expected[name]


def test_an_unmasked_nan_is_not_hidden():
    logits, labels, mask = random_batch(2)
    logits[np.flatnonzero(mask)[0], 3] = np.nan
    assert np.isnan(sums(logits, labels, mask)["loss"])


def test_a_batch_masked_altogether_sums_to_zero():
    logits, labels, _ = random_batch(3)
    actual = sums(logits, labels, np.zeros(BATCH, bool))
    assert actual == {"loss": 0, "top1": 0, "top5": 0, "count": 0}


def test_the_losss_gradient_is_softmax_minus_one_hot_under_the_mask():
    logits, labels, mask = random_batch(4)
    gradient = jax.grad(lambda x: metrics.sums(x, labels, mask)["loss"])(logits)
    one_hot = np.eye(CLASSES)[labels]
    expected = (scipy.special.softmax(logits, axis=1) - one_hot) * mask[:, None]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient[~mask], np.zeros(((~mask).sum(), CLASSES)))


@pytest.mark.parametrize("k", [1, 2, 5, 11])
def test_is_top_k_counts_as_scikit_learn(k):
    logits, labels, _ = random_batch(6)
    hits = metrics.is_top_k(jnp.asarray(logits), jnp.asarray(labels), k)
    assert hits.dtype == bool
    assert hits.shape == (BATCH,)
    assert hits.sum() == sklearn.metrics.top_k_accuracy_score(
        labels, logits, k=k, normalize=False, labels=np.arange(CLASSES)
    )


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_a_net_of_five_classes_or_fewer_always_hits_the_top_5(classes):
    random = np.random.default_rng(classes)
    logits = random.normal(size=(20, classes)).astype(np.float32)
    labels = (np.arange(20) % classes).astype(np.int32)
    actual = sums(logits, labels)
    assert actual["top5"] == 20
    assert actual["top1"] == (logits.argmax(1) == labels).sum()


def test_of_equal_logits_the_lower_class_counts_as_the_larger():
    # Class 6 leads; the other six are equal: 0 to 3 fill the top 5, 4 and 5 miss it.
    logits = np.zeros((7, 7), np.float32)
    logits[:, 6] = 1
    labels = np.arange(7, dtype=np.int32)
    hits = metrics.is_top_k(jnp.asarray(logits), jnp.asarray(labels), 5)
    assert hits.tolist() == [True, True, True, True, False, False, True]
    # All equal, as logits of an untrained net may be: class 0 alone is "the largest".
    hits = metrics.is_top_k(jnp.zeros((7, 7)), jnp.asarray(labels), 1)
    assert hits.tolist() == [True] + [False] * 6


def test_masked_rows_do_not_reach_the_gradient() -> None:
    logits = jnp.array([[1.0, 2.0, 3.0], [jnp.nan, jnp.inf, 0.0]])
    labels, mask = jnp.array([0, -1]), jnp.array([True, False])
    gradient = jax.grad(lambda x: metrics.sums(x, labels, mask)["loss"])(logits)
    np.testing.assert_array_equal(gradient[1], np.zeros(3))
    assert np.isfinite(gradient).all()
