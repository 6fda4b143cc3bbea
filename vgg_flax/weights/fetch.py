"""`fetch`: a weight file's name, wherever it is, to a path here, downloaded at need.

Files are kept in `~/.cache/vgg_flax` (another folder: VGG_FLAX_CACHE), hub files in
Hugging Face's own cache, which timm and others share. What is downloaded is read as
weights, and compared with the hashes that are known, before it is kept; what was kept
is read again at each load, and downloaded once more if that fails.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import urllib.parse
import urllib.request

from vgg_flax import console, storage
from vgg_flax.weights import WeightsError, checksum, download, hub, urls
from vgg_flax.weights import cache as cache_lib
from vgg_flax.weights.containers import formats

_NET_NAME = re.compile(r"vgg(11|13|16|19)(_bn)?")
_HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<file>[\w.-]+(?:/[\w.-]+)*))?")
_FILE_SUFFIXES = (
    *(".pth", ".pt", ".bin", ".safetensors", ".h5", ".caffemodel", ".onnx"),
)
_HUB_FILE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class _Found:
    """Where a file lies, and what it holds if it had to be read to know it is right."""

    path: pathlib.Path
    container: formats.Container | None = None


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
        what was sent is no weight file, or it has another sha256 than was given or
        than the file's name promises.
    """
    return _find(name_or_url, sha256, cache_dir).path


def read(
    name_or_url: str | os.PathLike[str], *, sha256: str | None = None
) -> formats.Container:
    """What the weight file holds; arguments and errors as of `fetch`, and of reading.

    A file that was read to know that it is right is not read twice.
    """
    found = _find(name_or_url, sha256, None)
    return found.container or formats.read(found.path)


def _find(
    name_or_url: str | os.PathLike[str],
    sha256: str | None,
    cache_dir: str | os.PathLike[str] | None,
) -> _Found:
    name = os.fspath(name_or_url)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise WeightsError(f"sha256={sha256!r}; expected 64 hex digits")
    if "://" in name:
        return _fetch_url(name, storage.cache_folder(cache_dir), sha256)
    path, hub_name = pathlib.Path(storage.expanded(name)), _HUB_NAME.fullmatch(name)
    if os.path.exists(path):  # False for names that no file can have
        if sha256 is not None:
            checksum.check(path, checksum.of_file(path), sha256)
        return _Found(path)
    cache = storage.cache_folder(cache_dir)
    hub_cache = cache / "hub" if cache_dir else None
    if _NET_NAME.fullmatch(name):
        repo = f"timm/{name}.tv_in1k"
        return _fetch_from_hub(repo, _HUB_FILE, cache, hub_cache, sha256)
    if (
        hub_name
        and (hub_name["file"] or not name.lower().endswith(_FILE_SUFFIXES))
        and not os.path.isdir(path.parent)  # a mistyped path: runs/defualt
    ):
        repo, filename = hub_name["repo"], hub_name["file"] or _HUB_FILE
        return _fetch_from_hub(repo, filename, cache, hub_cache, sha256)
    raise WeightsError(
        f"{name}: no such file or folder; expected a path, an https:// URL, a "
        "net's name such as vgg16 or vgg16_bn, or a hub name such as "
        "timm/vgg16.tv_in1k"
    )


def _read(
    path: pathlib.Path, name: pathlib.Path, source: str, sha256: str | None
) -> _Found:
    """Reads `path`, whose name is, or will be, `name`; errors call it `source`."""
    try:
        container = formats.read(path)
    except WeightsError as error:
        text = str(error).replace(str(path), source)
        raise WeightsError(text) from None  # which may name a file that will go
    checksum.check_name_hash(name, container.sha256, source)
    if sha256 is not None:
        checksum.check(source, container.sha256, sha256)
    return _Found(name, container)


def _fetch_from_hub(
    repo: str,
    filename: str,
    cache: pathlib.Path,
    hub_cache: pathlib.Path | None,
    sha256: str | None,
) -> _Found:
    """`CACHE/OWNER/REPO/FILE` if it was put there; else of Hugging Face's cache."""
    url, placed = hub.url(repo, filename), cache / repo / filename

    def read_cached(path: pathlib.Path) -> _Found:
        found = _read(path, path, str(path), sha256)
        assert found.container
        hub.check(path, found.container.sha256)
        return found

    refused = ""
    if placed.is_file():
        try:
            return _read(placed, placed, str(placed), sha256)
        except WeightsError as error:
            refused = _tell_refused(error)
    path = hub.cached(repo, filename, hub_cache)
    if path is not None:
        try:
            return read_cached(path)
        except WeightsError as error:
            if _is_as_sent(path):
                raise
            refused = _tell_refused(error)
    try:
        path = hub.fetched(repo, filename, hub_cache, replace=path is not None)
    except download.DownloadError as error:
        raise _not_fetched(refused, url, placed, error) from None
    try:
        return read_cached(path)
    except WeightsError:
        if not _is_as_sent(path):
            hub.remove(path)
        raise


def _is_as_sent(path: pathlib.Path) -> bool:
    """Whether the hub would send the same weights again: they are not those wanted."""
    try:
        formats.read(path)
    except WeightsError:
        return False
    return hub.is_known(path)


