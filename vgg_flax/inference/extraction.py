"""Features of image files: a row an image, on all devices, in parts that are kept.

A part is some images' rows in a file beside the output. A call that was stopped goes on
with the next part; at the end the parts become the output.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from vgg_flax import errors, parallel, spelling, storage
from vgg_flax.errors import ConfigError
from vgg_flax.evaluation import tables
from vgg_flax.images import codec
from vgg_flax.net import Net
from vgg_flax.parallel import distributed
from vgg_flax.parallel.ahead import ahead, in_threads
from vgg_flax.parallel.signals import SignalsApart
from vgg_flax.runs.lease import Lease

POOLS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "mean": lambda x: x.mean(axis=(1, 2)),
    "max": lambda x: x.max(axis=(1, 2)),
    "none": lambda x: x,
}
PART = 1024  # images
_IN_FLIGHT = 2  # batches sent and not yet read

Rows = dict[str, np.ndarray]  # "image", "label" and the layers, as many rows each


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is computed of an image's test view.

    Attributes:
      layers: as of `Net.features`.
      pool: a key of `POOLS`, over the positions of a layer.
      batch_size: images a step, over the devices of a process.
    """

    layers: tuple[str, ...]
    pool: str = "mean"
    batch_size: int = 64


def extract(
    net: Net,
    files: Sequence[epath.Path],
    settings: Settings,
    output: epath.Path,
    *,
    after_image: Callable[[int], object] = lambda _: None,
) -> dict[str, str]:
    """Writes the features of `files`, in their order, to `output`.

    `image` (the path), `label` (the folder that it is in), both as `spelling.written`
    has them, and each layer, float32, are arrays of an .npz, or columns of a .parquet.
    Files that are no images have no row. Several processes, which call it alike, share
    the parts; the first one writes.

    Args:
      net: whose `preprocessing` makes the views.
      files: each once.
      settings: what of them.
      output: ending in .npz, which holds all rows in memory, or .parquet.
      after_image: called with how many images are done.

    Returns:
      Of the files that could not be read or decoded the reason, by path.

    Raises:
      ConfigError: another suffix, or options out of range.
      Interrupted: by a signal.
      StorageError: it cannot be written; what was computed is kept.
    """
    check(net, settings, output)
    key = _key(net, files, settings)
    distributed.check_same({"output": str(output), "weights, images, options": key})
    lease = Lease(output.with_name(f"{output.name}.{key}.lease"), f"--output {output}")
    with lease:
        folder = output.with_name(f"{output.name}.{key}.parts")
        folder.mkdir(parents=True, exist_ok=True)
        parts = [files[i : i + PART] for i in range(0, len(files), PART)]
        paths = [folder / f"{i:06}.npz" for i in range(len(parts))]
        compute = functools.partial(_part, net, Extractor(net, settings))
        _fill(compute, parts, paths, after_image)
        lease.check()
        unreadable = _finish(paths, output)
        if jax.process_count() > 1:
            distributed.wait_for_all("features written")
        if jax.process_index() == 0:
            folder.rmtree()
    return unreadable


def check(net: Net, settings: Settings, output: epath.Path) -> None:
    """Raises ConfigError where `extract` would."""
    check_settings(net, settings)
    tables.check_suffix("--output", output, ".npz")


def check_settings(net: Net, settings: Settings) -> None:
    """Raises ConfigError for settings that this net does not have."""
    try:
        net.model.deepest(settings.layers)
    except ValueError as error:
        raise ConfigError(f"--layers: {error}") from error
    if settings.pool not in POOLS:
        raise ConfigError(f"--pool {settings.pool}; expected {', '.join(POOLS)}")
    if settings.batch_size < 1:
        raise ConfigError(f"--batch-size {settings.batch_size}; expected at least 1")


def _fill(
    compute: Callable[..., tuple[Rows, dict[str, str]]],
    parts: Sequence[Sequence[epath.Path]],
    paths: Sequence[epath.Path],
    after_image: Callable[[int], object],
) -> None:
    """Writes this process's share of the parts, but for those that are there."""
    share = range(jax.process_index(), len(parts), jax.process_count())
    with SignalsApart() as signals:

        def go_on() -> None:
            if received := signals.poll():
                raise errors.Interrupted(
                    f"stopped by {received.name}: whole parts of {PART} images are "
                    f"kept in {paths[0].parent}; run the same command again to go on",
                    128 + received,
                )

        for i in share:
            if paths[i].exists():
                after_image(len(parts[i]))
                continue

            def after(count: int) -> None:
                go_on()
                after_image(count)

            rows, unreadable = compute(parts[i], after)
            with storage.whole_file(paths[i], option="--output") as file:
                _save(file, {**rows, "unreadable": np.array(json.dumps(unreadable))})
        while not signals.all_done():
            go_on()
            time.sleep(0.1)
    if jax.process_count() > 1:
        distributed.wait_for_all("all features computed")


