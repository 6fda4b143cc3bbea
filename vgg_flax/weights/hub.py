"""Weight files on the Hugging Face hub, through its own cache, which others share."""

import functools
import pathlib
import re
import threading
from collections.abc import Callable, Generator
from typing import Any

from vgg_flax.weights import cache, checksum, download

_SHA256 = re.compile("[0-9a-f]{64}")


def cached(
    repo: str, filename: str, cache_dir: pathlib.Path | None
) -> pathlib.Path | None:
    """A file in the hub's cache (None: the default one), if it is there.

    The hub is not asked for a newer one: without a connection that takes long.
    """
    import huggingface_hub

    try:
        path = huggingface_hub.try_to_load_from_cache(repo, filename, cache_dir)
    except (OSError, ValueError):  # what is wrong, the download tells
        return None
    return pathlib.Path(path) if isinstance(path, str) else None


def fetched(
    repo: str, filename: str, cache_dir: pathlib.Path | None, *, replace: bool = False
) -> pathlib.Path:
    """A file in the hub's cache, downloaded now; the hub is asked once.

    Unless `replace`, what another process has downloaded meanwhile is not again.

    Raises:
      DownloadError: it did not come, is too large, or too slow.
    """
    limits, stop = download.Limits.from_environment(), threading.Event()
    ask = functools.partial(_ask, repo, filename, cache_dir, limits, stop, replace)
    try:
        *_, answer = download.within(limits, ask)
    finally:
        stop.set()
    path = pathlib.Path(answer)
    cache.remove_stale(path.resolve().parent, "*.incomplete")
    return path


def _ask(
    repo: str,
    filename: str,
    cache_dir: pathlib.Path | None,
    limits: download.Limits,
    stop: threading.Event,
    replace: bool,
) -> Generator[Any, None, None]:
    """First whether there is such a file, and then its path."""
    import huggingface_hub
    from huggingface_hub import errors

    # Without `force_download` the hub's library asks six times over half a minute.
    ask: Callable[..., Any] = functools.partial(
        huggingface_hub.hf_hub_download,
        repo,
        filename,
        cache_dir=cache_dir,
        force_download=True,
        etag_timeout=limits.answer_seconds,
        tqdm_class=_bar(limits, stop),
    )
    try:
        about = ask(dry_run=True)
        limits.check_size(about.file_size)
        yield about
        yield ask(force_download=replace)
    # HTTPError is the HTTP library's, which differs between versions of the hub's.
    except (
        OSError,
        ValueError,
        errors.EntryNotFoundError,
        errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    ) as error:
        reason = download.reason(error)
        if isinstance(error, OSError) and error.errno:  # of the disk, not of the hub
            remedy = "make room or access, or name another folder in HF_HOME"
            raise download.DownloadError(reason, remedy) from error
        raise download.DownloadError(reason) from error


def _bar(limits: download.Limits, stop: threading.Event) -> Any:
    """The hub's progress bar, which is told of each piece before it is written."""
    from huggingface_hub import utils

    class Bar(utils.tqdm):
        """Ends a download that is too large, or that nobody waits for any more."""

        received = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            limits.check_size(self.received)
            if stop.is_set():
                raise download.DownloadError("it was given up")
            return super().update(n)

    return Bar


def check(path: pathlib.Path, sha256: str) -> None:
    """Raises WeightsError unless a file of the hub's cache is what the hub sent.

    The cache names a file by the hub's hash: sha256 for all that is large.

    Args:
      path: as `cached` gives it.
      sha256: what the file has.
    """
    expected = path.resolve().name
    if _SHA256.fullmatch(expected):
        checksum.check(path, sha256, expected)


def is_known(path: pathlib.Path) -> bool:
    """Whether the hub's hash of a file is known, and the file has it."""
    name = path.resolve().name
    return bool(_SHA256.fullmatch(name)) and checksum.of_file(path) == name


def remove(path: pathlib.Path) -> None:
    """Takes a file out of the hub's cache."""
    content = path.resolve()
    path.unlink(missing_ok=True)
    content.unlink(missing_ok=True)


def url(repo: str, filename: str) -> str:
    """Where a person finds the file."""
    return f"https://huggingface.co/{repo}/resolve/main/{filename}"
