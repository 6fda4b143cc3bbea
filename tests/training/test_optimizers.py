"""Updates, schedules and the plateau rule against loops and numbers written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vgg_flax.config import OptimizerConfig
from vgg_flax.training import optimizers, schedules

# One convolution and one BatchNorm are all the cases there are.
WEIGHTS = {
    "conv1_1": {"kernel": np.array([[1.0, -2.0], [3.0, 0.5]]), "bias": np.array([4.0])},
    "bn1_1": {"scale": np.array([1.5, -1.0]), "bias": np.array([0.25])},
}
STEPS = 5


def gradients(step: int) -> dict[str, dict[str, np.ndarray]]:
    random = np.random.default_rng(step)
    return jax.tree.map(lambda w: random.normal(size=w.shape), WEIGHTS)


def after_steps(config: OptimizerConfig) -> dict[str, dict[str, np.ndarray]]:
    """Weights after `STEPS` updates by the code under test, in float32."""
    transformation = optimizers.make_optimizer(config)
    weights = jax.tree.map(jnp.float32, WEIGHTS)
    state = transformation.init(weights)
    for step in range(STEPS):
        grads = jax.tree.map(jnp.float32, gradients(step))
        direction, state = transformation.update(grads, state, weights)
        weights = jax.tree.map(
            lambda w, d: w - config.learning_rate * d, weights, direction
        )
    return weights


def assert_weights_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-6), actual, expected
    )


def by_hand(update) -> dict[str, dict[str, np.ndarray]]:
    """Weights after `STEPS` of `update(w, v, gradient, layer, name) -> (w, v)`."""
    result = {layer: {} for layer in WEIGHTS}
    for layer, leaves in WEIGHTS.items():
        for name, w in leaves.items():
            v = np.zeros_like(w)
            for step in range(STEPS):
                w, v = update(w, v, gradients(step)[layer][name], layer, name)
            result[layer][name] = w
    return result


def test_coupled_decay_goes_through_the_momentum():
    config = OptimizerConfig(learning_rate=0.1, momentum=0.9, weight_decay=0.05)

    def update(w, v, gradient, layer, name):
        v = 0.9 * v + gradient + 0.05 * w
        return w - 0.1 * v, v

    assert_weights_equal(after_steps(config), by_hand(update))


def test_decoupled_decay_stays_outside_the_momentum():
    config = OptimizerConfig(
        learning_rate=0.1, momentum=0.9, weight_decay=0.05, decoupled_weight_decay=True
    )

    def update(w, v, gradient, layer, name):
        v = 0.9 * v + gradient
        return w - 0.1 * v - 0.1 * 0.05 * w, v

    assert_weights_equal(after_steps(config), by_hand(update))


@pytest.mark.parametrize("decoupled", [False, True])
def test_nesterov_looks_one_momentum_ahead(decoupled):
    config = OptimizerConfig(
        learning_rate=0.1,
        momentum=0.8,
        weight_decay=0.05,
        nesterov=True,
        decoupled_weight_decay=decoupled,
    )

    def update(w, v, gradient, layer, name):
        if decoupled:
            v = 0.8 * v + gradient
            return w - 0.1 * (gradient + 0.8 * v) - 0.1 * 0.05 * w, v
        gradient = gradient + 0.05 * w
        v = 0.8 * v + gradient
        return w - 0.1 * (gradient + 0.8 * v), v

    assert_weights_equal(after_steps(config), by_hand(update))


@pytest.mark.parametrize("decoupled", [False, True])
def test_decay_can_leave_norms_and_biases_alone(decoupled):
    config = OptimizerConfig(
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.05,
        decay_norms_and_biases=False,
        decoupled_weight_decay=decoupled,
    )

    def update(w, v, gradient, layer, name):
        decay = 0.05 * w if (layer, name) == ("conv1_1", "kernel") else 0
        v = 0.9 * v + gradient + (0 if decoupled else decay)
        return w - 0.1 * v - (0.1 * decay if decoupled else 0), v

    assert_weights_equal(after_steps(config), by_hand(update))


def test_without_momentum_and_decay_the_direction_is_the_gradient():
    config = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0)
    assert_weights_equal(
        after_steps(config), by_hand(lambda w, v, g, *_: (w - 0.1 * g, v))
    )


def schedule(
    steps_per_epoch: float, total_steps: int = 1000, **fields: object
) -> optax.Schedule:
    config = OptimizerConfig(learning_rate=0.1, **fields)
    return schedules.make_schedule(config, steps_per_epoch, total_steps)


def assert_rates(schedule: optax.Schedule, expected: dict[int, float]) -> None:
    traced = jax.jit(schedule)  # as the training step does
    actual = {step: float(traced(jnp.int32(step))) for step in expected}
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", ["constant", "plateau"])
def test_constant_and_plateau_keep_the_learning_rate(kind):
    assert_rates(schedule(10, schedule=kind), {0: 0.1, 1: 0.1, 500: 0.1, 10**6: 0.1})


@pytest.mark.parametrize("kind", ["constant", "plateau"])
def test_constant_and_plateau_rise_linearly_in_warmup(kind):
    rates = {0: 0.0, 1: 0.005, 10: 0.05, 19: 0.095, 20: 0.1, 21: 0.1, 999: 0.1}
    assert_rates(schedule(10, schedule=kind, warmup_epochs=2.0), rates)


def test_step_multiplies_at_epochs_30_and_60():
    rates = {0: 0.1, 299: 0.1, 300: 0.01, 599: 0.01, 600: 0.001, 899: 0.001}
    assert_rates(schedule(10, schedule="step"), rates)


def test_step_counts_its_epochs_from_the_start_of_warmup():
    rates = {0: 0, 25: 0.05, 49: 0.098, 50: 0.1, 299: 0.1, 300: 0.01, 599: 0.01}
    rates |= {600: 0.001}
    assert_rates(schedule(10, schedule="step", warmup_epochs=5.0), rates)


def test_step_takes_its_epochs_and_factor_from_the_config():
    rates = {39: 0.1, 40: 0.05, 79: 0.05, 80: 0.025, 95: 0.025, 96: 0.0125}
    fields = {"decay_epochs": (10.0, 20.0, 24.0), "decay_factor": 0.5}
    assert_rates(schedule(4, schedule="step", **fields), rates)


def test_an_epoch_need_not_be_a_whole_number_of_steps():
    # 30 x 31.27 = 938.1 and 60 x 31.27 = 1876.2; 1.5 x 31.27 = 46.9 of warmup.
    rates = {937: 0.1, 938: 0.01, 1875: 0.01, 1876: 0.001}
    assert_rates(schedule(31.27, schedule="step"), rates)
    rates |= {0: 0, 1: 0.1 / 47, 46: 0.1 * 46 / 47, 47: 0.1}
    assert_rates(schedule(31.27, schedule="step", warmup_epochs=1.5), rates)


def test_cosine_falls_from_the_peak_to_zero_at_the_last_step():
    rates = {0: 0.1, 250: 0.05 * (1 + np.sqrt(0.5)), 500: 0.05, 1000: 0, 1001: 0}
    assert_rates(schedule(10, schedule="cosine"), rates)


def test_cosine_after_warmup_peaks_at_its_end_and_still_ends_at_the_last_step():
    # 200 steps of warmup leave 800 of cosine: its half is at 200 + 400.
    rates = {0: 0, 100: 0.05, 199: 0.0995, 200: 0.1, 600: 0.05, 1000: 0, 1200: 0}
    rates |= {400: 0.05 * (1 + np.sqrt(0.5)), 800: 0.05 * (1 - np.sqrt(0.5))}
    assert_rates(schedule(10, schedule="cosine", warmup_epochs=20.0), rates)


def plateau_states(
    accuracies: list[float], **fields: object
) -> list[tuple[float, int, int]]:
    """(best, stale, decays) after each evaluation."""
    config = OptimizerConfig(schedule="plateau", **fields)
    plateau, states = schedules.init_plateau(), []
    for top1 in accuracies:
        plateau = schedules.update_plateau(config, plateau, top1)
        states.append((float(plateau.best), int(plateau.stale), int(plateau.decays)))
    return states


def test_plateau_decays_after_patience_evaluations_without_a_better_accuracy():
    states = plateau_states(
        [0.25, 0.5, 0.375, 0.625, 0.5, 0.625, 0.5, 0.625, 0.75, 0.5, 0.5, 0.875],
        plateau_patience=2,
        plateau_max_decays=3,
    )
    assert states == [
        (0.25, 0, 0),
        (0.5, 0, 0),
        (0.5, 1, 0),  # worse; the best is kept
        (0.625, 0, 0),  # better: patience starts anew
        (0.625, 1, 0),
        (0.625, 0, 1),  # equal is no improvement: the second in a row
        (0.625, 1, 1),  # after a decay, too, patience starts anew
        (0.625, 0, 2),
        (0.75, 0, 2),
        (0.75, 1, 2),
        (0.75, 0, 3),
        (0.875, 0, 3),
    ]


def test_plateau_decays_no_more_often_than_allowed():
    states = plateau_states([0.5] * 20, plateau_patience=1, plateau_max_decays=3)
    assert [decays for _, _, decays in states] == [0, 1, 2, 3] + [3] * 16
    states = plateau_states([0.5] * 5, plateau_patience=1, plateau_max_decays=0)
    assert [decays for _, _, decays in states] == [0] * 5


@pytest.mark.parametrize("top1", [0.9, 0.1, 0.7, 2 / 3, 0.3, 1 / 7])
def test_an_equal_accuracy_is_no_improvement_after_rounding_to_float32(top1):
    # 0.7 is less as float32, 0.9 is less, 0.1 is more: both directions are here.
    states = plateau_states([top1] * 4, plateau_patience=10)
    assert [stale for _, stale, _ in states] == [0, 1, 2, 3]


def test_an_accuracy_of_zero_is_better_than_none():
    assert plateau_states([0.0, 0.0]) == [(0.0, 0, 0), (0.0, 1, 0)]


def test_a_plateaus_types_do_not_change():
    before = schedules.init_plateau()
    after = schedules.update_plateau(OptimizerConfig(), before, np.float64(0.3))
    for plateau in (before, after):
        assert plateau.best.dtype == jnp.float32
        assert plateau.stale.dtype == plateau.decays.dtype == jnp.int32
        assert {leaf.shape for leaf in jax.tree.leaves(plateau)} == {()}


@pytest.mark.parametrize("factor", [0.1, 0.5])
def test_the_plateaus_factor_is_a_power_of_the_decay(factor):
    config = OptimizerConfig(schedule="plateau", decay_factor=factor)
    plateau = schedules.init_plateau()
    for expected in (1, factor, factor**2, factor**3):
        actual = jax.jit(lambda p: schedules.plateau_factor(config, p))(plateau)
        assert float(actual) == pytest.approx(expected, rel=1e-6)
        plateau = plateau.replace(decays=plateau.decays + 1)


@pytest.mark.parametrize("kind", ["constant", "step", "cosine"])
def test_other_schedules_know_no_plateau(kind):
    plateau = schedules.init_plateau().replace(decays=jnp.int32(2))
    assert schedules.plateau_factor(OptimizerConfig(schedule=kind), plateau) == 1


def test_decays_that_fall_on_one_step_multiply() -> None:
    config = OptimizerConfig(
        learning_rate=1.0, schedule="step", decay_epochs=(2.0, 4.0), warmup_epochs=5.0
    )
    schedule = schedules.make_schedule(config, 10, 1000)
    np.testing.assert_allclose(float(schedule(60)), 0.01, rtol=1e-6)
