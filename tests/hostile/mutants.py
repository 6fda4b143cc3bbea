"""Sound files of each format, small and read whole, and damaged copies of them."""

import functools
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet

from tests import onnx_files, torchvision_net, weight_files
from tests.conftest import random_net
from vgg_flax.inference import conversion
from vgg_flax.weights.lineages import layouts, mapping

_EXTREMES = (0, 1, 0x7F, 0xFF, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def damaged(content: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """A copy with one kind of damage, where a file says what it is, or anywhere.

    Args:
      content: of a sound file.
      rng: which damage, and where.
      other: of another file, of which a piece may come in.
    """
    size = len(content)
    spans = ((0, size), (0, min(size, 1024)), (max(0, size - 1024), size))
    low, high = spans[rng.integers(3)]
    at, width = int(rng.integers(low, high)), int(rng.choice([1, 2, 4, 8]))
    number = _EXTREMES[rng.integers(len(_EXTREMES))] % 2 ** (8 * width)
    start = int(rng.integers(size))
    block = slice(start, start + int(rng.choice([4, 60, 2000])))
    end = at
    match int(rng.integers(9)):
        case 0:
            changed = bytearray(content)
            for place in rng.integers(low, high, rng.integers(1, 9)):
                changed[place] = rng.integers(256)
            return bytes(changed)
        case 1:
            piece, end = bytes([content[at] ^ 1 << int(rng.integers(8))]), at + 1
        case 2:
            return content[:at]
        case 3:
            piece = rng.bytes(int(rng.integers(1, 20)))
        case 4:
            piece, end = b"", at + int(rng.integers(1, 20))
        case 5:  # a length, perhaps
            piece, end = number.to_bytes(width, "little"), at + width
        case 6:
            piece = content[block]
        case 7:
            piece = content[block]
            end = at + len(piece)
        case _:
            piece = (other or content)[block]
            end = at + int(rng.integers(2)) * len(piece)
    return content[:at] + piece + content[end:]


# Sound files


@functools.cache
def _our_net() -> Any:
    return random_net("vgg11", fc6_window=2, num_classes=7)


def _saved(name: str) -> Callable[[pathlib.Path], None]:
    """As `vgg-flax convert` writes it, with our own metadata."""
    return lambda folder: void(conversion.save(_our_net(), folder / name))


def void(_: object) -> None:
    """Nothing."""


def _torchvision(write: Callable[..., Any]) -> Callable[[pathlib.Path], None]:
    tensors = torchvision_net.torchvision_tensors("vgg11_bn")
    tensors = {k: v for k, v in tensors.items() if not k.endswith("tracked")}
    return lambda folder: void(write(folder / "x.bin", tensors))


def _caffe(folder: pathlib.Path) -> None:
    plain = _our_net()
    layout = layouts.BY_NAME["Caffe"]
    tensors = mapping.to_tensors(plain.variables, plain.model, layout, bgr=True)
    weight_files.write_named_caffe(folder / "x.caffemodel", tensors)


def _caffe_v1(folder: pathlib.Path) -> None:
    weight_files.write_caffe(v1=True, packed=False)(folder / "x.caffemodel")


def _onnx(folder: pathlib.Path) -> None:
    tensors = torchvision_net.torchvision_tensors("vgg11_bn")
    graph = onnx_files.Graph(("N", 3, 64, 64)).stages(tensors)
    graph.add("Flatten").gemms(tensors).write(folder / "x.onnx")


def _onnx_beside(folder: pathlib.Path) -> None:
    weight_files.write_onnx(folder / "x.onnx")


def _chunked(folder: pathlib.Path) -> None:
    _saved("x.h5")(folder)
    with h5py.File(folder / "x.h5") as old, h5py.File(folder / "y.h5", "w") as new:

        def copy(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                chunks = tuple(max(1, n // 2) for n in item.shape)
                new.create_dataset(
                    name, data=item[()], chunks=chunks, compression=1, shuffle=True
                )

        old.visititems(copy)
        for key, value in old.attrs.items():
            new.attrs[key] = value
    (folder / "y.h5").replace(folder / "x.h5")


def _file_of_tests(name: str) -> Callable[[pathlib.Path], None]:
    return lambda folder: void(shutil.copy(weight_files.DATA / name, folder / name))


def _table(suffix: str) -> Callable[[pathlib.Path], None]:
    rows = [(f"cat/{i}.jpg", "cat" if i % 2 else "dög", "train") for i in range(30)]

    def write(folder: pathlib.Path) -> None:
        path = folder / f"x.{suffix}"
        if suffix == "parquet":
            names = ("path", "label", "split")
            columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
        else:
            mark = {"csv": ",", "tsv": "\t"}[suffix]
            lines = [mark.join(row) for row in (("path", "label", "split"), *rows)]
            path.write_text("\n".join(lines))

    return write


def _image(suffix: str, **options: Any) -> Callable[[pathlib.Path], None]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 6, 3)).repeat(9, 0).repeat(9, 1).astype(np.uint8)

    def write(folder: pathlib.Path) -> None:
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        with_exif = {} if suffix in ("gif", "bmp") else {"exif": exif}
        image = PIL.Image.fromarray(pixels)
        image.save(folder / f"x.{suffix}", **with_exif, **options)

    return write


# Format -> who writes a file of it (of one name, or a folder) into a folder.
SOUND: dict[str, tuple[Callable[[pathlib.Path], None], ...]] = {
    "torch_zip": (
        _saved("x.pth"),
        _torchvision(weight_files.write_named_torch_zip),
        _file_of_tests("checkpoint_zip.pth"),
    ),
    "torch_legacy": (
        _torchvision(weight_files.write_named_torch_legacy),
        _file_of_tests("checkpoint_legacy.pth"),
    ),
    "safetensors": (
        _saved("x.safetensors"),
        _torchvision(weight_files.write_named_safetensors),
    ),
    "hdf5": (_saved("x.h5"), _saved("x.weights.h5"), _chunked),
    "caffemodel": (_caffe, _caffe_v1),
    "onnx": (_onnx, _onnx_beside),
    "checkpoint": (_saved("run"),),
    "table": (_table("csv"), _table("tsv"), _table("parquet")),
    "image": (
        _image("jpg"),
        _image("png"),
        _image("gif"),
        _image("bmp"),
        _image("webp"),
        _image("tiff", compression="tiff_lzw"),
    ),
}


def mutants(
    file_format: str, count: int, seed: int, folder: pathlib.Path
) -> Iterator[tuple[str, pathlib.Path]]:
    """Damaged copies of a format's sound files, made in `folder` one at a time.

    Yields:
      What to call it, and where it lies: a file, or the folder of a run.
    """
    sound = []
    for i, write in enumerate(SOUND[file_format]):
        (folder / f"sound{i}").mkdir(parents=True)
        write(folder / f"sound{i}")
        sound.append(next((folder / f"sound{i}").iterdir()))
    rng = np.random.default_rng([seed, *file_format.encode()])
    for i in range(count):
        source = sound[i % len(sound)]
        other = sound[rng.integers(len(sound))]
        target = folder / f"mutant{i}" / source.name
        if source.is_file():
            target.parent.mkdir()
            content = damaged(source.read_bytes(), rng, other.read_bytes())
            target.write_bytes(content)
        else:
            shutil.copytree(source, target)
            files = sorted(path for path in target.rglob("*") if path.is_file())
            chosen = files[rng.integers(len(files))]
            chosen.write_bytes(damaged(chosen.read_bytes() or b"\0", rng))
        yield f"{source.name} {i} of seed {seed}", target


@functools.cache
def _card() -> dict[str, Any]:
    return {**random_net("vgg11").card.to_json(), "bgr": False}


def cards(
    count: int, seed: int, folder: pathlib.Path
) -> Iterator[tuple[str, pathlib.Path]]:
    """Files that we wrote, a value in whose own metadata is another."""
    net = random_net("vgg11")
    names = layouts.BY_NAME["torchvision"]
    tensors = mapping.to_tensors(net.variables, net.model, names, bgr=False)
    values: list[Any] = [
        *(None, True, 0, -1, 10**9, 10**30, 10**4000, 1e308, -1e308, 0.5, 1e-300),
        *(float("inf"), float("nan"), "", "x" * 300, "\x1b[2J\n", [], {}, [[]]),
        *([1, 2], [10**9] * 2, ["a", None], [0.5] * 3, [1e308] * 3, {"a": {}}),
        functools.reduce(lambda inner, _: [inner], range(900), 0),
    ]
    places = [*_places(_card())]
    pairs = [*itertools.product(places, values)]
    rng = np.random.default_rng(seed)
    for i in rng.permutation(len(pairs))[:count]:
        place, value = pairs[i]
        text = json.dumps(_replaced(_card(), place, value))
        path = folder / f"card{i}" / "x.safetensors"
        path.parent.mkdir(parents=True)
        import safetensors.numpy

        safetensors.numpy.save_file(tensors, path, {"vgg_flax": text})
        yield f"{'.'.join(place)} = {value!r:.40}", path


def _places(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if place:
        yield place
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, (*place, key))


def _replaced(value: Any, place: tuple[str, ...], new: Any) -> Any:
    if not place:
        return new
    return {**value, place[0]: _replaced(value[place[0]], place[1:], new)}
