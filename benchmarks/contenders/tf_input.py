"""tf.data's input: a JPEG's part decoded and resized; or decoding alone."""

import itertools
import pathlib
from typing import Any

import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

from benchmarks.contenders import serve, work


def _train_view(content: Any) -> Any:
    """As ImageNet's examples do: only the part that is wanted is decoded."""
    shape = tf.io.extract_jpeg_shape(content)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        use_image_if_no_bounding_boxes=True,
    )
    return tf.image.random_flip_left_right(_part(content, begin[:2], size[:2]))


def _test_view(content: Any) -> Any:
    """The middle 224 pixels of the image whose smaller side is 256."""
    shape = tf.io.extract_jpeg_shape(content)[:2]
    side = tf.reduce_min(shape) * 224 // 256
    return _part(content, (shape - side) // 2, tf.stack([side, side]))


def _part(content: Any, begin: Any, size: Any) -> Any:
    window = tf.concat([begin, size], 0)
    image = tf.io.decode_and_crop_jpeg(content, window, channels=3)
    return tf.cast(tf.round(tf.image.resize(image, (224, 224))), tf.uint8)


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`."""
    threads, view = spec["threads"], spec["view"]
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    root = pathlib.Path(spec["photos"], "train" if view == "train" else "test")
    files = tf.data.Dataset.from_tensor_slices(
        [str(p) for p in sorted(root.glob("*/*"))]
    )
    if view == "train":
        files = files.shuffle(len(files))
    contents = files.map(tf.io.read_file)
    if view == "decode":  # as all others': of bytes in memory
        contents = contents.cache()
    contents = contents.repeat()
    take = {"train": _train_view, "test": _test_view, "decode": tf.io.decode_jpeg}[view]
    images = contents.map(take, num_parallel_calls=threads)
    if view != "decode":
        images = images.batch(spec["batch"]).prefetch(2)
    each = spec["batch"] if view == "decode" else 1  # of which the last is given out
    made = itertools.islice(images.as_numpy_iterator(), each - 1, None, each)
    return work.drawing(spec, "tf", made)


if __name__ == "__main__":
    serve.serve(prepare)