class Extractor:
    """The net on this process's devices, compiled once."""

    def __init__(self, net: Net, settings: Settings):
        self._devices, self._layers = jax.local_devices(), settings.layers
        self._variables = parallel.replicate(net.variables, self._devices)
        count = len(self._devices)
        self._size = -(-settings.batch_size // count) * count
        self._step = parallel.pmap_step(
            functools.partial(_step, net, settings),
            donate_state=False,
            devices=self._devices,
        )

    def batches(self, views: Iterable[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Of test views, in their order: the pooled layers, float32, some at a time."""
        for count, outputs in ahead(self._sent(views), _IN_FLIGHT):
            values = jax.device_get(outputs)
            yield {n: np.asarray(values[n][:count], np.float32) for n in self._layers}

    def _sent(
        self, views: Iterable[np.ndarray]
    ) -> Iterator[tuple[int, dict[str, jax.Array]]]:
        waiting = iter(views)
        while some := list(itertools.islice(waiting, self._size)):
            images = np.zeros((self._size, *some[0].shape), np.uint8)
            images[: len(some)] = some
            with jax.default_matmul_precision("highest"):
                batch = parallel.shard({"image": images}, self._devices)
                yield len(some), self._step(self._variables, batch)


def _part(
    net: Net,
    extractor: Extractor,
    files: Sequence[epath.Path],
    after_image: Callable[[int], object],
) -> tuple[Rows, dict[str, str]]:
    """The rows of a part, and why some of its files have none."""
    unreadable: dict[str, str] = {}
    there: list[epath.Path] = []

    def views() -> Iterator[np.ndarray]:
        read = functools.partial(_read, net)
        for path, view in zip(files, in_threads(read, files), strict=True):
            after_image(1)
            if isinstance(view, codec.ImageError):
                unreadable[str(path)] = str(view)
            else:
                there.append(path)
                yield view

    found = list(extractor.batches(views()))
    rows: Rows = {
        "image": np.array(spelling.written([str(p) for p in there]), np.str_),
        "label": np.array(
            spelling.written([path.parent.name for path in there]), np.str_
        ),
    }
    for name in found[0] if found else ():
        rows[name] = np.concatenate([batch[name] for batch in found])
    return rows, unreadable


def _step(
    net: Net, settings: Settings, variables: Any, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Of one replica: the pooled layers of all."""
    dtype = net.model.param_dtype
    images = net.preprocessing.normalize(batch["image"], dtype=dtype)
    maps: Any = net.model.apply(variables, images, settings.layers, method="features")
    pool = POOLS[settings.pool]
    return {
        name: jax.lax.all_gather(
            (x if x.ndim == 2 else pool(x)).astype(dtype),
            parallel.AXIS_NAME,
            tiled=True,
        )
        for name, x in maps.items()
    }


def _read(net: Net, path: epath.Path) -> np.ndarray | codec.ImageError:
    """The test view, or why there is none."""
    try:
        return net.preprocessing.test_view(codec.read(path))
    except codec.ImageError as error:
        return error


def _key(net: Net, files: Sequence[epath.Path], settings: Settings) -> str:
    """Of all that the rows depend on: other parts are of another computation."""
    facts = [net.card.to_json(), dataclasses.asdict(settings), PART]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for path in files:
        state = path.stat()
        text = f"{path}\0{state.length}\0{state.mtime}\n"
        digest.update(spelling.digestible(text))
    return digest.hexdigest()[:12]


def _parts(paths: Sequence[epath.Path]) -> Iterator[tuple[Rows, dict[str, str]]]:
    for path in paths:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            rows = {name: file[name] for name in file if name != "unreadable"}
            yield rows, json.loads(str(file["unreadable"]))


def _finish(paths: Sequence[epath.Path], output: epath.Path) -> dict[str, str]:
    """Makes the parts the output, in the first process; why files have no row."""
    if gone := [path for path in paths if not path.exists()]:
        raise ConfigError(
            f"--output {output}: {len(gone)} parts of other processes are not beside "
            "it; give a path on storage that all share"
        )
    unreadable: dict[str, str] = {}
    for _, more in _parts(paths):
        unreadable |= more
    if jax.process_index() == 0:
        filled = (rows for rows, _ in _parts(paths) if len(rows["image"]))
        write = _write_npz if output.suffix == ".npz" else _write_parquet
        with storage.whole_file(output, option="--output") as file:
            if not write(file, filled):
                raise ConfigError(f"none of {len(unreadable)} files is an image")
    return unreadable


def _write_npz(file: pathlib.Path, parts: Iterator[Rows]) -> bool:
    rows = list(parts)
    if rows:
        _save(file, {n: np.concatenate([r[n] for r in rows]) for n in rows[0]})
    return bool(rows)


def _save(file: pathlib.Path, arrays: dict[str, Any]) -> None:
    with file.open("wb") as stream:  # to a name without .npz NumPy would add it
        np.savez(stream, **arrays)


def _write_parquet(file: pathlib.Path, parts: Iterator[Rows]) -> bool:
    import pyarrow
    import pyarrow.parquet

    writer = None
    for rows in parts:
        columns = {
            n: x if x.ndim == 1 else list(x.reshape(len(x), -1))
            for n, x in rows.items()
        }
        table = pyarrow.table(columns)
        writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return writer is not None
