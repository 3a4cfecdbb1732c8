"""Fetch a category of the public Amazon review data, `CATEGORY-YEAR` such as Electronics-2014: reviews and product metadata.

2014 and 2018 are the 5-core files, 2023 is the whole category. Each file is written to FILE.part with FILE.part.json beside
it (the server's ETag or date), resumed from there after an interruption, checked for its size, and renamed at the end.
"""

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from readers import InputError

SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"
FILES = {
    2014: (f"{SNAP}/reviews_{{}}_5.json.gz", f"{SNAP}/meta_{{}}.json.gz"),
    2018: (f"{UCSD}/amazon_v2/categoryFilesSmall/{{}}_5.json.gz", f"{UCSD}/amazon_v2/metaFiles2/meta_{{}}.json.gz"),
    2023: (
        f"{UCSD}/amazon_2023/raw/review_categories/{{}}.jsonl.gz",
        f"{UCSD}/amazon_2023/raw/meta_categories/meta_{{}}.jsonl.gz",
    ),
}
HOSTS = {"snap.stanford.edu", "mcauleylab.ucsd.edu", "jmcauley.ucsd.edu", "datarepo.eng.ucsd.edu"}  # also after a redirect
RETRY_AFTER_S = (1.0, 4.0, 16.0)  # a connection that breaks off is tried again after these pauses
TIMEOUT_S = 60
CHUNK = 1 << 20


def download(name: str, folder: Path, *, base_url: str | None = None, retry_after_s: tuple[float, ...] = RETRY_AFTER_S) -> list[Path]:
    """Fetch reviews and metadata of `CATEGORY-YEAR` into `folder`; a file that is there already is not fetched again.

    `base_url` puts another server (a mirror, a test) in front of the file names. Returns [reviews, metadata].
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for address in addresses(name):
        path = folder / address.rsplit("/", 1)[1]
        if base_url:
            address = f"{base_url.rstrip('/')}/{path.name}"
        opener = _opener({urllib.parse.urlsplit(base_url).hostname} if base_url else HOSTS, https_only=not base_url)
        if not path.exists():
            _fetch(address, path, name, opener, retry_after_s)
        paths.append(path)
    return paths


def addresses(name: str) -> tuple[str, str]:
    """Addresses of the reviews and of the metadata of `CATEGORY-YEAR`."""
    parts = re.fullmatch(r"([A-Za-z0-9_']+)-(\d{4})", name)
    if not parts or int(parts[2]) not in FILES:
        years = ", ".join(map(str, FILES))
        raise InputError(f"--download {name}: write CATEGORY-YEAR, such as Electronics-2014; the years are {years}")
    reviews, metadata = FILES[int(parts[2])]
    return reviews.format(parts[1]), metadata.format(parts[1])


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only to a known host, and only by https."""

    def __init__(self, hosts: set[str | None], https_only: bool) -> None:
        self.hosts, self.https_only = hosts, https_only

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        target = urllib.parse.urlsplit(newurl)
        if target.hostname not in self.hosts or (self.https_only and target.scheme != "https"):
            raise InputError(f"{req.full_url}: the server redirects to {newurl}, which is not a known address; nothing was fetched")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(hosts: set[str | None], https_only: bool) -> Callable:
    return urllib.request.build_opener(_Redirects(hosts, https_only)).open


def _fetch(address: str, path: Path, name: str, opener: Callable, retry_after_s: tuple[float, ...]) -> None:
    """Fetch one file. Broken connections are retried, from where they broke; other failures end in InputError."""
    for pause in (*retry_after_s, None):
        try:
            _attempt(address, path, opener)
            return
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise InputError(
                    f"--download {name}: {address} does not exist; check the spelling of the category (as in "
                    f"Musical_Instruments; years {', '.join(map(str, FILES))})"
                ) from None
            if error.code < 500:
                raise InputError(f"--download {name}: {address} answers {error.code} {error.reason}") from None
            reason = f"the server answers {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        if pause is not None:
            time.sleep(pause)
    kept = _part(path).stat().st_size if _part(path).exists() else 0
    more = f"{kept:,} bytes are kept: run the same command again to resume" if kept else "check the network and run it again"
    raise InputError(f"--download {name}: {address} cannot be fetched ({reason}); {more}")


def _attempt(address: str, path: Path, opener: Callable) -> None:
    """One request, for what is missing; the file takes its name once its size is right."""
    part, note = _part(path), _note(path)
    validator = _noted(note, "validator")
    have = part.stat().st_size if part.exists() and validator else 0
    request = urllib.request.Request(address, headers={"User-Agent": "wide-deep-recommender", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    try:
        response = opener(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left after what we have, or the file is now shorter
            raise
        total = _total(error.headers)
        if total != have or total != _noted(note, "size"):
            part.unlink()
            raise ConnectionError("the file on the server has changed; it is fetched from the start") from None
    else:
        with response:
            total = _receive(response, part, note, have, path.name)
    size = part.stat().st_size
    if total is not None and size != total:
        if size > total:
            part.unlink()
        raise ConnectionError(f"{size:,} of {total:,} bytes arrived")
    part.replace(path)
    note.unlink(missing_ok=True)


def _receive(response: http.client.HTTPResponse, part: Path, note: Path, have: int, label: str) -> int | None:
    """Append to the part file, or start it anew where the server sends the whole file. Returns the size it should have."""
    resumed = response.status == 206
    if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
        part.unlink()
        raise ConnectionError("the server sent another range than was asked for")
    total = _total(response.headers) if resumed else _length(response.headers)
    if not resumed:
        have = 0
        etag = response.headers.get("ETag") or ""
        strong = etag if etag.startswith('"') else None  # If-Range admits no weak tag
        note.write_text(json.dumps({"validator": strong or response.headers.get("Last-Modified"), "size": total}))
    with (
        open(part, "ab" if resumed else "wb") as file,
        tqdm(total=total, initial=have, desc=label, unit="B", unit_scale=True, unit_divisor=1024, disable=None) as bar,
    ):
        while data := response.read1(CHUNK):
            file.write(data)
            bar.update(len(data))
    return total


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".part.json")


def _noted(note: Path, key: str) -> str | int | None:
    try:
        return json.loads(note.read_text())[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _length(headers: http.client.HTTPMessage) -> int | None:
    length = headers.get("Content-Length") or ""
    return int(length) if length.isdecimal() else None


def _total(headers: http.client.HTTPMessage) -> int | None:
    total = (headers.get("Content-Range") or "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None
