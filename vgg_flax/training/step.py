"""The training and validation steps as one replica sees them: pure functions.

They know the mapped axis by its name and nothing of devices; `parallel` maps them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vgg_flax import parallel
from vgg_flax.config import Config
from vgg_flax.images.preprocessing import Preprocessing
from vgg_flax.model import ordering
from vgg_flax.training import (
    averaging,
    distillation,
    optimizers,
    schedules,
    selection,
    state,
)
from vgg_flax.training import forward as forward_lib
from vgg_flax.training.mixing import Mixing
from vgg_flax.training.objectives import CLASSIFICATION
from vgg_flax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, Any]  # of scalar arrays
ObjectiveFn = Callable[[jax.Array, Batch], dict[str, jax.Array]]


def make_train_step(
    config: Config,
    schedule: optax.Schedule,
    objective: ObjectiveFn = CLASSIFICATION,
    shards: parallel.FCShards = parallel.UNCUT,
    optimizer: optax.GradientTransformation | None = None,
    teacher: distillation.Teacher | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The update for one replica's part of the global batch.

    Args:
      config: the run.
      schedule: step -> learning rate, before the plateau's factor.
      objective: `(outputs, batch) -> sums` over unmasked examples, `loss` (whose mean
        is minimised) and `count` among them; see `objectives.Objective`.
      shards: how the state's FC kernels are cut.
      optimizer: of one's own, where `config.optimizer` has the name "custom".
      teacher: of `config.distillation`, if it has one.

    Returns:
      `train_step(state, batch) -> (state, metrics)`, with a third argument, the
      variables, where there is a teacher. `batch` is what
      `data.batches.train_batches` yields. `metrics` holds the objective's sums over
      the global batch, and the scalars `learning_rate`, `gradient_norm` and
      `parameter_norm` (of the new params).
    """
    loss, mixing = _make_loss(config, objective, shards, teacher)
    transformation = optimizers.make_optimizer(config.optimizer, shards, optimizer)
    pieces = config.optimizer.accumulation_steps

    def train_step(
        state: TrainState, batch: Batch, taught_by: Any = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        trained, frozen = selection.split(config, state.params)

        batch = mixing.with_partners(batch)
        whole = functools.partial(loss, frozen=frozen, key=key, taught_by=taught_by)
        grad = functools.partial(jax.grad(whole, has_aux=True), trained)
        grads, batch_stats, sums = _accumulate(grad, state.batch_stats, batch, pieces)
        # Sums over replicas, divided once: masked examples weigh nothing anywhere.
        grads, sums = shards.psum((grads, sums))
        count = jnp.maximum(sums["count"], 1)
        gradient_norm = shards.norm(grads) / count
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)

        direction, opt_state = transformation.update(grads, state.opt_state, trained)
        learning_rate = schedule(state.step) * schedules.plateau_factor(
            config.optimizer, state.plateau
        )
        # Or on CPUs params would be copied, for the backward pass to read while they
        # are updated in place.
        rate = ordering.after(gradient_norm, jnp.asarray(learning_rate))
        params = jax.tree.map(
            lambda w, d: w - jnp.asarray(rate, w.dtype) * d, trained, direction
        )
        batch_stats = jax.lax.pmean(batch_stats, parallel.AXIS_NAME)
        moved, _ = selection.split(config, batch_stats)
        # Those of frozen layers not by a mean: to the bit.
        _, still = selection.split(config, state.batch_stats)
        ema = averaging.update(
            config.averaging, state.ema, params, moved, state.step + 1
        )
        params = params | frozen
        new_state = state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats | still,
            opt_state=opt_state,
            ema=ema,
        )
        return new_state, {
            **sums,
            "learning_rate": learning_rate,
            "gradient_norm": gradient_norm,
            "parameter_norm": shards.norm(params),
        }

    return train_step


