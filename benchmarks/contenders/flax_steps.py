"""A VGG as one writes it in Flax in thirty lines, jitted, with optax's SGD."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy

from benchmarks.contenders import serve, work

WIDTHS = (64, 128, 256, 512, 512)
COUNTS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}


class PlainVGG(nn.Module):
    """torchvision's order of layers; images NHWC, normalised."""

    variant: str
    classes: int
    dropout_rate: float = work.DROPOUT_RATE

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width, count in zip(WIDTHS, COUNTS[self.variant], strict=True):
            for _ in range(count):
                x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(4096)(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


def variables(spec: dict[str, Any]) -> dict[str, Any]:
    """The file's weights under Flax's automatic names."""
    tensors = safetensors.numpy.load_file(spec["weights"])
    params: dict[str, Any] = {}
    kinds = {"Conv": [], "Dense": []}  # in the order of the layers
    for name in tensors:
        kind = "Conv" if name.startswith("features") else "Dense"
        if name.endswith("weight"):
            kinds[kind].append((int(name.split(".")[1]), name.removesuffix("weight")))
    for kind, names in kinds.items():
        for i, (_, prefix) in enumerate(sorted(names)):
            kernel = tensors[f"{prefix}weight"]
            if kind == "Conv":
                kernel = kernel.transpose(2, 3, 1, 0)  # OIHW -> HWIO
            elif i == 0:  # torch flattens CHW, and we HWC
                kernel = kernel.reshape(4096, 512, 7, 7).transpose(2, 3, 1, 0)
                kernel = kernel.reshape(-1, 4096)
            else:
                kernel = kernel.T
            bias = tensors[f"{prefix}bias"]
            params[f"{kind}_{i}"] = {"kernel": np.array(kernel), "bias": bias}
    return {"params": jax.tree.map(jnp.asarray, params)}


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`."""
    images, labels = (jnp.asarray(x) for x in work.batch(spec))
    params = variables(spec)["params"]

    def normalized(images: jax.Array) -> jax.Array:
        return (images.astype(jnp.float32) / 255 - work.MEAN) / work.STD

    net = PlainVGG(spec["variant"], spec["classes"])
    if not spec["train"]:
        forward = jax.jit(lambda p, x: net.apply({"params": p}, normalized(x)))

        def infer(repetitions: int) -> None:
            for _ in range(repetitions):
                jax.block_until_ready(forward(params, images))

        return infer, work.kept(spec, "flax", logits=forward(params, images))

    optimizer = optax.chain(
        optax.add_decayed_weights(work.WEIGHT_DECAY),
        optax.sgd(work.LEARNING_RATE, momentum=work.MOMENTUM),
    )

    def make_step(net: PlainVGG) -> Any:
        def step(params: Any, state: Any, key: Any) -> Any:
            key, own = jax.random.split(key)

            def loss(params: Any) -> jax.Array:
                x = normalized(images)
                out: Any = net.apply({"params": params}, x, True, rngs={"dropout": own})
                each = optax.softmax_cross_entropy_with_integer_labels(out, labels)
                return each.mean()

            value, grads = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, key, value

        return jax.jit(step, donate_argnums=(0, 1))

    facts: dict[str, Any] = {}
    key = jax.random.key(0)
    if spec["checked"]:
        before = np.array(params["Conv_0"]["kernel"])
        step = make_step(net.clone(dropout_rate=0.0))
        new, _, _, loss = step(params, optimizer.init(params), key)
        change = np.asarray(new["Conv_0"]["kernel"]) - before
        facts = work.kept(spec, "flax", loss=loss, change=change)
        params = new
    step = make_step(net)
    kept = [(params, optimizer.init(params), key)]

    def train(repetitions: int) -> None:
        for _ in range(repetitions):
            kept[0] = step(*kept[0])[:3]
        jax.block_until_ready(kept)

    return train, facts


if __name__ == "__main__":
    serve.serve(prepare)
