"""The training and evaluation steps as one replica sees them: pure functions.

They know the mapped axis by its name and nothing of devices; `parallel` maps them.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vgg_flax import metrics, model, parallel
from vgg_flax.config import Config
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.training import optimizers, schedules, state
from vgg_flax.training.state import TrainState

Metrics = dict[str, Any]  # of scalar arrays

# Where cut FC kernels travel. A TPU gathers one at a time beside the computation, so
# each has stages of its own; fc6 has the longest, and is kept for the shortest time.
_GATHERED_UNDER = {1: "fc8", 2: "fc7", 3: "fc6"}
# The stages whose backward pass hides the rounds of `FCShards.halve`, and how many of
# these: the first round moves half of all bytes, the second a quarter, ...
_REDUCED_UNDER = (((5, 4), 1), ((3,), 1), ((2,), 2), ((1,), 99))

# How many images `config.remat` does at a time: enough to fill a matrix unit with, and
# little memory even where 64 channels take the room of a TPU's 128 lanes.
_REMAT_IMAGES = 16


def make_train_step(
    config: Config,
    schedule: optax.Schedule,
    shards: parallel.FCShards = parallel.UNCUT,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """The update for one replica's part of the global batch.

    Args:
      config: the run.
      schedule: step -> learning rate, before the plateau's factor.
      shards: how the state's FC kernels are cut.

    Returns:
      `train_step(state, batch) -> (state, metrics)`. `batch` is what
      `dataset.train_batches` yields. `metrics` holds sums over the global batch,
      `loss` (cross entropy alone), `top1`, `top5`, `count`, and the scalars
      `learning_rate`, `gradient_norm` and `parameter_norm` (of the new params).
    """
    transformation = optimizers.make_optimizer(config.optimizer)
    pieces = config.optimizer.accumulation_steps
    grad_fn = _make_grad_fn(config, shards)

    def train_step(
        state: TrainState, batch: dict[str, jax.Array]
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        run = functools.partial(grad_fn, state.params, key=key)
        batch_stats, (grads, own), sums = _accumulate(
            run, state.batch_stats, batch, pieces
        )
        # Sums over replicas, divided once: masked examples weigh nothing anywhere.
        grads, sums = jax.lax.psum((grads, sums), parallel.AXIS_NAME)
        grads |= {k: {**grads[k], "kernel": kernel} for k, kernel in own.items()}
        count = jnp.maximum(sums["count"], 1)
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
        batch_stats = jax.lax.pmean(batch_stats, parallel.AXIS_NAME)

        learning_rate = schedule(state.step) * schedules.plateau_factor(
            config.optimizer, state.plateau
        )
        direction, opt_state = transformation.update(
            grads, state.opt_state, state.params
        )
        params = jax.tree.map(
            lambda w, d: w - jnp.asarray(learning_rate, w.dtype) * d,
            state.params,
            direction,
        )
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, {
            **sums,
            "learning_rate": learning_rate,
            "gradient_norm": shards.norm(grads),
            "parameter_norm": shards.norm(params),
        }

    return train_step


def _make_grad_fn(config: Config, shards: parallel.FCShards) -> Callable[..., Any]:
    """`grad_fn(params, batch_stats, batch, totals, key)`.

    It returns `(grads, own), (batch_stats, sums)`: gradients, to which `totals`, those
    of the micro-batches before, are added as soon as they are known.

    Back-propagation by hand, part by part of the net, because two things happen between
    the parts: with `config.remat` a stage's activations are computed again when its
    turn comes, for some images at a time, and the gradients of FC kernels, which are
    ready first, are reduced over the replicas (`own`) while the convolutions are busy.
    """
    net = state.make_model(config.model)
    preprocessing = Preprocessing.of(config.data)

    def grad_fn(
        params: Any, batch_stats: Any, batch: Any, totals: Any, key: jax.Array
    ) -> Any:
        # Keeps the compiler from putting off a stage, what is to travel under it, or
        # the sum that makes a gradient's memory free.
        held = shards.shapes or totals[0]
        hold = jax.lax.optimization_barrier if held else lambda x: x

        def run(part: int, params: Any, x: jax.Array) -> Any:
            return net.apply(
                {"params": params, "batch_stats": _part(batch_stats, part)},
                x,
                (part,),
                train=True,
                example_index=batch["index"],
                rngs={"dropout": key},
                mutable=["batch_stats"],
                method="walk",
            )

        def head(params: Any, x: jax.Array) -> Any:
            logits = run(model.PARTS[-1], params, x)[0].mean(axis=(1, 2))
            sums = metrics.sums(logits, batch["label"], batch["mask"])
            return sums["loss"], sums

        x = preprocessing.normalize(
            batch["image"], batch.get("color_shift"), net.param_dtype
        )
        rows, kernels = shards.rows(params), {}
        pullbacks, updates = {}, {}
        for stage in model.STAGES:
            layer = _GATHERED_UNDER.get(stage)
            if layer in rows:
                x, mine, kernels = hold((x, rows[layer], kernels))
                kernels[layer] = shards.gather(layer, mine)
            fn = functools.partial(run, stage)
            if config.remat:
                fn = _frugal(fn, None if batch_stats else _REMAT_IMAGES)
            x, pullbacks[stage], update = jax.vjp(
                fn, _part(params, stage), x, has_aux=True
            )
            updates |= update.get("batch_stats", {})
        whole = parallel.replace_kernels(_part(params, model.PARTS[-1]), kernels)
        _, pullback, sums = jax.vjp(head, whole, x, has_aux=True)
        of_head, g = pullback(jnp.ones((), net.param_dtype))
        pending = shards.cut(of_head)
        for layer in pending:
            of_head[layer] = {k: v for k, v in of_head[layer].items() if k != "kernel"}
        g, grads, pending = hold((g, _plus(totals[0], of_head), pending))
        rounds = iter(range(shards.rounds))
        for stages, count in _REDUCED_UNDER:
            for number in itertools.islice(rounds, count):
                pending = shards.halve(number, pending)
            for stage in stages:
                of_stage, g = pullbacks[stage](g)
                g, of_stage = hold((g, _plus(totals[0], of_stage)))
                grads |= of_stage
            g, pending = hold((g, pending))
        own = _plus(totals[1], shards.own(pending))
        return (grads, own), (updates, sums)

    return grad_fn


def _frugal(run: Callable[..., Any], images: int | None) -> Callable[..., Any]:
    """`run(params, x)`, whose derivative keeps x alone.

    Given `images`, it goes through x so many at a time, or the next smaller number that
    divides the batch, forwards and backwards: the activations of no more are there.
    """
    run = jax.checkpoint(run)
    if images is None:
        return run

    def in_turn(params: Any, x: jax.Array) -> Any:
        each = max(n for n in range(1, images + 1) if len(x) % n == 0)
        chunks = x.reshape(-1, each, *x.shape[1:])
        y, update = jax.lax.map(functools.partial(run, params), chunks)
        return y.reshape(len(x), *y.shape[2:]), update

    return in_turn


def _plus(totals: Any, grads: Any) -> Any:
    """The sums, by layer; `totals` may be empty, or have more layers."""
    return {
        layer: jax.tree.map(jnp.add, totals[layer], g) if layer in totals else g
        for layer, g in grads.items()
    }


def _part(params: Any, part: int) -> Any:
    return {k: v for k, v in params.items() if model.part_of(k) == part}


def make_eval_step(
    config: Config, shards: parallel.FCShards = parallel.UNCUT
) -> Callable[[dict[str, Any], dict[str, jax.Array]], Metrics]:
    """`eval_step(variables, batch) -> sums` over the global batch's unmasked examples.

    Float32 (and float64) products are exact to their type on every device; TPUs and
    GPUs would else round factors to bfloat16 and TF32.
    """
    net = state.make_model(config.model)
    preprocessing = Preprocessing.of(config.data)
    precision = "default" if config.model.dtype == "bfloat16" else "highest"

    def eval_step(variables: dict[str, Any], batch: dict[str, jax.Array]) -> Metrics:
        with jax.default_matmul_precision(precision):
            images = preprocessing.normalize(batch["image"], dtype=net.param_dtype)
            params = shards.whole(variables["params"])
            logits: Any = net.apply({**variables, "params": params}, images)
        sums = metrics.sums(logits, batch["label"], batch["mask"])
        return jax.lax.psum(sums, parallel.AXIS_NAME)

    return eval_step


def _accumulate(
    grad_fn: Callable[..., Any], batch_stats: Any, batch: Any, pieces: int
) -> tuple[Any, Any, Metrics]:
    """Gradient and metric sums of a batch taken in `pieces` micro-batches.

    A micro-batch is every `pieces`-th example: the same set of examples however the
    global batch is cut over devices. BatchNorm sees them one after the other.

    Args:
      grad_fn: of `_make_grad_fn`, with all but its second to fourth argument.
    """
    if pieces == 1:
        grads, (batch_stats, sums) = grad_fn(batch_stats, batch, ({}, {}))
        return batch_stats, grads, sums

    def add_piece(carry: Any, piece: Any) -> tuple[Any, None]:
        batch_stats, totals, total_sums = carry
        totals, (batch_stats, sums) = grad_fn(batch_stats, piece, totals)
        return (batch_stats, totals, jax.tree.map(jnp.add, total_sums, sums)), None

    # [B, ...] -> [pieces, B / pieces, ...]
    cut = jax.tree.map(
        lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch
    )
    first = jax.tree.map(lambda x: x[0], cut)
    grads, (_, sums) = jax.eval_shape(grad_fn, batch_stats, first, ({}, {}))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, sums))
    (batch_stats, grads, sums), _ = jax.lax.scan(add_piece, (batch_stats, *zeros), cut)
    return batch_stats, grads, sums
