"""`input`: images/s a core, of a view or of decoding alone, from folders of JPEGs."""

from benchmarks.pairs import Row
from benchmarks.workers import Contender

_PEERS = {  # environment, module, and what images are to a view: the fastest counts
    "tf.data": ("tf", "tf_input", ("tensors",)),
    "torchvision": ("torch", "torchvision_input", ("Pillow", "tensors")),
}
_VIEWS = {  # title -> the view, and what resizes it here
    "train view, cv2": ("train", "cv2"),
    "train view, Pillow": ("train", "pillow"),
    "test view": ("test", "pillow"),
    "decoding alone": ("decode", "pillow"),
}
_BATCH = 32
_TOLERANCE = 0.1  # of 8 x 8 pixels' means: tf.image's bilinear is not antialiased


def rows() -> list[Row]:
    """At two sizes, beside two peers; some views beside ours, too."""
    rows = []
    for width, height, count in ((500, 375, 256), (1500, 1000, 64)):
        photos = {"width": width, "height": height, "count": count}
        for title, (view, resize) in _VIEWS.items():
            spec = {"photos": photos, "view": view, "resize": resize, "batch": _BATCH}
            spec["batches"] = count // _BATCH
            ours = Contender("vgg-flax", "ours", "ours_input", spec, cores=1)
            peers = {
                name: tuple(
                    Contender(kind, environment, module, spec | {"images": kind}, 1)
                    for kind in (kinds[:1] if view == "decode" else kinds)
                )
                for name, (environment, module, kinds) in _PEERS.items()
            }
            if title == "train view, cv2":
                decoding = spec | {"view": "decode"}
                alone = Contender("vgg-flax", "ours", "ours_input", decoding, cores=1)
                peers["decoding alone"] = (alone,)
            rows += [
                Row(
                    "input",
                    f"{title}, {width}x{height}",
                    peer,
                    ours,
                    contenders,
                    amount=_BATCH,
                    unit="images/s a core",
                    tolerance=None if peer == "decoding alone" else _TOLERANCE,
                )
                for peer, contenders in peers.items()
            ]
            if (title, width) == ("train view, cv2", 500):
                augmented = spec | {"augment": "trivial"}
                rows.append(
                    Row(
                        "input",
                        f"train view, trivial augment, cv2, {width}x{height}",
                        "plain train view",
                        Contender("vgg-flax", "ours", "ours_input", augmented, cores=1),
                        (ours,),
                        amount=_BATCH,
                        unit="images/s a core",
                    )
                )
    return rows
