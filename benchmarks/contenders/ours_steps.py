"""This package: its compiled training step, or a loaded net called under `jax.jit`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contenders import serve, work
from vgg_flax import config, loading, parallel
from vgg_flax.net import Net
from vgg_flax.training import state as state_lib
from vgg_flax.training import step as step_lib


def _load(spec: dict[str, Any]) -> Net:
    side = spec["side"]  # which a pooled net's layers do not tell
    return loading.load(spec["weights"], crop_size=side, test_scale=side)


def _infer(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    net = _load(spec)
    images = jnp.asarray(work.batch(spec)[0])
    if until := spec["until"]:
        forward = jax.jit(lambda net, images: net.features(images, (until,))[until])
    else:
        forward = jax.jit(lambda net, images: net(images))
    facts = work.kept(spec, "ours", logits=forward(net, images))

    def run(repetitions: int) -> None:
        for _ in range(repetitions):
            jax.block_until_ready(forward(net, images))

    return run, facts


def _recipe(spec: dict[str, Any], dropout_rate: float) -> config.Config:
    recipe = config.Config()
    recipe.model = config.ModelConfig(
        variant=spec["variant"],
        num_classes=spec["classes"],
        width_multiplier=spec["width"],
        head=spec["head"],
        dropout_rate=dropout_rate,
    )
    recipe.data.crop_size = spec["side"]
    recipe.freeze = tuple(spec["freeze"])
    if spec["also"] == "mixing":
        recipe.regularization = config.RegularizationConfig(
            mixup_alpha=0.2, cutmix_alpha=1.0, random_erasing=0.1
        )
    elif spec["also"] == "average":
        recipe.averaging = config.AveragingConfig(decay=0.9999, every_steps=1)
    recipe.optimizer.momentum = work.MOMENTUM
    recipe.optimizer.weight_decay = work.WEIGHT_DECAY
    return recipe


def _state(spec: dict[str, Any], recipe: config.Config) -> state_lib.TrainState:
    """A new run's state with the weights of the file."""
    shapes = jax.eval_shape(lambda: state_lib.init_state(recipe))
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    variables = jax.device_get(_load(spec).variables)  # as a run has a file's
    state = empty.replace(
        params=variables["params"], batch_stats=variables.get("batch_stats", {})
    )
    plateau = jax.tree.map(jnp.asarray, state_lib.schedules.init_plateau())
    state = state_lib.with_average(recipe, state.replace(plateau=plateau))
    return parallel.UNCUT.place(state)


def _step(recipe: config.Config, state: Any, batch: Any) -> Any:
    step = step_lib.make_train_step(recipe, lambda _: work.LEARNING_RATE)
    return parallel.compile_step(
        parallel.pmap_step(step, donate_state=True), state, batch
    )


def _train(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    images, labels = work.batch(spec)
    size = len(labels)
    batch = {"image": images, "label": labels, "mask": np.ones(size, bool)}
    batch = parallel.shard(batch | {"index": np.arange(size, dtype=np.int32)})
    facts: dict[str, Any] = {}
    if spec["checked"]:
        recipe = _recipe(spec, 0.0)
        state = _state(spec, recipe)
        before = np.array(state.params["conv1_1"]["kernel"])
        state, metrics = _step(recipe, state, batch)(state, batch)
        change = np.asarray(state.params["conv1_1"]["kernel"]) - before
        loss = float(metrics["loss"]) / size
        facts = work.kept(spec, "ours", loss=loss, change=change)
        del state
    recipe = _recipe(spec, work.DROPOUT_RATE)
    kept = [_state(spec, recipe)]
    step = _step(recipe, kept[0], batch)

    def run(repetitions: int) -> None:
        metrics: Any = None
        for _ in range(repetitions):
            kept[0], metrics = step(kept[0], batch)
        jax.block_until_ready((kept, metrics))

    return run, facts


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`."""
    return _train(spec) if spec["train"] else _infer(spec)


if __name__ == "__main__":
    serve.serve(prepare)
