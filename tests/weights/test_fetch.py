"""Fetching weight files: from here, from a server of our own, and without a net."""

import contextlib
import hashlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import servers
from vgg_flax.weights import WeightsError, checksum
from vgg_flax.weights import fetch as fetch_lib
from vgg_flax.weights.containers import formats

CONTENT = (pathlib.Path(__file__).parents[1] / "files/state_dict_zip.pth").read_bytes()
LEGACY = pathlib.Path(__file__).parents[1] / "files/state_dict_legacy.pth"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
RIGHT, WRONG = f"vgg16-{SHA256[:8]}.pth", "vgg16-397923af.pth"
fetch = fetch_lib.fetch


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty cache, where VGG_FLAX_CACHE says."""
    monkeypatch.setenv("VGG_FLAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a file under its right name, a wrong one and one without hash."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name in (RIGHT, WRONG, "vgg16.pth"):
        (folder / name).write_bytes(CONTENT)
    return folder


@pytest.fixture
def server(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """`https://localhost:PORT` of a server of `source`, whose certificate is known."""
    with servers.serving_https(tmp_path, monkeypatch) as running:
        for path in source.iterdir():
            running.answers[f"/{path.name}"] = (200, CONTENT)
        for query in ("?a=1", "?a=2"):
            running.answers[f"/vgg16.pth{query}"] = (200, CONTENT)
        running.answers["/cut.pth"] = cut
        yield running.url


def cut(handler: servers.Handler) -> None:
    """More is promised than sent."""
    handler.head(200, Content_Length=str(len(CONTENT)))
    handler.wfile.write(CONTENT[:1000])


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refusal(name: str | pathlib.Path, sha256: str | None = None) -> str:
    with pytest.raises(WeightsError) as caught:
        fetch(name, sha256=sha256)
    return str(caught.value)


def offered_path(message: str) -> pathlib.Path:
    """Where an error says that the file may be put."""
    return pathlib.Path(message.rsplit("put it at ", 1)[1])


# Local files


def test_a_local_path_is_returned_as_it_is(
    source: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    assert fetch(source / "vgg16.pth") == source / "vgg16.pth"
    assert fetch(str(source), sha256=None) == source  # a run directory, say
    monkeypatch.chdir(source)
    assert fetch("vgg16.pth", sha256=SHA256.upper()) == pathlib.Path("vgg16.pth")
    (source / "timm").mkdir()
    (source / "timm/vgg16.tv_in1k").write_bytes(CONTENT)
    assert fetch("timm/vgg16.tv_in1k") == pathlib.Path("timm/vgg16.tv_in1k")
    monkeypatch.setenv("HOME", str(source))
    assert fetch("~/vgg16.pth") == source / "vgg16.pth"


def test_a_given_sha256_is_checked(source: pathlib.Path):
    message = refusal(source / "vgg16.pth", sha256="0" * 64)
    assert SHA256 in message and "0" * 64 in message
    assert (source / "vgg16.pth").exists()
    assert "64 hex digits" in refusal(source / "vgg16.pth", sha256=SHA256[:8])


@pytest.mark.parametrize(
    "name",
    [
        "missing.pth",
        "./missing.safetensors",
        "folder/missing.h5",
        "/missing",
        "vgg17",
        "vgg16_bnn",
        "a/b/c",
    ],
)
def test_what_is_no_name_says_what_is(name: str):
    message = refusal(name)
    assert name in message and "timm/vgg16.tv_in1k" in message


def test_torchvision_names_promise_a_hash():
    # The names that torchvision publishes its VGGs under.
    for name, digits in [
        ("vgg16-397923af.pth", "397923af"),
        ("vgg13-19584684.pth", "19584684"),
        ("vgg19_bn-c79401a0.pth", "c79401a0"),
        ("vgg16.pth", None),
        ("vgg16-397923AF.pth", None),
        ("vgg19-20201231.pth", None),
        ("vgg16-0785-397923af.pth", None),
    ]:
        assert checksum.in_name(name) == digits


# Downloads


def test_a_download_is_kept(
    server: str,
    cache: pathlib.Path,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    fetched = fetch(f"{server}/{RIGHT}", sha256=SHA256)
    assert fetched.read_bytes() == CONTENT and cache in fetched.parents
    assert formats.read(fetched).sha256 == SHA256
    assert "100%" in capfd.readouterr().err  # the bar
    # No longer from the server: nothing listens at that address.
    monkeypatch.setenv("HTTPS_PROXY", "https://localhost:9")
    monkeypatch.delenv("NO_PROXY")
    assert fetch(f"{server}/{RIGHT}") == fetched
    assert files_in(cache) == [fetched]


def test_urls_do_not_share_a_place(server: str, cache: pathlib.Path):
    urls = [f"{server}/vgg16.pth{query}" for query in ("", "?a=1", "?a=2")]
    assert len({fetch(url) for url in urls}) == 3
    assert all(path.name == "vgg16.pth" for path in files_in(cache))


@pytest.mark.parametrize("scheme", ["https", "file"])
def test_a_wrong_download_leaves_nothing(
    scheme: str,
    source: pathlib.Path,
    cache: pathlib.Path,
    request: pytest.FixtureRequest,
):
    base = source.as_uri()
    if scheme == "https":
        base = request.getfixturevalue("server")
    message = refusal(f"{base}/{WRONG}")
    assert f"{base}/{WRONG}" in message and "397923af" in message and SHA256 in message
    message = refusal(f"{base}/vgg16.pth", sha256="0" * 64)
    assert f"{base}/vgg16.pth" in message and "0" * 64 in message
    assert not files_in(cache)


def test_a_download_that_breaks_off_leaves_nothing(server: str, cache: pathlib.Path):
    message = refusal(f"{server}/cut.pth")
    assert str(offered_path(message)) == str(
        cache / server.removeprefix("https://") / "cut.pth"
    )
    assert not files_in(cache)


def test_a_missing_file_on_the_server(server: str, cache: pathlib.Path):
    assert "404" in refusal(f"{server}/missing.pth")
    assert not files_in(cache)


def test_a_file_url_is_copied_and_its_changes_seen(
    source: pathlib.Path, cache: pathlib.Path
):
    url = (source / "vgg16.pth").as_uri()
    fetched = fetch(url)
    assert fetched.read_bytes() == CONTENT and cache in fetched.parents
    other = LEGACY.read_bytes()
    (source / "vgg16.pth").write_bytes(other)
    assert fetch(url).read_bytes() == other
    (source / "vgg16.pth").unlink()  # or unmounted
    assert fetch(url).read_bytes() == other


def test_another_cache(source: pathlib.Path, cache: pathlib.Path):
    other = cache.parent / "other"
    fetched = fetch((source / "vgg16.pth").as_uri(), cache_dir=other)
    assert other in fetched.parents and not cache.exists()


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/vgg16.pth",
        "ftp://localhost/vgg16.pth",
        "https://localhost",
        "https://localhost/a/%2e%2e/%2e%2e/vgg16.pth",
        "https://localhost/..%5cvgg16.pth",
        "file://otherhost/vgg16.pth",
        "https://[/vgg16.pth",
    ],
)
def test_urls_that_are_not_fetched(url: str, cache: pathlib.Path):
    assert url in refusal(url)
    assert not cache.exists()


# Without a connection


def test_an_unreachable_url_says_where_to_put_the_file(cache: pathlib.Path):
    url = f"https://localhost:9/models/{RIGHT}"  # nothing listens there
    message = refusal(url)
    target = offered_path(message)
    assert url in message and cache in target.parents and not files_in(cache)
    target.write_bytes(CONTENT)
    assert fetch(url, sha256=SHA256) == target

    target.write_bytes(CONTENT[:-1])
    message = refusal(url)
    assert str(target) in message and SHA256[:8] in message
    assert target.read_bytes() == CONTENT[:-1]  # what was put there stays


def test_a_missing_file_url_says_where_to_put_the_file(
    source: pathlib.Path, cache: pathlib.Path
):
    url = (source / "unmounted.pth").as_uri()
    target = offered_path(refusal(url))
    target.write_bytes(CONTENT)
    assert fetch(url) == target


def test_hub_names_without_a_connection(cache: pathlib.Path, tmp_path: pathlib.Path):
    """In a process of its own: the hub's library reads its settings on import."""
    program = (
        "import sys\n"
        "from vgg_flax.weights import WeightsError, fetch\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        print(fetch.fetch(name))\n"
        "    except WeightsError as error:\n"
        "        print(error)\n"
    )
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    names = ["vgg16", "timm/vgg11_bn.tv_in1k", "owner/repo:folder/vgg.pth", "a--b/c"]
    places = [
        "timm/vgg16.tv_in1k/model.safetensors",
        "timm/vgg11_bn.tv_in1k/model.safetensors",
        "owner/repo/folder/vgg.pth",
        "a--b/c/model.safetensors",
    ]

    def run() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program, *names],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    for message, place in zip(run(), places, strict=True):
        target = offered_path(message)
        assert target == cache / place
        repo, filename = "/".join(place.split("/")[:2]), place.split("/", 2)[2]
        assert f"https://huggingface.co/{repo}/resolve/main/{filename}" in message
        target.parent.mkdir(parents=True)
        target.write_bytes(CONTENT)
    assert run() == [str(cache / place) for place in places]


def test_a_file_in_the_hub_s_own_cache_needs_no_connection(
    tmp_path: pathlib.Path,
):
    # The layout is Hugging Face's: other libraries fill it.
    repo = tmp_path / "cache/hub/models--timm--vgg16.tv_in1k"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0" * 40)
    (snapshot / "model.safetensors").write_bytes(CONTENT)
    fetched = fetch("vgg16", cache_dir=tmp_path / "cache")
    assert fetched == snapshot / "model.safetensors"
    with contextlib.chdir(tmp_path):
        assert fetch("vgg16", cache_dir="cache", sha256=SHA256).samefile(fetched)
