"""Optimisers, clipping and schedules against optax's own, and torch's where it is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vgg_flax.config import OptimizerConfig
from vgg_flax.training import optimizers, schedules

RATE, DECAY, STEPS = 0.05, 0.1, 4


def draw(seed: int, scale: float = 1.0) -> Any:
    """A convolution, a norm and an FC layer; one kernel is wide, one is tall."""
    random = np.random.default_rng(seed)
    shapes = {
        "conv1_1": {"kernel": (3, 3, 2, 5), "bias": (5,)},
        "bn1_1": {"scale": (5,), "bias": (5,)},
        "fc8": {"kernel": (1, 1, 4, 6), "bias": (6,)},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(random.normal(0, scale, shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def gradients(step: int) -> Any:
    """Of a step, from 1 on: the second's are far smaller, the third's are partly 0."""
    grads = draw(step, 0.01 if step == 2 else 1.0)
    if step == 3:
        grads["fc8"] = jax.tree.map(jnp.zeros_like, grads["fc8"])
    return grads


def trained(transformation: Any, rate: float | None) -> Any:
    """Weights after some updates by a direction at this rate; None: by updates."""
    params = draw(0)
    state = transformation.init(params)
    factor = 1 if rate is None else -rate
    for step in range(1, STEPS + 1):
        updates, state = transformation.update(gradients(step), state, params)
        params = jax.tree.map(lambda w, u: w + factor * u, params, updates)
    return params


def ours(**fields: Any) -> Any:
    fields = {"weight_decay": DECAY, "learning_rate": RATE, **fields}
    return trained(optimizers.make_optimizer(OptimizerConfig(**fields)), RATE)


def assert_same(one: Any, other: Any, rtol: float = 2e-5) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), one, other
    )


def kernels(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda p, _: p[-1].key == "kernel", params)


def muons_axes(params: Any) -> Any:
    axes = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return jax.tree.map(lambda yes: axes if yes else None, kernels(params))


THEIRS = {
    "adamw": (
        {},
        optax.adamw(RATE, 0.9, 0.999, 1e-8, weight_decay=DECAY),
    ),
    "adamw, kernels alone decay, other betas": (
        {"beta1": 0.7, "beta2": 0.9, "epsilon": 0.1, "decay_norms_and_biases": False},
        optax.adamw(RATE, 0.7, 0.9, 0.1, weight_decay=DECAY, mask=kernels),
    ),
    "lamb": ({}, optax.lamb(RATE, 0.9, 0.999, 1e-8, weight_decay=DECAY)),
    "lion": ({}, optax.lion(RATE, 0.9, 0.99, weight_decay=DECAY)),
    "rmsprop": (
        {"weight_decay": 0.0},
        optax.rmsprop(RATE, 0.99, 1e-8, eps_in_sqrt=False, momentum=0.9),
    ),
    "muon": (
        {"momentum": 0.95},
        optax.contrib.muon(
            RATE,
            nesterov=False,
            weight_decay=DECAY,
            adam_weight_decay=DECAY,
            muon_weight_dimension_numbers=muons_axes,
            consistent_rms=0.2,
        ),
    ),
}


@pytest.mark.parametrize("name", THEIRS)
def test_an_optimiser_is_optaxs(name: str) -> None:
    fields, theirs = THEIRS[name]
    assert_same(ours(name=name.split(",")[0], **fields), trained(theirs, None))


def test_muon_with_nesterovs_momentum_is_optaxs() -> None:
    """Whose Adam looks ahead then too; ours does not."""
    theirs = optax.contrib.muon(
        RATE, muon_weight_dimension_numbers=muons_axes, consistent_rms=0.2
    )
    fields = {"momentum": 0.95, "nesterov": True, "weight_decay": 0.0}
    pairs = zip(
        jax.tree.leaves_with_path(ours(name="muon", **fields)),
        jax.tree.leaves(trained(theirs, None)),
        strict=True,
    )
    for (path, one), other in pairs:
        if path[-1].key == "kernel":
            assert_same(one, other)


def test_sgd_is_what_it_was_to_the_bit() -> None:
    earlier = optax.chain(optax.add_decayed_weights(DECAY), optax.trace(0.9))
    jax.tree.map(np.testing.assert_array_equal, ours(), trained(earlier, RATE))
    state = optimizers.make_optimizer(OptimizerConfig()).init(draw(0))
    assert jax.tree.structure(state) == jax.tree.structure(earlier.init(draw(0)))


def test_rmsprop_may_decay_apart_from_the_gradients() -> None:
    theirs = optax.chain(
        optax.scale_by_rms(0.9, 1e-8, eps_in_sqrt=False),
        optax.trace(0.9),
        optax.add_decayed_weights(DECAY),
    )
    fields = {"name": "rmsprop", "beta2": 0.9, "decoupled_weight_decay": True}
    assert_same(ours(**fields), trained(theirs, RATE))


CLIPS = {
    "clip_value": optax.clip(0.3),
    "adaptive_clip": optax.adaptive_grad_clip(0.1),
    "clip_norm": optax.clip_by_global_norm(2.0),
}
LIMITS = {"clip_value": 0.3, "adaptive_clip": 0.1, "clip_norm": 2.0}


@pytest.mark.parametrize("names", [*((name,) for name in CLIPS), (*CLIPS,)])
def test_clipping_is_optaxs_and_leaves_small_gradients_alone(
    names: tuple[str, ...],
) -> None:
    """Before weight decay and momentum; of several, in this order."""
    theirs = optax.chain(
        *(CLIPS[name] for name in names),
        optax.add_decayed_weights(DECAY),
        optax.trace(0.9),
    )
    assert_same(ours(**{name: LIMITS[name] for name in names}), trained(theirs, RATE))


def test_clipping_keeps_the_state_where_it_was() -> None:
    plain, clipped = (
        optimizers.make_optimizer(OptimizerConfig(clip_norm=n)).init(draw(0))
        for n in (0.0, 1.0)
    )
    assert jax.tree.structure(plain) == jax.tree.structure(clipped)


def rates(total_steps: int = 100, **fields: Any) -> np.ndarray:
    """At the first steps and past the end, ten steps an epoch, at most 0.2."""
    config = OptimizerConfig(learning_rate=0.2, **fields)
    schedule = schedules.make_schedule(config, 10.0, total_steps)
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(total_steps + 9)))


SCHEDULES = {
    "a cosine to a share": (
        {"schedule": "cosine", "final_factor": 0.25},
        optax.cosine_decay_schedule(0.2, 100, 0.25),
    ),
    "a cosine after a warm-up from a share": (
        {"schedule": "cosine", "warmup_epochs": 2.0, "warmup_factor": 0.25},
        optax.warmup_cosine_decay_schedule(0.05, 0.2, 20, 100),
    ),
    "exponential": (
        {"schedule": "exponential", "decay_factor": 0.9},
        optax.exponential_decay(0.2, 10, 0.9),
    ),
    "exponential, not below a share": (
        {"schedule": "exponential", "decay_factor": 0.7, "final_factor": 0.25},
        optax.exponential_decay(0.2, 10, 0.7, end_value=0.05),
    ),
    "linear": (
        {"schedule": "polynomial"},
        optax.linear_schedule(0.2, 0.0, 100),
    ),
    "polynomial after a warm-up, to a share": (
        {
            "schedule": "polynomial",
            "decay_power": 2.0,
            "final_factor": 0.25,
            "warmup_epochs": 2.0,
        },
        optax.join_schedules(
            [
                optax.linear_schedule(0.0, 0.2, 20),
                optax.polynomial_schedule(0.2, 0.05, 2.0, 80),
            ],
            [20],
        ),
    ),
    "one cycle": (
        {
            "schedule": "one_cycle",
            "warmup_epochs": 3.0,
            "warmup_factor": 1 / 25,
            "final_factor": 1 / 25e4,
        },
        optax.cosine_onecycle_schedule(100, 0.2, 0.3, 25.0, 1e4),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_optaxs(name: str) -> None:
    fields, theirs = SCHEDULES[name]
    expected = [float(theirs(step)) for step in range(109)]
    np.testing.assert_allclose(rates(**fields), expected, rtol=1e-5, atol=1e-8)


def test_a_schedule_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    lr = torch.optim.lr_scheduler
    # torch's cycle has its peak and its end a step sooner than where it counts them.
    pairs = {
        "exponential": (
            {"decay_factor": 0.9**10},
            lambda o: lr.ExponentialLR(o, 0.9),
        ),
        "polynomial": (
            {"decay_power": 3.0},
            lambda o: lr.PolynomialLR(o, 100, 3.0),
        ),
        "cosine": (
            {"final_factor": 0.25},
            lambda o: lr.CosineAnnealingLR(o, 100, eta_min=0.05),
        ),
        "constant": (
            {"warmup_epochs": 4.0, "warmup_factor": 0.25},
            lambda o: lr.LinearLR(o, 0.25, total_iters=40),
        ),
        "step": (
            {"decay_epochs": (3.0, 5.0), "decay_factor": 0.5},
            lambda o: lr.MultiStepLR(o, [30, 50], 0.5),
        ),
        "one_cycle": (
            {"warmup_epochs": 3.0, "warmup_factor": 0.04, "final_factor": 4e-6},
            lambda o: lr.OneCycleLR(o, 0.2, total_steps=101, pct_start=31 / 101),
        ),
    }
    for schedule, (fields, make) in pairs.items():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.2)
        theirs, expected = make(optimizer), []
        for _ in range(101):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(expected) <= 100:
                theirs.step()
        mine = rates(schedule=schedule, **fields)[:101]
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-7)


def test_an_optimiser_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    pairs = {
        "adamw": (torch.optim.AdamW, {}, {}),
        "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9}, {}),
        "sgd": (torch.optim.SGD, {"momentum": 0.8}, {"momentum": 0.8}),
    }
    for name, (made, theirs, fields) in pairs.items():
        leaves, structure = jax.tree.flatten(draw(0))
        params = [torch.tensor(np.asarray(x), requires_grad=True) for x in leaves]
        optimizer = made(params, RATE, weight_decay=DECAY, **theirs)

        for step in range(1, STEPS + 1):
            grads = jax.tree.leaves(gradients(step))
            for param, grad in zip(params, grads, strict=True):
                param.grad = torch.tensor(np.asarray(grad))
            optimizer.step()
        there = structure.unflatten([p.detach().numpy() for p in params])
        assert_same(ours(name=name, **fields), there)
