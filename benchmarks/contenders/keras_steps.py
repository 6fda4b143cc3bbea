"""Keras's VGG16 on JAX: `keras.applications`' convolutions, `fit` and `predict`."""

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import keras  # pyright: ignore[reportMissingImports]
import numpy as np
import safetensors.numpy

from benchmarks.contenders import serve, work


def _net(spec: dict[str, Any], dropout_rate: float) -> Any:
    """With dropout after fc1 and fc2, which `keras.applications` leaves out."""
    side = spec["side"]
    base = keras.applications.VGG16(
        include_top=False, weights=None, input_shape=(side, side, 3)
    )
    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((side, side, 3), dtype="uint8"),
            layers.Rescaling((1 / 255 / work.STD).tolist(), -work.MEAN / work.STD),
            base,
            layers.Flatten(),
            layers.Dense(4096, activation="relu"),
            layers.Dropout(dropout_rate),
            layers.Dense(4096, activation="relu"),
            layers.Dropout(dropout_rate),
            layers.Dense(spec["classes"]),
        ]
    )
    net.set_weights(list(_weights(spec)))
    net.compile(
        optimizer=keras.optimizers.SGD(
            work.LEARNING_RATE,
            momentum=work.MOMENTUM,
            weight_decay=work.WEIGHT_DECAY,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return net


def _weights(spec: dict[str, Any]) -> Any:
    """The file's tensors in Keras's axes, in the order of the layers."""
    tensors = safetensors.numpy.load_file(spec["weights"])
    prefixes = {name.rsplit(".", 1)[0] for name in tensors}
    for prefix in sorted(
        prefixes, key=lambda p: (p[0] == "c", int(p.split(".")[1]))
    ):  # features before classifier
        kernel = tensors[f"{prefix}.weight"]
        if kernel.ndim == 4:
            kernel = kernel.transpose(2, 3, 1, 0)  # OIHW -> HWIO
        elif prefix == "classifier.0":  # torch flattens CHW, Keras HWC
            kernel = kernel.reshape(4096, 512, 7, 7).transpose(2, 3, 1, 0)
            kernel = kernel.reshape(-1, 4096)
        else:
            kernel = kernel.T
        yield kernel
        yield tensors[f"{prefix}.bias"]


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`."""
    images, labels = work.batch(spec)
    if not spec["train"]:
        net = _net(spec, work.DROPOUT_RATE)

        def infer(repetitions: int) -> None:
            for _ in range(repetitions):
                net.predict_on_batch(images)

        return infer, work.kept(spec, "keras", logits=net.predict_on_batch(images))

    facts: dict[str, Any] = {}
    if spec["checked"]:
        net = _net(spec, 0.0)
        before = np.array(net.get_weights()[0])
        loss = net.train_on_batch(images, labels)
        change = np.asarray(net.get_weights()[0]) - before
        facts = work.kept(spec, "keras", loss=loss, change=change)
        del net
    net = _net(spec, work.DROPOUT_RATE)

    def train(repetitions: int) -> None:
        batches = ((images, labels) for _ in range(repetitions))
        net.fit(batches, steps_per_epoch=repetitions, epochs=1, verbose=0)

    return train, facts


if __name__ == "__main__":
    serve.serve(prepare)