def _make_loss(
    config: Config,
    objective: ObjectiveFn,
    shards: parallel.FCShards,
    teacher: distillation.Teacher | None,
) -> tuple[Callable[..., Any], Mixing]:
    """What one replica's gradient is of, and what is made of its batch before.

    `loss(trained, totals, batch_stats, batch, *, frozen, key, taught_by)` -> the sum
    of losses, and `(batch_stats, sums)`.
    """
    net = state.make_model(config.model)
    net = net.clone(frozen=tuple(sorted(selection.frozen(config, net.layer_names))))
    forward = forward_lib.make_forward(net, shards, remat=config.remat)
    preprocessing = Preprocessing.of(config.data)
    mixing = Mixing(config.regularization, preprocessing, net.param_dtype)
    settings = config.distillation

    def loss(
        trained: Any,
        totals: Any,
        batch_stats: Any,
        batch: Batch,
        *,
        frozen: Any,
        key: jax.Array,
        taught_by: Any,
    ) -> Any:
        pixels, share = mixing(key, batch)
        images = preprocessing.standardize(pixels)
        outputs, batch_stats = forward(
            trained | frozen, totals, batch_stats, images, batch["index"], key
        )
        labelled = mixing.labels(batch, share, net.num_classes)
        sums = objective(outputs, labelled)
        if teacher is not None:
            taught = distillation.loss(
                outputs,
                teacher(taught_by, pixels),
                batch["mask"],
                settings.temperature,
            )
            own = (1 - settings.weight) * sums["loss"]
            sums = {**sums, "loss": own + settings.weight * taught}
        return sums["loss"], (batch_stats, sums)

    return loss, mixing


def make_eval_step(
    config: Config,
    objective: ObjectiveFn = CLASSIFICATION,
    shards: parallel.FCShards = parallel.UNCUT,
) -> Callable[[dict[str, Any], Batch], Metrics]:
    """`eval_step(variables, batch) -> sums` over the global batch's unmasked examples.

    Float32 (and float64) products are exact to their type on every device; TPUs and
    GPUs would else round factors to bfloat16 and TF32.
    """
    net = state.make_model(config.model)
    preprocessing = Preprocessing.of(config.data)
    precision = "default" if config.model.dtype == "bfloat16" else "highest"

    def eval_step(variables: dict[str, Any], batch: Batch) -> Metrics:
        with jax.default_matmul_precision(precision):
            images = preprocessing.normalize(batch["image"], dtype=net.param_dtype)
            params = shards.whole(variables["params"])
            outputs: Any = net.apply({**variables, "params": params}, images)
        return jax.lax.psum(objective(outputs, batch), parallel.AXIS_NAME)

    return eval_step


def _accumulate(
    grad: Callable[..., Any], batch_stats: Any, batch: Batch, pieces: int
) -> tuple[Any, Any, Metrics]:
    """Sums of gradients and metrics over a batch taken in `pieces` micro-batches.

    A micro-batch is every `pieces`-th example: the same set of examples however the
    global batch is cut over devices. BatchNorm sees them one after the other.

    Args:
      grad: `(totals, batch_stats, batch)` -> the gradients added to `totals`, and
        `(batch_stats, sums)`.
      batch_stats: before the batch.
      batch: `[B, ...]` each.
      pieces: divides B.

    Returns:
      The gradients, the batch statistics after it, and the metrics.
    """
    if pieces == 1:
        grads, (batch_stats, sums) = grad(None, batch_stats, batch)
        return grads, batch_stats, sums

    def add_piece(carry: Any, piece: Any) -> tuple[Any, None]:
        totals, batch_stats, total_sums = carry
        totals, (batch_stats, sums) = grad(totals, batch_stats, piece)
        return (totals, batch_stats, jax.tree.map(jnp.add, total_sums, sums)), None

    # [B, ...] -> [pieces, B / pieces, ...]
    cut = jax.tree.map(
        lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch
    )
    first = jax.tree.map(lambda x: x[0], cut)
    grads, (_, sums) = jax.eval_shape(grad, None, batch_stats, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, sums))
    carry, _ = jax.lax.scan(add_piece, (zeros[0], batch_stats, zeros[1]), cut)
    return carry
