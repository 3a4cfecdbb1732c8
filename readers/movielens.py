"""MovieLens: ratings, users and movies of the 100K, 1M, 10M and later releases.

    100K     u.data, u1.base, ..  196<tab>242<tab>3<tab>881250949     user, item, rating, time
             u.user               1|24|M|technician|85711             user, age in years, gender, occupation, zip code
             u.item               1|Toy Story (1995)|01-Jan-1995||http://..|0|0|0|1|..    one flag for each line of u.genre
    1M, 10M  ratings.dat          1::1193::5::978300760
             users.dat            1::F::1::10::48067                  user, gender, code of the age, code of the occupation, zip code
             movies.dat           1::Toy Story (1995)::Animation|Children's|Comedy
    later    ratings.csv          userId,movieId,rating,timestamp
             movies.csv           movieId,title,genres                11,"American President, The (1995)",Comedy|Drama|Romance

Ratings are told apart by their content, as split files have many names; the files of attributes by their name.
"""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from readers import ITEM, RATING, TIMESTAMP, USER, Attributes, InputError, find_file, first_file, to_table
from readers.delimited import Layout, peek, read_rows, split_lines
from readers.lines import read_blocks

HEADER = {USER: "userId", ITEM: "movieId", RATING: "rating", TIMESTAMP: "timestamp"}
BANDS = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}  # by lowest age: the codes of 1M
OCCUPATIONS = (  # by code, as in the documentation of 1M
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service", "doctor/health care",
    "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired", "sales/marketing", "scientist",
    "self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer",
)  # fmt: skip
GENRES = (  # the flags of u.item, for a folder without u.genre
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
YEAR = re.compile(r"\((\d{4})\)$")  # at the end of a title
USER_COLUMNS = dict.fromkeys(("gender", "age", "age_band", "occupation"), "str")
ITEM_COLUMNS = {"title": "str", "category": "str", "genres": "object", "release_year": "float64"}


def find_ratings(path: Path) -> Path:
    """The ratings file of a folder; a file is itself."""
    return find_file(path, ("u.data", "ratings.dat", "ratings.csv"), "MovieLens")


def read_ratings(path: Path) -> Iterator[pa.Table]:
    """Tables of `readers.ROWS` from a ratings file of any release."""
    sample, blocks = peek(path)
    names = [name.strip() for name in split_lines(sample[:1], ",")[0]]
    if set(HEADER.values()) <= set(names):
        yield from read_rows(blocks, Layout(",", len(names), {column: names.index(name) for column, name in HEADER.items()}, header=True))
        return
    fitting = {delimiter: sum(line.count(delimiter) == 3 for line in sample) for delimiter in ("::", "\t")}
    if not any(fitting.values()):
        raise InputError(
            f"{path}: not MovieLens ratings (line 1: {sample[0][:80]}); expected user, item, rating and time between tabs or '::', "
            f"or the header {','.join(HEADER.values())}"
        )
    if fitting["::"] > fitting["\t"]:  # pyarrow and the csv module know delimiters of one character only
        blocks = ((line, block.replace(b"::", b"\t")) for line, block in blocks)
    yield from read_rows(blocks, Layout("\t", 4, dict(zip(HEADER, range(4))), header=False))


def read_attributes(path: Path, users: set[str], items: set[str]) -> Attributes:
    """What the files beside the ratings say of these users and items; `path` is the folder or the ratings file in it.

    100K states ages in years, 1M only the band, so both become the bands of 1M. Age 30 lies inside a band: 25-34 of 1M counts
    as under 30 in `age_band`.
    """
    folder = path if path.is_dir() else path.parent
    genres = GENRES
    if (folder / "u.genre").is_file():
        genres = tuple(line.split("|")[0] for line in _text(folder / "u.genre").split("\n") if "|" in line)
    formats = {  # delimiter, number of fields, what makes a row of the fields
        "u.user": ("|", 5, lambda row: _user(row[2], _whole(row[1]), row[3])),
        "users.dat": ("::", 5, lambda row: _user(row[1], _whole(row[2], BANDS), OCCUPATIONS[_whole(row[3], range(len(OCCUPATIONS)))])),
        "u.item": ("|", 5 + len(genres), lambda row: _movie(row[1], [name for name, flag in zip(genres, row[5:]) if flag == "1"], row[2])),
        "movies.dat": ("::", 3, lambda row: _movie(row[1], row[2].split("|"))),
        "movies.csv": (",", 3, lambda row: _movie(row[1], row[2].split("|"))),
    }
    rejected: list[tuple[Path, int, str]] = []

    def read(names: tuple[str, ...], ids: set[str], kind: str, columns: dict[str, str]) -> pd.DataFrame:
        # Releases share ids and mean different movies by them: where several are in the folder, that of the ratings' suffix.
        file = first_file(folder, sorted(names, key=lambda name: Path(name).suffix != path.suffix))
        return to_table(_parse(file, ids, *formats[file.name], rejected), kind, columns) if file else pd.DataFrame()

    of_users = read(("u.user", "users.dat"), users, USER, USER_COLUMNS)
    return Attributes(of_users, read(("u.item", "movies.dat", "movies.csv"), items, ITEM, ITEM_COLUMNS), rejected)


def _text(path: Path) -> str:
    """100K and 1M are Latin-1, later releases UTF-8; accented Latin-1 letters are hardly ever valid UTF-8."""
    data = b"".join(block for _, block in read_blocks(path))
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _parse(
    path: Path, ids: set[str], delimiter: str, width: int, to_row: Callable[[list[str]], tuple], rejected: list[tuple[Path, int, str]]
) -> dict[str, tuple]:
    """Rows by id, the first line of an id counts; lines of other ids are skipped (so is the header of movies.csv)."""
    found = {}
    for line, text in enumerate(_text(path).split("\n"), 1):
        if not text.strip():
            continue
        fields = [field.strip() for field in (split_lines([text], ",")[0] if delimiter == "," else text.split(delimiter))]
        if len(fields) != width:
            rejected.append((path, line, f"{len(fields)} fields instead of {width}"))
        elif fields[0] in ids and fields[0] not in found:
            try:
                found[fields[0]] = to_row(fields)
            except ValueError as error:
                rejected.append((path, line, str(error)))
    return found


def _whole(text: str, codes: Collection[int] = range(1, 150)) -> int:
    """An age, or one of the codes."""
    if not text.isdecimal() or int(text) not in codes:
        raise ValueError(f"'{text}' is no age or code of this format")
    return int(text)


def _user(gender: str, age: int, occupation: str) -> tuple:
    band = BANDS[max(lowest for lowest in BANDS if lowest <= age)]
    return gender or None, band, "under 30" if age < 30 else "30 and over", occupation or None


def _movie(title: str, genres: list[str], date: str = "") -> tuple:
    genres = [name for name in genres if name and name != "(no genres listed)"]
    year = YEAR.search(title) or re.search(r"-(\d{4})$", date)
    return title or None, genres[0] if genres else None, genres or None, float(year[1]) if year else np.nan
