"""MyAnimeList: ratings, titles and users of three collections. Ratings are 1 to 10, without times.

    a 5,000-user sample   anime_ratings.dat         User_ID<tab>Anime_ID<tab>Feedback
                          anime_info.dat            anime_ids<tab>name<tab>genre<tab>type<tab>episodes<tab>rating<tab>members
    2016                  rating.csv                user_id,anime_id,rating     a rating of -1: watched, not rated
                          anime.csv                 anime_id,name,genre,type,episodes,rating,members
    2023                  users-score-2023.csv      user_id,Username,anime_id,Anime Title,rating
                          anime-dataset-2023.csv    anime_id,Name,..,Score,Genres,Synopsis,Type,..   (UNKNOWN: missing)
                          users-details-2023.csv    Mal ID,Username,Gender,Birthday,..

A user's mean score and the counts of titles are left out: they contain the ratings that are to be predicted.
"""

import csv
import html
import io
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa

from readers import ITEM, RATING, USER, Attributes, InputError, find_file, first_file, to_table
from readers.delimited import Layout, guess_delimiter, peek, read_rows, split_lines, whole_records
from readers.lines import Block

# A collection's ratings file, and the files of titles and of users that have the same ids. The sample is renumbered, and so is
# its anime_info.dat, though its documentation calls the ids those of the site: both files run from 1 to 7,390, and the site's
# rating of an id correlates with the mean rating of that id by the sample's users at 0.94 (titles with 20 ratings or more).
COLLECTIONS = {
    "anime_ratings.dat": ("anime_info.dat", ""),
    "users-score-2023.csv": ("anime-dataset-2023.csv", "users-details-2023.csv"),
    "rating.csv": ("anime.csv", ""),
}
_OF_2016 = {
    "title": "name", "category": "genre", "genres": "genre", "type": "type", "episodes": "episodes", "site_score": "rating",
    "site_members": "members",
}  # fmt: skip
_OF_2023 = {
    "title": "Name", "category": "Genres", "genres": "Genres", "type": "Type", "episodes": "Episodes", "source": "Source", "studio": "Studios",
    "site_score": "Score", "site_members": "Members", "site_rank": "Rank", "site_popularity": "Popularity", "site_favorites": "Favorites",
}  # fmt: skip
COLUMNS = {  # by file: the column of the ids, and where the attributes are
    "anime_info.dat": ("anime_ids", _OF_2016),
    "anime.csv": ("anime_id", _OF_2016),
    "anime-dataset-2023.csv": ("anime_id", _OF_2023),
    "users-details-2023.csv": ("Mal ID", {"gender": "Gender", "birth_decade": "Birthday"}),
}
QUOTED = re.compile(rb',"(?![^",\n]*"[,\n])(?:[^"\n]|"")*"(?=,)')  # a field inside a line that holds a comma or a quote


def find_ratings(path: Path) -> Path:
    """The ratings file of a folder; a file is itself."""
    return find_file(path, COLLECTIONS, "anime")


def read_ratings(path: Path) -> Iterator[pa.Table]:
    """Tables of `readers.ROWS` from a ratings file of any collection, told by its header."""
    sample, blocks = peek(path)
    delimiter = guess_delimiter(sample[0])
    names = [name.strip() for name in split_lines(sample[:1], delimiter)[0]]
    lower = [name.lower() for name in names]
    rating = "feedback" if "feedback" in lower else "rating"
    if not {"user_id", "anime_id", rating} <= set(lower):
        raise InputError(f"{path}: not anime ratings; expected a header with user_id, anime_id and rating, found {', '.join(names)[:200]}")
    positions = {USER: lower.index("user_id"), ITEM: lower.index("anime_id"), RATING: lower.index(rating)}
    if delimiter == ",":
        blocks = map(_without_titles, whole_records(blocks))
    yield from read_rows(blocks, Layout(delimiter, len(names), positions, True))


