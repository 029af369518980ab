"""The seam to fsspec: atomic writes, names that stay inside, and retries where they help."""

import errno
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import botocore.exceptions
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from s3fs import S3FileSystem

from pipelines import retries, storage


class UnreliableFileSystem(MemoryFileSystem):
    """Object storage that fails as often as it is told to before it does what it is asked for."""

    protocol = "unreliable"
    failures: list[Exception] = []  # noqa: RUF012 - what comes next is set by each test
    attempts = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("unreliable://", "memory://"))

    def attempt(self) -> None:
        type(self).attempts += 1
        if self.failures:
            raise self.failures.pop(0)

    def cat_file(self, path: str, **kwargs: object) -> bytes:
        self.attempt()
        return super().cat_file(path, **kwargs)

    def pipe_file(self, path: str, value: bytes, **kwargs: object) -> None:
        self.attempt()
        super().pipe_file(path, value, **kwargs)

    def exists(self, path: str, **kwargs: object) -> bool:
        self.attempt()
        return super().exists(path, **kwargs)


RETRIED: tuple[Any, ...] = (
    *(storage.read_bytes, storage.write_bytes, storage.exists, storage.delete),
    *(storage.find_files, storage.scan_folder, storage.list_folders),
)


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between attempts take no time."""
    for function in RETRIED:
        monkeypatch.setattr(function.retry, "sleep", lambda _: None)


@pytest.fixture
def unreliable(monkeypatch: pytest.MonkeyPatch, no_waits: None) -> Iterator[type[UnreliableFileSystem]]:
    """The file system behind unreliable://, empty and in order."""
    fsspec.register_implementation("unreliable", UnreliableFileSystem, clobber=True)
    monkeypatch.setattr(UnreliableFileSystem, "failures", [])
    monkeypatch.setattr(UnreliableFileSystem, "attempts", 0)
    yield UnreliableFileSystem
    UnreliableFileSystem.store.clear()
    UnreliableFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def closed_s3(monkeypatch: pytest.MonkeyPatch, no_waits: None, tmp_path: Path) -> Iterator[None]:
    """s3:// at a port that nobody listens on, with credentials from the environment alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


class StatusServer(BaseHTTPRequestHandler):
    """Answers with the status that a path names, and keeps the paths."""

    paths: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_response(int(self.path.strip("/").partition("?")[0]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def status_url(no_waits: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(StatusServer, "paths", [])
    with HTTPServer(("127.0.0.1", 0), StatusServer) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_bytes_come_back_from_a_path_and_from_a_file_url(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a" / "b.bin"), b"one")
    assert storage.read_bytes(f"file://{tmp_path}/a/b.bin") == b"one"
    assert storage.exists(str(tmp_path / "a" / "b.bin")) and not storage.exists(str(tmp_path / "c"))


def test_a_url_of_any_scheme(unreliable: type[UnreliableFileSystem]) -> None:
    storage.write_bytes("unreliable://bucket/x/b", b"two")
    storage.write_bytes("unreliable://bucket/x/a/c", b"three")
    assert storage.read_bytes("unreliable://bucket/x/b") == b"two"
    assert storage.list_files("unreliable://bucket/x/") == ["a/c", "b"]
    assert storage.list_folders("unreliable://bucket/x/") == ["a"]
    storage.delete("unreliable://bucket/x/b")
    assert not storage.exists("unreliable://bucket/x/b")
    assert unreliable.attempts > 0


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    storage.write_bytes(str(path), b"old")
    attempts = []

    def full_disk(_: int) -> None:
        attempts.append(1)
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        storage.write_bytes(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["a"]
    assert len(attempts) == 1  # a full disk is not a passing trouble


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    url, size = str(tmp_path / "a"), 500_000
    storage.write_bytes(url, b"0" * size)

    def write(value: bytes) -> None:
        for _ in range(20):
            storage.write_bytes(url, value * size)

    writers = [threading.Thread(target=write, args=(value,)) for value in (b"0", b"1")]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers) or not seen:
        data = storage.read_bytes(url)
        assert len(data) == size and len(set(data)) == 1
        seen += 1
    for writer in writers:
        writer.join()
    assert [child.name for child in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "connection reset"),
        TimeoutError("timed out"),
        OSError(16, "SlowDown: reduce your request rate"),
        aiohttp.ClientPayloadError("response payload is not completed"),
        botocore.exceptions.ConnectionClosedError(endpoint_url="http://127.0.0.1"),
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://127.0.0.1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_passing_troubles_are_retried(unreliable: type[UnreliableFileSystem], error: Exception) -> None:
    unreliable.failures = [error, error]
    storage.write_bytes("unreliable://bucket/a", b"x")
    assert unreliable.attempts == 3
    unreliable.failures = [error, error]
    assert storage.read_bytes("unreliable://bucket/a") == b"x"
    assert unreliable.attempts == 6


def test_troubles_that_do_not_pass_are_told_in_the_end(unreliable: type[UnreliableFileSystem]) -> None:
    unreliable.failures = [TimeoutError(f"timed out {attempt}") for attempt in range(100)]
    with pytest.raises(TimeoutError, match="timed out 7"):
        storage.read_bytes("unreliable://bucket/a")
    assert unreliable.attempts == retries.RETRY_ATTEMPTS


def test_a_connection_that_stays_broken_is_an_oserror_in_the_end(unreliable: type[UnreliableFileSystem]) -> None:
    unreliable.failures = [aiohttp.ClientPayloadError("payload is not completed") for _ in range(100)]
    with pytest.raises(OSError, match=f"the connection broke {retries.RETRY_ATTEMPTS} times: .*not completed"):
        storage.read_bytes("unreliable://bucket/a")


@pytest.mark.parametrize(
    "error", [FileNotFoundError("nothing there"), PermissionError("denied"), OSError(errno.EROFS, "read-only")]
)
def test_what_cannot_work_is_tried_once(unreliable: type[UnreliableFileSystem], error: Exception) -> None:
    unreliable.failures = [error]
    with pytest.raises(type(error)):
        storage.read_bytes("unreliable://bucket/a")
    assert unreliable.attempts == 1


def test_a_store_that_nobody_answers_for_is_an_oserror(closed_s3: None) -> None:
    with pytest.raises(OSError, match=f"broke {retries.RETRY_ATTEMPTS} times: Could not connect to the endpoint"):
        storage.read_bytes("s3://bucket/a")
    with pytest.raises(ValueError, match=r"output s3://bucket/a cannot be written \(the connection broke"):
        storage.check_writable("s3://bucket/a")


def test_missing_credentials_and_malformed_names_are_told_at_once(
    closed_s3: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"^the store refuses a name .*Invalid bucket name.*; fix the URL$"):
        storage.read_bytes("s3://no bucket!/a")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError, match=r"^the store cannot be used \(Unable to locate credentials\); check its cred"):
        storage.read_bytes("s3://bucket/a")


@pytest.mark.parametrize(
    ("status", "error", "attempts"),
    [
        *((status, PermissionError, 1) for status in (400, 401, 403)),
        (410, FileNotFoundError, 1),
        *((status, OSError, retries.RETRY_ATTEMPTS) for status in (408, 429, 503)),
    ],
)
def test_what_a_server_refuses_is_not_asked_for_again(
    status_url: str, status: int, error: type[OSError], attempts: int
) -> None:
    with pytest.raises(OSError, match=rf"{status}") as raised:
        storage.read_bytes(f"{status_url}/{status}?X-Amz-Signature=hush")
    assert type(raised.value) is error and "hush" not in str(raised.value)
    assert len(StatusServer.paths) == attempts


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "a/.."])
def test_names_that_climb_out_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="leaves its folder s3://bucket/runs; names must be relative and without"):
        storage.join("s3://bucket/runs", name)


def test_join_keeps_what_looks_alike(tmp_path: Path) -> None:
    assert storage.join("s3://bucket/runs/", "a..b", "c.json") == "s3://bucket/runs/a..b/c.json"
    assert storage.join(str(tmp_path), "a/b") == str(tmp_path / "a" / "b")
    assert storage.base_name("s3://bucket/runs/demo/") == "demo"


def test_local_urls_become_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert storage.resolve("runs/demo/") == str(tmp_path / "runs" / "demo")
    assert storage.resolve(f"file://{tmp_path}/x") == str(tmp_path / "x")
    assert storage.resolve("~/x") == str(tmp_path / "home" / "x")
    assert storage.resolve("s3://bucket/x/") == "s3://bucket/x"
    assert storage.is_local("x") and storage.is_local("file:///x") and not storage.is_local("s3://bucket/x")


def test_files_are_listed_in_order_and_relative(tmp_path: Path) -> None:
    for name in ("b/2", "a", "b/1"):
        storage.write_bytes(storage.join(str(tmp_path), name), b"")
    assert storage.list_files(str(tmp_path)) == ["a", "b/1", "b/2"]
    assert storage.list_folders(str(tmp_path)) == ["b"]
    assert storage.list_files(str(tmp_path / "missing")) == storage.list_folders(str(tmp_path / "missing")) == []


def test_deleting_twice_is_no_error(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a"), b"")
    storage.delete(str(tmp_path / "a"))
    storage.delete(str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_an_output_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"output .*file cannot be written .*; choose another or fix its permissions"):
        storage.check_writable(str(tmp_path / "file"))


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match=r"nosuch://x cannot be opened .*; use a path, s3://, or another scheme"):
        storage.read_bytes("nosuch://x")


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for path in (root / "a" / "1", elsewhere / "2", elsewhere / "deep" / "3"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "album").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere / "deep")
    (root / "gone").symlink_to(tmp_path / "nowhere")
    for place, target in ((root / "itself", root), (root / "a" / "up", tmp_path), (elsewhere / "deep" / "back", root)):
        place.symlink_to(target)
    (elsewhere / "round").symlink_to(elsewhere / "round")
    expected = ["a/1", "again/3", "album/2", "album/deep/3", "album/round", "gone"]
    assert storage.list_files(str(root)) == expected
    (tmp_path / "link").symlink_to(root)
    assert storage.list_files(str(tmp_path / "link")) == expected


def test_a_folder_that_cannot_be_read_is_named_and_a_passing_trouble_is_none(
    as_ordinary_user: Path, no_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(as_ordinary_user)
    for name in ("a/1", "locked/2"):
        storage.write_bytes(f"{root}/{name}", b"")
    (as_ordinary_user / "locked").chmod(0)
    tree = storage.list_tree(root)
    assert (tree.files, list(tree.unreadable)) == (["a/1"], ["locked"])
    with pytest.raises(PermissionError, match=r"locked cannot be read \(Permission denied\); fix its permissions"):
        storage.list_files(root)
    scandir, troubles = os.scandir, [OSError(errno.EIO, "input/output error")] * 3

    def shaky(path: str) -> Any:
        if path.endswith("/a") and troubles:
            raise troubles.pop()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", shaky)
    assert storage.list_tree(root).files == ["a/1"] and not troubles


@pytest.mark.parametrize("name", ["é" * 125 + ".png", "a::b.png", "50% [x] #1?.png", "~a*.png", "\udcff.png"])
def test_names_that_mean_something_to_a_library(name: str, tmp_path: Path) -> None:
    url = storage.join(str(tmp_path), name)
    storage.write_bytes(url, b"x")
    assert storage.list_files(str(tmp_path)) == [name]
    assert storage.read_bytes(url) == b"x" and storage.exists(url) and storage.is_file(url)
    storage.delete(url)
    assert not storage.exists(url)


def test_keys_that_look_like_chains_or_have_empty_parts(unreliable: type[UnreliableFileSystem]) -> None:
    for name in ("night::a.png", "night//b.png"):
        storage.write_bytes(f"unreliable://bucket/{name}", b"x")
    assert storage.read_bytes("unreliable://bucket/night::a.png") == b"x"
    assert storage.list_files("unreliable://bucket/night") == ["/b.png"]
    assert (
        storage.problem_of_name("/b.png") and storage.problem_of_name("a/../b") and not storage.problem_of_name("a..b")
    )
    with pytest.raises(ValueError, match=r"simplecache::nosuch://x cannot be opened"):
        storage.read_bytes("simplecache::nosuch://x")


def test_a_name_that_the_file_system_refuses_is_tried_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File name too long") as raised:
        storage.write_bytes(str(tmp_path / ("a" * 300)), b"x")
    assert retries.refuses_name(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_file_at_a_signed_url() -> None:
    url = "https://host/night/my%20cat.jpg?X-Amz-Signature=a/b"
    assert storage.split_file(url) == ("https://host/night", "my cat.jpg")
    assert storage.split_file("s3://bucket/night/what?.jpg") == ("s3://bucket/night", "what?.jpg")
