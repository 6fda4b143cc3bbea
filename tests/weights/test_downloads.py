"""Downloads from servers that fail, lie or dawdle, into caches that may be spoiled."""

import gzip
import hashlib
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import random_net

import vgg_flax
from tests import servers
from vgg_flax.inference import conversion
from vgg_flax.weights import WeightsError, fetch, urls

FILES = pathlib.Path(__file__).parents[1] / "files"
CONTENT = (FILES / "state_dict_zip.pth").read_bytes()
OTHER = (FILES / "state_dict_legacy.pth").read_bytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><title>Sign in</title>"
PROGRAM = (  # its arguments: a URL, and the size that files may have
    "import resource, signal, sys\n"
    # Ignored where the tests run in the background of a script.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "for size in map(int, sys.argv[2:]):\n"
    "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
    "from vgg_flax.weights import WeightsError, fetch\n"
    "try:\n"
    "    print(fetch.fetch(sys.argv[1]))\n"
    "except WeightsError as error:\n"
    "    print(error)\n"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """An empty cache, where VGG_FLAX_CACHE says."""
    monkeypatch.setenv("VGG_FLAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def server(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[servers.Server]:
    with servers.serving_https(tmp_path, monkeypatch) as running:
        yield running


def files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refusal(name: str, **options: Any) -> str:
    """The error's one line."""
    with pytest.raises(WeightsError) as caught:
        fetch.fetch(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def start_download(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=FILES.parents[1],
    )


# What is sent is no weight file


def cut(handler: servers.Handler) -> None:
    handler.head(200, Content_Length=str(len(CONTENT)))
    handler.wfile.write(CONTENT[:-1])


def cut_chunk(handler: servers.Handler) -> None:
    handler.head(200, Transfer_Encoding="chunked")
    handler.wfile.write(b"%x\r\n" % len(CONTENT) + CONTENT[:1000])


def no_last_chunk(handler: servers.Handler) -> None:
    handler.head(200, Transfer_Encoding="chunked")
    handler.wfile.write(b"%x\r\n" % 1000 + CONTENT[:1000] + b"\r\n")


def cut_without_length(handler: servers.Handler) -> None:
    handler.head(200)
    handler.wfile.write(CONTENT[:1000])


def cut_gzip(handler: servers.Handler) -> None:
    handler.head(200, Content_Encoding="gzip")
    handler.wfile.write(gzip.compress(CONTENT)[:500])


def no_gzip(handler: servers.Handler) -> None:
    handler.answer(200, CONTENT, Content_Encoding="gzip")


def no_http(handler: servers.Handler) -> None:
    handler.wfile.write(b"SSH-2.0-server\r\n")


def nothing(_: servers.Handler) -> None:
    """The connection is closed."""


BAD_ANSWERS: dict[str, tuple[servers.Answer, str]] = {
    "page": ((200, PAGE), "a web page"),
    "xml": ((200, b'<?xml version="1.0"?><Error/>'), "XML"),
    "pointer": ((200, b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs"),
    "json": ((200, b'{"error": "quota"}'), "JSON"),
    "empty": ((200, b""), "is empty"),
    "no_content": ((204, b""), "204 No Content"),
    "part": ((206, CONTENT), "206 Partial Content"),
    "not_modified": ((304, b""), "304 Not Modified"),
    "range": ((416, b""), "416 "),
    "broken": ((500, CONTENT), "500 Internal Server Error"),
    "unheard": ((799, CONTENT), "799"),
    "cut": (cut, "IncompleteRead"),
    "cut_chunk": (cut_chunk, "IncompleteRead"),
    "no_last_chunk": (no_last_chunk, "IncompleteRead"),
    "cut_without_length": (cut_without_length, "damaged or incomplete"),
    "cut_gzip": (cut_gzip, "damaged or incomplete"),
    "no_gzip": (no_gzip, "cannot be fetched"),
    "no_http": (no_http, "cannot be fetched"),
    "nothing": (nothing, "closed connection without response"),
}


@pytest.mark.parametrize("kind", BAD_ANSWERS)
@pytest.mark.parametrize("name", ["vgg16.pth", f"vgg16-{SHA256[:8]}.pth"])
def test_a_bad_answer_leaves_nothing_and_the_next_is_taken(
    name: str, kind: str, server: servers.Server, cache: pathlib.Path
):
    answer, expected = BAD_ANSWERS[kind]
    server.answers[f"/{name}"] = answer
    message = refusal(f"{server.url}/{name}")
    assert expected in message and f"{server.url}/{name}" in message
    assert ".partial" not in message  # which is no more
    assert len(server.requests) == 1 and not files_in(cache)

    server.answers[f"/{name}"] = (200, CONTENT)
    assert fetch.fetch(f"{server.url}/{name}").read_bytes() == CONTENT
    assert fetch.read(f"{server.url}/{name}").sha256 == SHA256
    assert len(server.requests) == 2


def test_an_encoded_answer_is_decoded(server: servers.Server):
    packed = gzip.compress(CONTENT)
    server.answers["/a.pth"] = lambda h: h.answer(200, packed, Content_Encoding="gzip")
    assert fetch.fetch(f"{server.url}/a.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("spoiled", [PAGE, b"", CONTENT[:1000]])
def test_what_is_spoiled_in_the_cache_is_fetched_once_more(
    spoiled: bytes,
    server: servers.Server,
    cache: pathlib.Path,
    capfd: pytest.CaptureFixture,
):
    url, place = f"{server.url}/vgg16.pth", f"{server.url[8:]}/vgg16.pth"
    (cache / place).parent.mkdir(parents=True)
    (cache / place).write_bytes(spoiled)
    server.answers["/vgg16.pth"] = (200, PAGE)
    message = refusal(url)  # of both
    assert str(cache / place) in message and f"{url} is a web page" in message
    capfd.readouterr()

    server.answers["/vgg16.pth"] = (200, CONTENT)
    assert fetch.read(url).sha256 == SHA256
    told = [line for line in capfd.readouterr().err.splitlines() if "refused" in line]
    assert len(told) == 1 and str(cache / place) in told[0]
    assert files_in(cache) == [cache / place] and len(server.requests) == 2
    assert fetch.read(url).sha256 == SHA256 and len(server.requests) == 2


def test_what_no_longer_has_its_hash_is_fetched_once_more(server: servers.Server):
    name = f"vgg16-{SHA256[:8]}.pth"
    server.answers[f"/{name}"] = server.answers["/vgg16.pth"] = (200, CONTENT)
    for url, sha256 in ((f"{server.url}/{name}", None), (f"{server.url}/vgg16.pth", 1)):
        fetch.fetch(url).write_bytes(OTHER)
        assert fetch.fetch(url, sha256=sha256 and SHA256).read_bytes() == CONTENT
    assert "0" * 64 in refusal(f"{server.url}/vgg16.pth", sha256="0" * 64)
    assert fetch.fetch(f"{server.url}/vgg16.pth").read_bytes() == CONTENT  # it stays


def test_an_update_of_a_file_url_is_read_first(tmp_path: pathlib.Path):
    path = tmp_path / "vgg16.pth"
    path.write_bytes(CONTENT)
    fetched = fetch.fetch(path.as_uri())
    path.write_bytes(PAGE)
    assert f"{path.as_uri()} is a web page" in refusal(path.as_uri())
    assert fetched.read_bytes() == CONTENT
    path.write_bytes(OTHER)
    assert fetch.fetch(path.as_uri()).read_bytes() == OTHER


# Limits


def endless(handler: servers.Handler) -> None:
    handler.head(200)
    handler.forever(lambda: handler.wfile.write(bytes(10_000)))


def endless_chunks(handler: servers.Handler) -> None:
    handler.head(200, Transfer_Encoding="chunked")
    handler.forever(lambda: handler.wfile.write(b"3e8\r\n" + bytes(1000) + b"\r\n"))


def gzip_bomb(handler: servers.Handler) -> None:
    handler.answer(200, gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")


def promise(handler: servers.Handler) -> None:
    handler.head(200, Content_Length="100001")
    handler.forever(lambda: None, 0.1)


def drip(handler: servers.Handler) -> None:
    handler.head(200, Content_Length=str(len(CONTENT)))
    handler.forever(lambda: handler.wfile.write(b"P"), 0.1)


def drip_chunk_size(handler: servers.Handler) -> None:
    handler.head(200, Transfer_Encoding="chunked")
    handler.wfile.write(b"1;")
    handler.forever(lambda: handler.wfile.write(b"x"), 0.1)


def drip_header(handler: servers.Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Header: ")
    handler.forever(lambda: handler.wfile.write(b"x"), 0.1)


def silence(handler: servers.Handler) -> None:
    handler.forever(lambda: None, 0.1)


def redirect_with_an_endless_body(handler: servers.Handler) -> None:
    handler.head(302, Location="/missing.pth")
    handler.forever(lambda: handler.wfile.write(bytes(10_000)))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (endless, "100000 bytes VGG_FLAX_MAX_DOWNLOAD_BYTES"),
        (endless_chunks, "100000 bytes VGG_FLAX_MAX_DOWNLOAD_BYTES"),
        (gzip_bomb, "100000 bytes VGG_FLAX_MAX_DOWNLOAD_BYTES"),
        (promise, "100000 bytes VGG_FLAX_MAX_DOWNLOAD_BYTES"),
        (drip, "within 2 s VGG_FLAX_MAX_DOWNLOAD_SECONDS"),
        (drip_chunk_size, "within 2 s VGG_FLAX_MAX_DOWNLOAD_SECONDS"),
        (drip_header, "within 1 s VGG_FLAX_MAX_ANSWER_SECONDS"),
        (silence, "within 1 s VGG_FLAX_MAX_ANSWER_SECONDS"),
        (redirect_with_an_endless_body, "404 Not Found"),
    ],
)
def test_a_download_is_bounded(
    answer: servers.Answer,
    expected: str,
    server: servers.Server,
    cache: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("VGG_FLAX_MAX_DOWNLOAD_BYTES", "100000")
    seconds = "2" if "2 s" in expected else "100"
    monkeypatch.setenv("VGG_FLAX_MAX_DOWNLOAD_SECONDS", seconds)
    seconds = "1" if "1 s" in expected else "100"
    monkeypatch.setenv("VGG_FLAX_MAX_ANSWER_SECONDS", seconds)
    server.answers["/a.pth"] = answer
    message = refusal(f"{server.url}/a.pth")
    *words, name = expected.rsplit(" ", 1)
    assert all(word in message for word in words) and name in message
    assert "put it at" in message and not files_in(cache)


def test_other_sources_are_bounded(
    tmp_path: pathlib.Path, cache: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    assert "no regular file" in refusal("file:///dev/zero")
    os.mkfifo(tmp_path / "pipe.pth")
    assert "no regular file" in refusal((tmp_path / "pipe.pth").as_uri())
    monkeypatch.setenv("VGG_FLAX_MAX_DOWNLOAD_BYTES", "1000")
    (tmp_path / "a.pth").write_bytes(CONTENT)
    assert "more than 1000 bytes" in refusal((tmp_path / "a.pth").as_uri())
    monkeypatch.setenv("VGG_FLAX_MAX_DOWNLOAD_BYTES", "1 GB")
    with pytest.raises(vgg_flax.errors.ConfigError, match="BYTES=1 GB"):
        fetch.fetch((tmp_path / "a.pth").as_uri())
    assert not files_in(cache)


# Redirects


def to(location: str) -> servers.Answer:
    return lambda handler: handler.answer(302, b"", Location=location)


def test_redirects_are_followed_to_https_only(
    server: servers.Server, cache: pathlib.Path
):
    server.answers["/final.pth"] = (200, CONTENT)
    server.answers["/relative.pth"] = to("final.pth")
    server.answers["/absolute.pth"] = to(f"{server.url}/relative.pth")
    fetched = fetch.fetch(f"{server.url}/absolute.pth")
    assert fetched.read_bytes() == CONTENT and fetched.name == "absolute.pth"

    with servers.serving() as plain:
        plain.answers["/final.pth"] = (200, CONTENT)
        server.answers["/a.pth"] = to(f"{plain.url}/final.pth?token=secret")
        server.answers["/b.pth"] = to("a.pth")
        for name in ("a.pth", "b.pth"):
            message = refusal(f"{server.url}/{name}")
            assert f"{plain.url}/final.pth?token=***, which is not https" in message
        assert not plain.requests
    server.answers["/c.pth"] = to("file:///etc/passwd")
    assert "file:///etc/passwd, which is not https" in refusal(f"{server.url}/c.pth")
    server.answers["/loop.pth"] = to("/loop.pth")
    assert "redirected more than 10 times" in refusal(f"{server.url}/loop.pth")
    assert files_in(cache) == [fetched]


# Secrets

SECRETS = ("hunter2", "s3cr3t", "t0ken", "signat")


def test_secrets_of_a_url_are_written_nowhere(
    server: servers.Server,
    cache: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
):
    net = random_net("vgg11")
    conversion.save(net, tmp_path / "net.safetensors", "torchvision")
    query = "token=t0ken&X-Amz-Signature=signat&download=true&s3cr3t"
    host = server.url.removeprefix("https://")
    url = f"https://user:hunter%322@{host}/net.safetensors?{query}"
    path = f"/net.safetensors?{query}"
    server.answers[path] = (200, (tmp_path / "net.safetensors").read_bytes())
    with caplog.at_level(logging.DEBUG):
        loaded = vgg_flax.load(url)
    assert server.requests[0][2]["Authorization"] == "Basic dXNlcjpodW50ZXIyMg=="
    assert loaded.source == (
        f"https://{host}/net.safetensors?token=***&X-Amz-Signature=***&download=***&***"
    )
    conversion.save(loaded, tmp_path / "run")
    conversion.save(loaded, tmp_path / "copy.safetensors", "torchvision")
    written = "".join(
        [
            *(str(path) for path in files_in(tmp_path)),
            *(path.read_bytes().decode("latin-1") for path in files_in(tmp_path)),
            caplog.text,
            *capfd.readouterr(),
        ]
    )
    assert "hunter" not in written
    assert not any(secret in written for secret in SECRETS)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@localhost:9/a.pth?sig=s3cr3t#t0ken",
        "https://hunter2@localhost:9/a.pth?s3cr3t",
        "http://user:hunter2@localhost/a.pth",
        "https://user:hunter2@localhost",
        "https://user:hunter2@localhost/../a.pth",
        "https://user:hunter2@local host/a.pth",
        "https://user:hunter2@localhost:port/a.pth",
        "https://user:hun/hunter2@localhost/a.pth",
        "https://hunter2@../a.pth",
        "https://user:hun#hunter2@localhost/a.pth",
        "https://user:hun?hunter2@localhost/a.pth",
        "https://user:hunter2@[/a.pth",
        "https://user:hunter2@nowhere.invalid/a.pth?sig=s3cr3t",
        "https://user:hunter2@%ff/a.pth?sig=s3cr3t",
        f"https://user:hunter2@{'a' * 70}.invalid/a.pth?sig=s3cr3t",
        "file://user:hunter2@otherhost/a.pth",
        "file://user:hunter2@localhost/a.pth",
        "ftp://user:hunter2@localhost/a.pth",
        "HTTPS://user:hunter2@localhost:9/a.pth",
    ],
)
def test_errors_tell_no_secrets(url: str, cache: pathlib.Path):
    with pytest.raises(WeightsError) as caught:
        vgg_flax.load(url)
    text = "".join(traceback.format_exception(caught.value))
    text += "".join(map(str, cache.rglob("*")))
    assert not any(secret in text for secret in (*SECRETS, "hunter", ":hun"))
    with pytest.raises(WeightsError) as caught:
        vgg_flax.load(url, 3)
    assert "hun" not in str(caught.value)


def test_a_password_is_for_its_host_alone(
    server: servers.Server, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    server.answers["/a.pth"] = to("/b.pth")
    with monkeypatch.context() as patch:
        authority = os.environ["REQUESTS_CA_BUNDLE"]
        (tmp_path / "other").mkdir()
        with servers.serving_https(tmp_path / "other", patch) as other:
            both = tmp_path / "both.pem"
            paths = (authority, os.environ["REQUESTS_CA_BUNDLE"])
            both.write_bytes(b"".join(pathlib.Path(p).read_bytes() for p in paths))
            patch.setenv("REQUESTS_CA_BUNDLE", str(both))
            server.answers["/b.pth"] = to(f"{other.url}/c.pth")
            other.answers["/c.pth"] = (200, CONTENT)
            fetch.fetch(server.url.replace("//", "//user:hunter2@") + "/a.pth")
            assert "Authorization" not in other.requests[0][2]
    assert all("Authorization" in headers for *_, headers in server.requests)


def test_what_an_earlier_version_kept_under_a_secret_name_is_moved(
    cache: pathlib.Path,
):
    for url, place in [
        ("https://u:hunter2@localhost:9/m/a.pth", "u:hunter2@localhost:9/m/a.pth"),
        ("https://localhost:9/m/a.pth?sig=s3cr3t", "localhost:9/m/sig%3Ds3cr3t/a.pth"),
    ]:
        (cache / place).parent.mkdir(parents=True)
        (cache / place).write_bytes(CONTENT)
        assert fetch.fetch(url).read_bytes() == CONTENT
    assert not any(s in str(p) for s in SECRETS for p in cache.rglob("*"))
    assert len(files_in(cache)) == 2


def test_urls_without_secrets_are_shown_as_they_are():
    for name in (
        "vgg16",
        "runs/a?b=c#d",
        "https://host:8443/@scope/vgg16@1.0/a.pth",
        "https://[::1]:80/a",
        "file:///tmp/a.pth",
    ):
        assert urls.shown(name) == name


# Without a connection, or a place


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:9", "Connection refused"),
        ("nowhere.invalid", "cannot be fetched: "),
        ("[::ffff:0:0:1]:9", "cannot be fetched: "),
    ],
)
def test_no_connection_is_one_line(host: str, expected: str, cache: pathlib.Path):
    message = refusal(f"https://{host}/a.pth")
    assert expected in message and "object at 0x" not in message
    assert message.endswith(f"put it at {cache}/{host}/a.pth")


def test_an_unknown_authority_is_one_line(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert "certificate verify failed" in refusal(f"{server.url}/a.pth")


def test_a_cache_that_cannot_be_written_is_one_line(
    server: servers.Server, cache: pathlib.Path
):
    server.answers["/a.pth"] = server.answers["/a.pth/b.pth"] = (200, CONTENT)
    fetched = fetch.fetch(f"{server.url}/a.pth")
    message = refusal(f"{server.url}/a.pth/b.pth")
    assert "cannot be kept" in message and "VGG_FLAX_CACHE" in message
    server.answers[f"/{'a' * 300}"] = (200, CONTENT)
    assert "File name too long" in refusal(f"{server.url}/{'a' * 300}")
    assert files_in(cache) == [fetched]
    message = refusal(f"{server.url}/a.pth", cache_dir=fetched)
    assert f"{fetched}" in message and "VGG_FLAX_CACHE" in message
    assert fetched.read_bytes() == CONTENT


def test_a_full_disk_is_one_line(server: servers.Server, cache: pathlib.Path):
    server.answers["/a.pth"] = (200, CONTENT)
    process = start_download(f"{server.url}/a.pth", "1000")
    out, err = process.communicate(timeout=60)
    assert "File too large" in out and "VGG_FLAX_CACHE" in out, err
    assert len(out.splitlines()) == 1 and not files_in(cache)


# Downloads that end early, and beside each other


def test_leftovers_go_and_live_downloads_stay(
    server: servers.Server, cache: pathlib.Path
):
    held = [False]

    def slow(handler: servers.Handler) -> None:
        handler.head(200, Content_Length=str(len(CONTENT)))
        handler.wfile.write(CONTENT[:1000])
        while held[0]:
            time.sleep(0.01)
        handler.wfile.write(CONTENT[1000:])

    url, held[0] = f"{server.url}/a.pth", True
    server.answers["/a.pth"] = slow
    killed, live, beside = (start_download(url) for _ in range(3))
    servers.wait_for(lambda: len(files_in(cache)) == 3)
    killed.kill()
    killed.communicate()
    server.answers["/b.pth"] = (200, CONTENT)
    fetched = fetch.fetch(f"{server.url}/b.pth")
    assert len(files_in(cache)) == 3 and fetched in files_in(cache)
    held[0] = False
    for process in (live, beside):
        out, _ = process.communicate(timeout=60)
        assert pathlib.Path(out.strip()).read_bytes() == CONTENT
    assert len(files_in(cache)) == 2


def test_leftovers_of_earlier_versions_go(server: servers.Server, cache: pathlib.Path):
    server.answers["/m/a.pth"] = (200, CONTENT)
    folder = cache / server.url.removeprefix("https://") / "m"
    for name, age in (("old", 3600), ("new", 0)):
        path = folder / f".partial-{name}" / "a.pth"
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT[:1000])
        for changed in (path, path.parent):
            os.utime(changed, (time.time() - age,) * 2)
    fetch.fetch(f"{server.url}/m/a.pth")
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".partial-new", "a.pth"]


def test_an_interrupted_download_leaves_nothing(
    server: servers.Server, cache: pathlib.Path
):
    def half(handler: servers.Handler) -> None:
        handler.head(200, Content_Length=str(len(CONTENT)))
        handler.wfile.write(CONTENT[:1000])
        handler.wfile.flush()
        handler.forever(lambda: None, 0.05)

    server.answers["/a.pth"] = half
    process = start_download(f"{server.url}/a.pth")
    servers.wait_for(lambda: server.requests and files_in(cache))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in err and process.returncode == -signal.SIGINT
    assert not files_in(cache)
