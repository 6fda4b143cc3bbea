"""The Hugging Face hub, played by a server of our own that fails and lies.

In processes of their own: the hub's library reads its settings on import.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import servers

FILES = pathlib.Path(__file__).parents[1] / "files"
CONTENT = (FILES / "state_dict_zip.pth").read_bytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><title>Sign in</title>"
PROGRAM = (
    "import sys\n"
    "from vgg_flax.weights import WeightsError, fetch\n"
    "for name in sys.argv[1:]:\n"
    "    try:\n"
    "        print(fetch.read(name).sha256)\n"
    "    except WeightsError as error:\n"
    "        print(error)\n"
)


@pytest.fixture
def hub() -> Iterator[servers.Server]:
    with servers.serving() as running:
        yield running


def put(hub: servers.Server, repo: str, content: bytes, etag: str) -> None:
    """Lets the hub have `repo:a.pth`."""

    def answer(handler: servers.Handler) -> None:
        commit = {"X_Repo_Commit": "1" * 40}
        handler.answer(200, content, ETag=f'"{etag}"', **commit)

    hub.answers[path_of(repo)] = answer


def path_of(repo: str) -> str:
    return f"/{repo}/resolve/main/a.pth"


def read(
    hub: servers.Server | str, folder: pathlib.Path, *repos: str, **settings: str
) -> list[str]:
    """The line that reading `a.pth` of each repository ends in, and stderr's."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, *(f"{r}:a.pth" for r in repos)],
        env={
            **os.environ,
            "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url,
            "HF_HOME": str(folder / "hf"),
            "VGG_FLAX_CACHE": str(folder / "cache"),
            "NO_PROXY": "localhost",
            **settings,
        },
        cwd=FILES.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(repos), done.stdout
    return [*lines, done.stderr]


def requests_of(hub: servers.Server, repo: str) -> list[str]:
    return [method for method, path, _ in hub.requests if path == path_of(repo)]


def blobs(folder: pathlib.Path, repo: str) -> list[pathlib.Path]:
    owner, name = repo.split("/")
    repo_folder = folder / f"hf/hub/models--{owner}--{name}"
    blobs = [p for p in repo_folder.rglob("*") if p.is_file() and "refs" not in p.parts]
    return [path for path in blobs if not path.is_symlink()]


def test_what_is_no_weight_file_does_not_stay(
    hub: servers.Server, tmp_path: pathlib.Path
):
    repos = ["o/page", "o/sent", "o/hash", "o/cut", "o/none", "o/good"]
    put(hub, "o/page", PAGE, "page")
    put(hub, "o/sent", PAGE, hashlib.sha256(PAGE).hexdigest())  # what was uploaded
    put(hub, "o/hash", CONTENT, "0" * 64)  # what the hub says that it has
    put(hub, "o/cut", CONTENT[:-1], "cut")
    put(hub, "o/good", CONTENT, SHA256)
    page, sent, wrong, cut, none, good, _ = read(hub, tmp_path, *repos)
    assert "is a web page" in page and "is a web page" in sent
    assert SHA256 in wrong and "0" * 64 in wrong
    assert "damaged or incomplete" in cut
    assert "404" in none and "put it at" in none
    assert good == SHA256
    assert [len(blobs(tmp_path, repo)) for repo in repos] == [0, 0, 0, 0, 0, 1]

    for repo in repos[:-1]:
        put(hub, repo, CONTENT, SHA256)
    (good_blob,) = blobs(tmp_path, "o/good")
    good_blob.write_bytes(CONTENT[:-1])  # spoiled since
    for name in ("old.incomplete", "new.incomplete"):  # killed downloads
        (good_blob.parent / name).write_bytes(CONTENT[:100])
    os.utime(good_blob.parent / "old.incomplete", (0, 0))
    hub.requests.clear()
    *digests, told = read(hub, tmp_path, *repos, "o/good")
    assert digests == [SHA256] * 7
    refused = [line for line in told.splitlines() if "refused" in line]
    assert len(refused) == 1 and "o--good" in refused[0]
    names = {path.name for path in good_blob.parent.iterdir()}
    assert names == {"new.incomplete", SHA256}
    # It is asked about one and then sends it; what is in the cache is not asked for.
    assert requests_of(hub, "o/good") == ["HEAD", "HEAD", "GET"]


def test_a_download_is_bounded(hub: servers.Server, tmp_path: pathlib.Path):
    def drip(handler: servers.Handler) -> None:
        if handler.command == "HEAD":
            handler.head(200, ETag='"drip"', X_Repo_Commit="1" * 40)
        else:
            handler.head(200)
            handler.forever(lambda: handler.wfile.write(b"P"), 0.1)

    def endless(handler: servers.Handler) -> None:
        if handler.command == "HEAD":
            handler.head(200, ETag='"endless"', X_Repo_Commit="1" * 40)
        else:
            handler.head(200)
            handler.forever(lambda: handler.wfile.write(bytes(100_000)))

    def silence(handler: servers.Handler) -> None:
        handler.forever(lambda: None, 0.1)

    put(hub, "o/large", CONTENT + bytes(100_000), "large")
    answers = {"o/endless": endless, "o/drip": drip, "o/silence": silence}
    hub.answers |= {path_of(repo): answer for repo, answer in answers.items()}
    settings = {
        "VGG_FLAX_MAX_DOWNLOAD_BYTES": "100000",
        "VGG_FLAX_MAX_DOWNLOAD_SECONDS": "2",
        "VGG_FLAX_MAX_ANSWER_SECONDS": "1",
    }
    repos = ["o/large", *answers]
    large, endless_line, drip_line, silence_line, _ = read(
        hub, tmp_path, *repos, **settings
    )
    for line in (large, endless_line):
        assert "VGG_FLAX_MAX_DOWNLOAD_BYTES" in line and "100000" in line
    assert "within 2 s" in drip_line and "VGG_FLAX_MAX_DOWNLOAD_SECONDS" in drip_line
    assert "1 s" in silence_line or "timed out" in silence_line
    assert not blobs(tmp_path, "o/large") and not blobs(tmp_path, "o/endless")


def test_a_hub_that_is_not_there_is_asked_once(
    hub: servers.Server, tmp_path: pathlib.Path
):
    hub.answers[path_of("o/a")] = (503, b"")
    line, _ = read(hub, tmp_path, "o/a")
    assert "503" in line and line.endswith(f"put it at {tmp_path}/cache/o/a/a.pth")
    assert requests_of(hub, "o/a") == ["HEAD"]
    line, told = read("http://localhost:9", tmp_path, "o/a")
    assert "Connection refused" in line and "put it at" in line and not told


def test_what_was_put_beside_the_cache_is_refused_aloud(
    hub: servers.Server, tmp_path: pathlib.Path
):
    for repo in ("o/none", "o/good"):
        placed = tmp_path / f"cache/{repo}/a.pth"
        placed.parent.mkdir(parents=True)
        placed.write_bytes(PAGE)
    put(hub, "o/good", CONTENT, SHA256)
    line, digest, told = read(hub, tmp_path, "o/none", "o/good")
    assert f"{tmp_path}/cache/o/none/a.pth is a web page" in line and "404" in line
    assert f"{placed} is a web page" in told and digest == SHA256
    assert placed.read_bytes() == PAGE  # whoever put it there takes it away
