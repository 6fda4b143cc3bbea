"""Files whole or not at all, and lines that stay, on a disk and in a bucket."""

import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from etils import epath

import vgg_flax
from vgg_flax import config, errors, storage
from vgg_flax.evaluation import journal
from vgg_flax.images import codec
from vgg_flax.runs import checkpoint
from vgg_flax.training import trainer
from vgg_flax.weights.containers import mapped_file


class Bucket:
    """A path in an object store: written as a whole; opened with "a" it begins anew."""

    objects: dict[str, bytes] = {}  # noqa: RUF012  of all paths, as in a store

    def __init__(self, name: str):
        self._name = name

    def __str__(self) -> str:
        return f"gs://bucket/{self._name}"

    def __lt__(self, other: "Bucket") -> bool:
        return str(self) < str(other)

    def __fspath__(self) -> str:
        return str(self)

    @property
    def name(self) -> str:
        return self._name.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Bucket":
        return Bucket(self._name.rpartition("/")[0])

    def with_name(self, name: str) -> "Bucket":
        return Bucket(f"{self.parent._name}/{name}")

    def exists(self) -> bool:
        return any(name.startswith(self._name) for name in self.objects)

    def iterdir(self) -> Iterator["Bucket"]:
        yield from (Bucket(n) for n in sorted(self.objects) if n.startswith(self._name))

    def is_dir(self) -> bool:
        return self._name not in self.objects and self.exists()

    def mkdir(self, **_: Any) -> None:
        pass

    def read_bytes(self) -> bytes:
        return self.objects[self._name]

    def write_text(self, text: str) -> None:
        self.objects[self._name] = text.encode()

    def unlink(self) -> None:
        del self.objects[self._name]

    def open(self, mode: str) -> Any:
        raise AssertionError(f"opening with {mode!r} empties the object")


@pytest.fixture
def bucket() -> Iterator[Any]:
    Bucket.objects.clear()
    yield Bucket("run/file.jsonl")
    Bucket.objects.clear()


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_lines_stay_where_others_are_added(
    where: str, bucket: Any, tmp_path: pathlib.Path
) -> None:
    path = epath.Path(tmp_path) / "file.jsonl" if where == "disk" else bucket
    file = storage.RecordFile(path, [])
    for step in (1, 2):
        file.append({"step": step})
    again = storage.RecordFile(path, storage.read_records(path)[:1])  # 2 comes again
    again.append({"step": 3})
    assert path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'
    assert storage.read_records(path) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_journal_goes_on(where: str, bucket: Any, tmp_path: pathlib.Path) -> None:
    path = epath.Path(tmp_path) / "x.journal" if where == "disk" else bucket
    image = {"key": "a", "labels": [1], "experiments": [{"rank": 0}]}
    for index in range(3):  # three starts, each of which adds an image
        one = journal.Journal(path)
        assert sorted(one.results) == list(range(index))
        one.open()
        one.add(index, image)
        one.close()
    other = journal.Journal(path, process=1)
    other.open()
    other.add(3, image)
    other.close()
    assert one.count(2) == 2
    one.gather(2)
    assert sorted(one.results) == [0, 1, 2, 3]
    one.remove()
    assert journal.Journal(path).results == {}


def test_an_output_in_a_bucket_is_not_emptied_by_looking(bucket: Any) -> None:
    bucket.write_text("what was there")
    storage.check_output("--output", bucket)
    assert bucket.read_bytes() == b"what was there"


def test_a_file_is_there_when_it_is_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "folder" / "file.json"
    with storage.whole_file(path) as file:
        file.write_text("half")
        assert not path.exists()
        file.write_text("whole")
    assert path.read_text() == "whole"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    with pytest.raises(ValueError, match="stop"), storage.whole_file(path) as file:
        file.write_text("half")
        raise ValueError("stop")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_an_error_of_its_kind(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / "x.json"
    with (
        pytest.raises(errors.ConfigError, match=r"x\.json cannot be written.*go away"),
        storage.whole_file(path, errors.ConfigError, "go away"),
    ):
        pass


def test_links_stay_and_devices_are_written_into(tmp_path: pathlib.Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    link.symlink_to(real)
    with storage.whole_file(link) as file:
        file.write_text("new")
    assert link.is_symlink() and real.read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with storage.whole_file(pipe) as file:
        file.write_text("new")
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_object_is_not_written_for_every_line(bucket: Any) -> None:
    file = storage.RecordFile(bucket, [], object_seconds=3600)
    file.append({"step": 1})
    assert bucket.read_bytes() == b""
    file.flush()
    assert storage.read_records(bucket) == [{"step": 1}]


def test_a_url_is_no_path_and_is_not_repeated() -> None:
    for url in ("https://u:hunter2@host/a", "ftp://u:hunter2@host/a", "HTTPS://h"):
        with pytest.raises(errors.ConfigError, match="init_from starts with") as caught:
            storage.check_path("init_from", url)
        assert "hunter2" not in str(caught.value)
    storage.check_path("init_from", "runs/default")


NO_HOME = "~no-such-user/x"


def test_a_home_directory_of_nobody_is_told(tiny_config: config.Config) -> None:
    def train(path: str) -> None:
        trainer.train_and_evaluate(tiny_config, path)

    takers: list[Callable[[str], object]] = [
        *(vgg_flax.load, codec.read, mapped_file.MappedFile, checkpoint.exists, train)
    ]
    for use in takers:
        with pytest.raises(errors.VGGFlaxError, match="a user who has none here"):
            use(NO_HOME)
    assert not pathlib.Path(NO_HOME).parent.exists()


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".pth", "a/" * 3000])
def test_a_name_that_no_file_can_have_is_told(name: str) -> None:
    for use in (vgg_flax.load, mapped_file.MappedFile):
        with pytest.raises(errors.VGGFlaxError, match=r"no such file|cannot be read"):
            use(name)
