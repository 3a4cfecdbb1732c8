"""Downloads against servers on this machine that behave, do not know ranges, break off, or change the file."""

import http.server
import json
import threading
from contextlib import contextmanager

import pytest

from readers import InputError
from readers.download import HOSTS, addresses, download

NAME = "Toys-2014"
REVIEWS = bytes(range(256)) * 3000
METADATA = b"metadata" * 1000
FILES = {"reviews_Toys_5.json.gz": REVIEWS, "meta_Toys.json.gz": METADATA}
PAUSES = (0.0, 0.0, 0.0)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves FILES; subclasses set how it misbehaves."""

    protocol_version = "HTTP/1.0"
    ranges, etag, break_offs, lie, redirect = True, '"one"', 0, 0, None
    requests: list  # (path, range)

    def do_GET(self):
        kind, name = type(self), self.path.rsplit("/", 1)[1]
        wanted = self.headers.get("Range")
        kind.requests.append((name, wanted))
        if kind.redirect:
            self.send_response(302)
            self.send_header("Location", kind.redirect)
            self.end_headers()
            return
        if name not in kind.files:
            self.send_error(404)
            return
        self.answer(kind, kind.files[name], wanted)

    def answer(self, kind, data, wanted):
        start = 0
        if wanted and kind.ranges and self.headers.get("If-Range") == kind.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.end_headers()
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start + kind.lie))
        self.send_header("ETag", kind.etag)
        self.end_headers()
        body = data[start:]
        if kind.break_offs:
            kind.break_offs -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def serving(**behaviour):
    kind = type("Kind", (Server,), {"files": dict(FILES), "requests": [], **behaviour})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield kind, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def fetch(folder, url):
    return download(NAME, folder, base_url=url, retry_after_s=PAUSES)


def assert_complete(folder, paths):
    assert [path.read_bytes() for path in paths] == [REVIEWS, METADATA]
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


def test_fetches_both_files_once(tmp_path):
    with serving() as (kind, url):
        assert_complete(tmp_path, fetch(tmp_path, url))
        fetch(tmp_path, url)
        assert len(kind.requests) == 2


@pytest.mark.parametrize("ranges", [True, False])
def test_connection_that_breaks_off_once(tmp_path, ranges):
    with serving(break_offs=1, ranges=ranges) as (kind, url):
        assert_complete(tmp_path, fetch(tmp_path, url))
    assert kind.requests[:2] == [("reviews_Toys_5.json.gz", None), ("reviews_Toys_5.json.gz", f"bytes={len(REVIEWS) // 2}-")]


def test_connection_that_always_breaks_off_keeps_its_part_and_resumes(tmp_path):
    with serving(break_offs=99) as (kind, url):
        with pytest.raises(InputError, match="bytes are kept: run the same command again to resume") as failure:
            fetch(tmp_path, url)
        assert "\n" not in str(failure.value)
        assert len(kind.requests) == 1 + len(PAUSES)
        kept = (tmp_path / "reviews_Toys_5.json.gz.part").stat().st_size
        assert len(REVIEWS) // 2 < kept < len(REVIEWS)
        assert not (tmp_path / "reviews_Toys_5.json.gz").exists()
        kind.break_offs = 0
        assert_complete(tmp_path, fetch(tmp_path, url))
        assert kind.requests[4] == ("reviews_Toys_5.json.gz", f"bytes={kept}-")


def test_file_that_changed_between_tries_is_fetched_anew(tmp_path):
    with serving(break_offs=99) as (kind, url):
        with pytest.raises(InputError):
            fetch(tmp_path, url)
        kind.break_offs, kind.etag = 0, '"two"'
        kind.files["reviews_Toys_5.json.gz"] = REVIEWS[::-1] * 2
        assert fetch(tmp_path, url)[0].read_bytes() == REVIEWS[::-1] * 2


@pytest.mark.parametrize("size", [len(REVIEWS), len(REVIEWS) + 5])
def test_part_that_is_already_complete_or_too_long(tmp_path, size):
    (tmp_path / "reviews_Toys_5.json.gz.part").write_bytes((REVIEWS + b"extra")[:size])
    (tmp_path / "reviews_Toys_5.json.gz.part.json").write_text(json.dumps({"validator": '"one"', "size": len(REVIEWS)}))
    with serving() as (_, url):
        assert_complete(tmp_path, fetch(tmp_path, url))


def test_part_without_validator_is_not_trusted(tmp_path):
    (tmp_path / "reviews_Toys_5.json.gz.part").write_bytes(b"something else")
    with serving() as (kind, url):
        assert_complete(tmp_path, fetch(tmp_path, url))
    assert kind.requests[0] == ("reviews_Toys_5.json.gz", None)


def test_wrong_size(tmp_path):
    with serving(lie=10) as (_, url), pytest.raises(InputError, match="cannot be fetched"):
        fetch(tmp_path, url)
    assert not (tmp_path / "reviews_Toys_5.json.gz").exists()


def test_missing_category(tmp_path):
    with serving(files={}) as (kind, url), pytest.raises(InputError, match=r"check the spelling.*2014, 2018, 2023"):
        fetch(tmp_path, url)
    assert len(kind.requests) == 1
    assert not list(tmp_path.iterdir())


def test_nothing_listening(tmp_path):
    with serving() as (_, url):
        pass
    with pytest.raises(InputError, match=r"refused.*check the network"):
        fetch(tmp_path, url)


def test_redirect_to_an_unknown_host(tmp_path):
    with serving(redirect="http://localhost:1/x.gz") as (_, url), pytest.raises(InputError, match="not a known address"):
        fetch(tmp_path, url)


def test_addresses_are_https_on_known_hosts():
    for year in (2014, 2018, 2023):
        for address in addresses(f"Electronics-{year}"):
            assert address.startswith("https://") and address.split("/")[2] in HOSTS
    assert addresses(NAME)[0].endswith("/categoryFiles/reviews_Toys_5.json.gz")


@pytest.mark.parametrize("name", ["Electronics", "Electronics-2015", "2014/Electronics", "../x-2014", "a b-2014", ""])
def test_bad_names(tmp_path, name):
    with pytest.raises(InputError, match=r"CATEGORY-YEAR.*2014, 2018, 2023"):
        download(name, tmp_path)