def _fetch_url(url: str, cache: pathlib.Path, sha256: str | None) -> _Found:
    """`CACHE/HOST/PATH` of the URL, checked by its name's hash and `sha256`."""
    parts = _split(url)
    target = _place(parts, cache)
    source = _local_path(parts) if parts.scheme == "file" else None
    refused = ""
    if os.path.exists(target) and not (source and _differs(source, target)):
        try:
            return _read(target, target, str(target), sha256)
        except WeightsError as error:
            refused = _tell_refused(error)
    return _download(url, source, target, cache, sha256, refused)


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError as error:
        what = "quote '/', '?', '#' before its '@'" if "@" in url else error
        raise WeightsError(f"{urls.shown(url)}: no URL: {what}") from None
    names, host = _names(parts), parts.netloc.rpartition("@")[2]
    is_odd = any(
        name in (".", "..") or re.search(r"[\\\0]", name) for name in (host, *names)
    )
    is_remote = parts.scheme == "https" and parts.hostname
    if not (is_remote or parts.scheme == "file") or not names or is_odd:
        raise WeightsError(
            f"{urls.shown(url)}: expected https://HOST/PATH or file:///PATH, without "
            "'..'; files on the Hugging Face hub are named OWNER/REPO:FILE"
        )
    return parts


def _names(parts: urllib.parse.SplitResult) -> list[str]:
    return [part for part in urllib.parse.unquote(parts.path).split("/") if part]


def _place(parts: urllib.parse.SplitResult, cache: pathlib.Path) -> pathlib.Path:
    """Where a URL's file is kept: a path that holds no password and no token."""
    names = _names(parts)
    host = parts.netloc.rpartition("@")[2] or "localhost"
    target = earlier = cache.joinpath(host, *names)
    if parts.query:  # other files may differ in nothing else
        digest = hashlib.sha256(os.fsencode(parts.query)).hexdigest()[:16]
        target = target.with_name(digest) / target.name
        query = urllib.parse.quote(parts.query, safe="")
        earlier = earlier.with_name(query) / earlier.name
    # Earlier versions kept both, in the names of folders.
    earlier = cache / (parts.netloc or "localhost") / earlier.relative_to(cache / host)
    if earlier != target and os.path.isfile(earlier) and not target.exists():
        _move(earlier, target, cache)
    return target


def _move(earlier: pathlib.Path, target: pathlib.Path, cache: pathlib.Path) -> None:
    """To where a file of the cache is kept now, and removes the folders it was in."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        earlier.replace(target)
        for folder in earlier.parents[: len(earlier.relative_to(cache).parts) - 1]:
            if not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        console.say(f"a file of {cache} stays where it was: {error.strerror}")


def _download(
    url: str,
    source: pathlib.Path | None,
    target: pathlib.Path,
    cache: pathlib.Path,
    sha256: str | None,
    refused: str,
) -> _Found:
    """Downloads to `target`, which appears whole, read and checked, or not at all."""
    pieces = functools.partial(
        *((download.of_file, source) if source else (download.of_url, url))
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)  # a file may be put there
        cache_lib.remove_stale(target.parent)
        with cache_lib.partial(cache) as (path, stream):
            changed = source and source.exists() and source.stat().st_mtime_ns
            download.to_stream(pieces, stream)
            try:
                found = _read(path, target, urls.shown(url), sha256)
            except WeightsError as error:
                raise WeightsError(f"{refused}{error}") from None
            if changed:  # the source's time tells a later change
                os.utime(path, ns=(changed, changed))
            path.replace(target)
            return found
    except download.DownloadError as error:
        raise _not_fetched(refused, urls.shown(url), target, error) from None
    except OSError as error:
        raise WeightsError(
            f"{refused}{urls.shown(url)} cannot be kept at {target}: "
            f"{error.strerror or error}; make room or access, or name another folder "
            "in the environment variable VGG_FLAX_CACHE"
        ) from None


def _local_path(parts: urllib.parse.SplitResult) -> pathlib.Path:
    if parts.netloc not in ("", "localhost"):
        url = urls.shown(parts.geturl())
        host = parts.netloc.rpartition("@")[2]
        raise WeightsError(
            f"{url}: a file:// URL names no other machine; expected "
            f"file:///{host}{parts.path}"
        )
    return pathlib.Path(urllib.request.url2pathname(parts.path))


def _differs(source: pathlib.Path, copy: pathlib.Path) -> bool:
    """Whether a copy is not, or no longer, that of a source that can be seen."""
    if not source.exists():
        return False
    one, other = source.stat(), copy.stat()
    return (one.st_size, one.st_mtime_ns) != (other.st_size, other.st_mtime_ns)


def _tell_refused(error: WeightsError) -> str:
    """Tells that a file of the cache is fetched again; the start of a later error."""
    console.say(f"refused in the cache, and fetched once more: {error}")
    return f"refused in the cache: {error}; and once more "


def _not_fetched(
    refused: str, url: str, target: pathlib.Path, error: download.DownloadError
) -> WeightsError:
    return WeightsError(
        f"{refused}{url} cannot be fetched: {error}; {error.remedy}, or download the "
        f"file elsewhere and put it at {target}"
    )
