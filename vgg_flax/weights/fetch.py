"""`fetch`: a weight file's name, wherever it is, to a path here, downloaded at need.

Files are kept in `~/.cache/vgg_flax` (another folder: VGG_FLAX_CACHE), hub files in
Hugging Face's own cache, which timm and others share.
"""

import functools
import os
import pathlib
import re
import shutil
import tempfile
import urllib.parse
import urllib.request

from vgg_flax.weights import WeightsError, checksum

_NET_NAME = re.compile(r"vgg(11|13|16|19)(_bn)?")
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<file>[\w.-]+(?:/[\w.-]+)*))?")
_FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".h5", ".caffemodel")
_HUB_FILE = "model.safetensors"


def fetch(
    name_or_url: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> pathlib.Path:
    """Where the weight file lies, after a download if it was not here.

    Args:
      name_or_url: one of, in this order: an `https://` or `file://` URL; a path that
        exists; a net's name (`vgg16`, `vgg11_bn`), which means timm's file on the
        Hugging Face hub; a hub name, `timm/vgg16.tv_in1k` or `owner/repo:file`.
      sha256: what the file's must be, in hex.
      cache_dir: instead of the cache named above.

    Raises:
      WeightsError: no such file, no connection (the message says where to put a copy),
        or another sha256 than was given or than the file's name promises.
    """
    name, cache = os.fspath(name_or_url), _cache_folder(cache_dir)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise WeightsError(f"sha256={sha256!r}; expected 64 hex digits")
    if "://" in name:
        return _fetch_url(name, cache, sha256)
    path, hub_name = pathlib.Path(name).expanduser(), _HUB_NAME.fullmatch(name)
    if path.exists():
        local = path
    elif _NET_NAME.fullmatch(name):
        local = _fetch_from_hub(f"timm/{name}.tv_in1k", _HUB_FILE, cache, cache_dir)
    elif (
        hub_name
        and (hub_name["file"] or not name.endswith(_FILE_SUFFIXES))
        and not path.parent.is_dir()  # a mistyped path: runs/defualt
    ):
        filename = hub_name["file"] or _HUB_FILE
        local = _fetch_from_hub(hub_name["repo"], filename, cache, cache_dir)
    else:
        raise WeightsError(
            f"{name}: no such file or folder; expected a path, an https:// URL, a "
            "net's name such as vgg16 or vgg16_bn, or a hub name such as "
            "timm/vgg16.tv_in1k"
        )
    if sha256 is not None:
        checksum.check(local, checksum.of_file(local), sha256)
    return local


def _cache_folder(cache_dir: str | os.PathLike[str] | None) -> pathlib.Path:
    folder = cache_dir or os.environ.get("VGG_FLAX_CACHE") or "~/.cache/vgg_flax"
    return pathlib.Path(folder).expanduser()


def _fetch_from_hub(
    repo: str,
    filename: str,
    cache: pathlib.Path,
    cache_dir: str | os.PathLike[str] | None,
) -> pathlib.Path:
    """`CACHE/OWNER/REPO/FILE` if it was put there; else through Hugging Face's cache.

    A file in that cache is taken without asking the hub for a newer one: without a
    connection, asking takes half a minute.
    """
    placed = cache / repo / filename
    if placed.is_file():
        return placed
    import huggingface_hub
    from huggingface_hub import errors

    download = functools.partial(
        huggingface_hub.hf_hub_download,
        repo,
        filename,
        cache_dir=cache / "hub" if cache_dir else None,
    )
    try:
        try:
            return pathlib.Path(download(local_files_only=True))
        except errors.LocalEntryNotFoundError:
            return pathlib.Path(download())
    # HTTPError is the HTTP library's, which differs between versions of the hub's.
    except (
        OSError,
        ValueError,
        errors.EntryNotFoundError,
        errors.HTTPError,  # pyright: ignore[reportPrivateImportUsage]
    ) as error:
        url = f"https://huggingface.co/{repo}/resolve/main/{filename}"
        raise _not_fetched(url, placed, error) from error


def _fetch_url(url: str, cache: pathlib.Path, sha256: str | None) -> pathlib.Path:
    """`CACHE/HOST/PATH` of the URL, checked by its name's hash and `sha256`."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise WeightsError(f"{url}: no URL: {error}") from error
    names = [part for part in urllib.parse.unquote(parts.path).split("/") if part]
    is_odd = any(name == ".." or re.search(r"[\\\0]", name) for name in names)
    if parts.scheme not in ("https", "file") or not names or is_odd:
        raise WeightsError(
            f"{url}: expected https://HOST/PATH or file:///PATH, without '..'"
        )
    if parts.query:  # other files may differ in nothing else
        names.insert(-1, urllib.parse.quote(parts.query, safe=""))
    target = cache.joinpath(parts.netloc or "localhost", *names)
    is_stale = parts.scheme == "file" and _differs(_local_path(parts), target)
    if not target.exists() or is_stale:
        _download(url, target, sha256)
    else:
        _check(target, sha256, str(target))
    return target


def _download(url: str, target: pathlib.Path, sha256: str | None) -> None:
    """Downloads to `target`, which appears whole and checked, or not at all."""
    import pooch
    import requests

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".partial-", dir=target.parent, ignore_cleanup_errors=True
        ) as folder:
            partial = pathlib.Path(folder) / target.name
            parts = urllib.parse.urlsplit(url)
            if parts.scheme == "file":
                _copy(_local_path(parts), partial)
            else:
                download = pooch.HTTPDownloader(progressbar=True)
                download(url, str(partial), None)
            _check(partial, sha256, url)
            partial.replace(target)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        if isinstance(error, requests.HTTPError) and error.response is not None:
            error.response.close()  # pooch leaves the connection open
        raise _not_fetched(url, target, error) from error


def _check(path: pathlib.Path, sha256: str | None, source: str) -> None:
    """Raises WeightsError, naming `source`, for another sha256 than was promised."""
    if sha256 is None and checksum.in_name(path) is None:
        return
    actual = checksum.of_file(path)
    checksum.check_name_hash(path, actual, source)
    if sha256 is not None:
        checksum.check(source, actual, sha256)


def _local_path(parts: urllib.parse.SplitResult) -> pathlib.Path:
    if parts.netloc not in ("", "localhost"):
        raise WeightsError(
            f"{parts.geturl()}: a file:// URL names no other machine; expected "
            f"file:///{parts.netloc}{parts.path}"
        )
    return pathlib.Path(urllib.request.url2pathname(parts.path))


def _differs(source: pathlib.Path, copy: pathlib.Path) -> bool:
    """Whether a copy is not, or no longer, that of a source that can be seen."""
    if not source.exists() or not copy.exists():
        return not copy.exists()
    one, other = source.stat(), copy.stat()
    return (one.st_size, one.st_mtime_ns) != (other.st_size, other.st_mtime_ns)


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """With the bar that downloads have: the source may be on a network's disk."""
    import tqdm

    with (
        source.open("rb") as stream,
        tqdm.tqdm.wrapattr(stream, "read", total=source.stat().st_size) as watched,
        target.open("wb") as out,
    ):
        shutil.copyfileobj(watched, out, 1 << 20)
    shutil.copystat(source, target)  # its time tells a later change


def _not_fetched(url: str, target: pathlib.Path, error: Exception) -> WeightsError:
    reason = str(error).splitlines()[:1] or [type(error).__name__]
    return WeightsError(
        f"{url} cannot be fetched: {reason[0][:200]}; check the name and the "
        f"connection, or download the file elsewhere and put it at {target}"
    )