def _without_titles(numbered: Block) -> Block:
    """Blank the quoted titles: nearly every block of 2023 has some, and one quote puts a block on the slow way.

    Only where that leaves no quote in the block, which holds whole records: then each was part of a quoted field by the csv rules too.
    """
    line, block = numbered
    blanked = QUOTED.sub(b",", block) if b'"' in block else block
    return line, block if b'"' in blanked else blanked


def read_attributes(path: Path, users: set[str], items: set[str]) -> Attributes:
    """What the files beside the ratings say of these users and titles; `path` is the folder or the ratings file in it."""
    folder = path if path.is_dir() else path.parent
    # The collection of this ratings file, else (a folder, a file with another name) one with its ratings or at least attributes here.
    of_items, of_users = COLLECTIONS[
        min(COLLECTIONS, key=lambda name: (name != path.name, not (folder / name).is_file(), not first_file(folder, COLLECTIONS[name])))
    ]
    rejected: list[tuple[Path, int, str]] = []
    tables = [
        _read(folder / name, ids, kind, rejected) if (folder / name).is_file() else pd.DataFrame()
        for name, ids, kind in ((of_users, users, USER), (of_items, items, ITEM))
    ]
    return Attributes(*tables, rejected)


def _read(path: Path, ids: set[str], kind: str, rejected: list[tuple[Path, int, str]]) -> pd.DataFrame:
    """The attributes of these ids; the first row of an id counts, and columns that the file lacks are left out."""
    sample, blocks = peek(path)
    text = io.TextIOWrapper(io.BytesIO(b"".join(block for _, block in blocks)), "utf-8", "replace", newline="")
    delimiter = guess_delimiter(sample[0])
    # A quote means nothing in the tab separated file; in the others, quoted text may hold newlines.
    reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL)
    rows, line = {}, 1
    try:
        names = [name.strip() for name in next(reader)]
        ident, columns = COLUMNS[path.name]
        if ident not in names:
            raise InputError(f"{path}: no column {ident}; expected it in line 1, found {', '.join(names)[:200]}")
        key = names.index(ident)
        wanted = {name: names.index(column) for name, column in columns.items() if column in names}
        line += reader.line_num
        for fields in reader:
            if fields and len(fields) != len(names):
                rejected.append((path, line, f"{len(fields)} fields instead of {len(names)}"))
            elif fields and (raw := fields[key].strip()) in ids and raw not in rows:
                rows[raw] = tuple(ATTRIBUTES[name][1](fields[position]) for name, position in wanted.items())
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}: cannot be parsed from line {line} on ({error}); perhaps a quote is missing there") from None
    return to_table(rows, kind, {name: ATTRIBUTES[name][0] for name in wanted})


def _text(value: str) -> str | None:
    value = html.unescape(value).strip()
    return None if value.lower() in ("", "unknown") else value


def _list(value: str) -> list[str] | None:
    return [name.strip() for name in (_text(value) or "").split(",") if name.strip()] or None


def _first(value: str) -> str | None:
    return (_list(value) or [None])[0]


def _number(value: str, least: float = 0) -> float:
    try:
        number = float(value)
    except ValueError:
        return math.nan
    return number if least <= number < math.inf else math.nan


def _decade(value: str) -> str | None:
    date = re.match(r"(\d{3})\d-\d\d-\d\d", value.strip())
    return f"{date[1]}0s" if date else None


ATTRIBUTES: dict[str, tuple[str, Callable[[str], object]]] = {  # dtype, and how a field is read
    **dict.fromkeys(("title", "type", "source", "gender"), ("str", _text)),
    **dict.fromkeys(("category", "studio"), ("str", _first)),
    "genres": ("object", _list),
    "birth_decade": ("str", _decade),
    **dict.fromkeys(("site_members", "site_favorites"), ("float64", _number)),
    # These begin at 1: a zero says that there is none.
    **dict.fromkeys(("episodes", "site_score", "site_rank", "site_popularity"), ("float64", partial(_number, least=1))),
}
