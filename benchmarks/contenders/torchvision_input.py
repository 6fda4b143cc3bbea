"""torchvision's input: `ImageFolder`, transforms, `DataLoader`; or decoding alone.

Images are Pillow's, as is its default, or tensors, from `decode_image` on.
"""

import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]
from torchvision.transforms import v2  # pyright: ignore[reportMissingImports]

from benchmarks.contenders import serve, work

VIEWS = {
    "train": [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip()],
    "test": [v2.Resize(256, antialias=True), v2.CenterCrop(224)],
}


def _tensor(path: str) -> Any:
    return torchvision.io.decode_image(path, torchvision.io.ImageReadMode.RGB)


def _batches(spec: dict[str, Any]) -> Iterator[Any]:
    """uint8 batches `[batch, 3, 224, 224]` without end, made by one process a core."""
    root, views = f"{spec['photos']}/{spec['view']}", VIEWS[spec["view"]]
    if spec["images"] == "tensors":
        images = torchvision.datasets.ImageFolder(
            root, v2.Compose(views), loader=_tensor
        )
    else:
        view = v2.Compose([*views, v2.PILToTensor()])
        images = torchvision.datasets.ImageFolder(root, view)
    loader = torch.utils.data.DataLoader(
        images,
        spec["batch"],
        shuffle=spec["view"] == "train",
        num_workers=spec["threads"],
        persistent_workers=True,
    )
    while True:
        for batch, _ in loader:
            yield batch


def _decoded(spec: dict[str, Any]) -> Iterator[Any]:
    """Decoded images, as many as a batch has in one, the last of which is given out."""
    files = sorted(pathlib.Path(spec["photos"], "test").glob("*/*"))
    contents = [torchvision.io.read_file(str(path)) for path in files]
    endless = itertools.cycle(contents)
    while True:
        image = None
        for content in itertools.islice(endless, spec["batch"]):
            image = torchvision.io.decode_jpeg(content)
        yield image


def prepare(spec: dict[str, Any]) -> tuple[serve.Run, dict[str, Any]]:
    """The work of `spec`."""
    torch.set_num_threads(spec["threads"])
    made = _decoded(spec) if spec["view"] == "decode" else _batches(spec)
    return work.drawing(spec, "torchvision", (x.movedim(-3, -1).numpy() for x in made))


if __name__ == "__main__":
    serve.serve(prepare)
