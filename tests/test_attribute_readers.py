"""MovieLens and anime readers against plain loops and the csv module: ratings, and what is known of users and items."""

import csv
import gzip
import io
import math
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import amazon_preprocessing as stage1
from readers import ROWS, Attributes, InputError, anime, formats, lines, movielens
from tests.conftest import DATA, needs_data


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_csv(path, rows, delimiter=","):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def rows_of(tables):
    table = pa.concat_tables(tables)
    assert table.schema == ROWS
    return table.to_pylist()


def short(tables):
    return [(row["line"], row["user"], row["item"], row["rating"], row["timestamp"], row["problem"]) for row in rows_of(tables)]


def records(table):
    """Plain dicts by id; NaN as None."""
    assert table.index.is_unique
    plain = {}
    for name, row in zip(table.index, table.to_dict("records")):
        plain[name] = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
    return plain


def one_line(function, *arguments):
    """The message of the InputError."""
    with pytest.raises(InputError) as failure:
        result = function(*arguments)
        list(result)
    assert "\n" not in str(failure.value)
    return str(failure.value)


# ------------------------------------------------------------------------------------------ MovieLens: ratings

RATINGS = [("1", "1193", 5.0, 978300760), ("1", "661", 3.5, 978302109), ("2", "122", 0.5, 838985046)]


@pytest.mark.parametrize("header, delimiter", [("", "\t"), ("", "::"), ("userId,movieId,rating,timestamp", ",")])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_movielens_ratings_are_told_by_their_content(tmp_path, header, delimiter, newline, pack):
    text = [header] * bool(header) + [delimiter.join(map(str, row)) for row in RATINGS]
    path = write(tmp_path / "any.name", pack(newline.join(text).encode()))
    first = 2 if header else 1
    assert short(movielens.read_ratings(path)) == [(line, *row, None) for line, row in enumerate(RATINGS, first)]


def test_movielens_header_in_another_order(tmp_path):
    path = write(tmp_path / "r.csv", '"timestamp",rating,tag,movieId,userId\n838985046,0.5,"a,b",122,2\n')
    assert short(movielens.read_ratings(path)) == [(2, *RATINGS[2], None)]


FIELD = st.text(st.sampled_from("0123456789.x "), max_size=5) | st.integers(1, 9).map(str)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(FIELD, min_size=4, max_size=4) | st.lists(FIELD, min_size=1, max_size=6), max_size=8), st.sampled_from(["::", "\t"]))
def test_movielens_ratings_agree_with_a_plain_loop(tmp_path_factory, table, delimiter):
    table = [["1", "2", "3", "4"], *table]
    path = write(tmp_path_factory.getbasetemp() / "property.dat", "".join(delimiter.join(fields) + "\n" for fields in table))
    want = []
    for line, fields in enumerate(table, 1):
        user, item, *rest = [field.strip() or None for field in fields] if len(fields) == 4 else [None] * 4
        if len(fields) == 1 and fields[0] == "":
            continue
        rating, time = (float(value) if re.fullmatch(r"\d+\.?\d*|\.\d+", value or "") else None for value in rest)
        problem = None if len(fields) == 4 else f"{len(fields)} fields instead of 4"
        want.append((line, user, item, rating, None if time is None else int(time), problem))
    assert short(movielens.read_ratings(path)) == want


@pytest.mark.parametrize("text", ["1,2,3,4\n", "userId,movieId,rating\n1,2,3\n", "1 2 3 4\n", "1::2::3\n", "{}\n", "\0\1\2"])
def test_other_files_are_no_movielens_ratings(tmp_path, text):
    assert "r: not MovieLens ratings (line 1: " in one_line(movielens.read_ratings, write(tmp_path / "r", text))


@pytest.mark.parametrize("reader, names", [
    (movielens, ["u.data", "ratings.dat", "ratings.csv"]),
    (anime, ["anime_ratings.dat", "users-score-2023.csv", "rating.csv"]),
])  # fmt: skip
def test_a_folder_becomes_its_ratings_file(tmp_path, reader, names):
    message = one_line(reader.find_ratings, tmp_path)
    assert message.startswith(f"{tmp_path}: no ") and all(name in message for name in names)
    for name in reversed(names):
        (tmp_path / name).touch()
        assert reader.find_ratings(tmp_path) == tmp_path / name
    assert reader.find_ratings(tmp_path / "nothing") == tmp_path / "nothing"
    assert "cannot be read" in one_line(reader.read_ratings, tmp_path / "nothing")
    assert "the file is empty" in one_line(reader.read_ratings, tmp_path / names[0])


# --------------------------------------------------------------------------------------- MovieLens: attributes


def test_attributes_of_100k(tmp_path):
    flags = dict.fromkeys(range(19), "0")
    movies = [
        "|".join(["1", "Toy Story (1995)", "01-Jan-1994", "", "http://x", *(flags | {3: "1", 4: "1"}).values()]),
        "|".join(["2", "C\u00e9r\u00e9monie, La (1995) (V)", "20-Dec-1996", "", "", *(flags | {18: "1"}).values()]),
        "|".join(["267", "unknown", "", "", "", *(flags | {0: "1"}).values()]),
        "|".join(["4", "Nothing", "", "", "", *flags.values()]),
        "5|Too short (1990)|x",
        "|".join(["1", "Again (1990)", "", "", "", *flags.values()]),
    ]
    write(tmp_path / "u.item", "\n".join(movies).encode("latin-1"))
    write(tmp_path / "u.user", "1|24|M|technician|85711\r\n2|30|F||x\n3|old|M|writer|1\n4|7\n\n5|old|M|writer|1\n6|17||none|1\n")
    found = movielens.read_attributes(tmp_path / "u1.base", {"1", "2", "3", "4", "6"}, {"1", "2", "267", "4", "99"})
    assert found.rejected == [
        (tmp_path / "u.user", 3, "'old' is no age or code of this format"), (tmp_path / "u.user", 4, "2 fields instead of 5"),
        (tmp_path / "u.item", 5, "3 fields instead of 24"),
    ]  # fmt: skip
    assert records(found.users) == {
        "1": {"gender": "M", "age": "18-24", "age_band": "under 30", "occupation": "technician"},
        "2": {"gender": "F", "age": "25-34", "age_band": "30 and over", "occupation": None},
        "6": {"gender": None, "age": "under 18", "age_band": "under 30", "occupation": "none"},
    }
    assert records(found.items) == {
        "1": {"title": "Toy Story (1995)", "category": "Animation", "genres": ["Animation", "Children's"], "release_year": 1995},
        "2": {"title": "C\u00e9r\u00e9monie, La (1995) (V)", "category": "Western", "genres": ["Western"], "release_year": 1996},
        "267": {"title": "unknown", "category": "unknown", "genres": ["unknown"], "release_year": None},
        "4": {"title": "Nothing", "category": None, "genres": None, "release_year": None},
    }
    write(tmp_path / "u.genre", "Noise|0\nQuiet|1\n\n")
    write(tmp_path / "u.item", "1|A|01-Jan-1994|||0|1\n")
    assert records(movielens.read_attributes(tmp_path, set(), {"1"}).items)["1"]["genres"] == ["Quiet"]


def test_attributes_of_1m(tmp_path):
    write(tmp_path / "movies.dat", "1::Caf\u00e9: The (Movie) (1999)::Drama|War\n2::X::\n3::Y\n".encode("latin-1"))
    write(tmp_path / "users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::20::1\n4::M::26::1::1\n5::M::25::21::1\n")
    found = movielens.read_attributes(tmp_path, set("12345"), set("123"))
    assert [(user, *row.values()) for user, row in records(found.users).items()] == [
        ("1", "F", "under 18", "under 30", "K-12 student"),
        ("2", "M", "56+", "30 and over", "self-employed"),
        ("3", "M", "25-34", "under 30", "writer"),
    ]
    assert [(item, *row.values()) for item, row in records(found.items).items()] == [
        ("1", "Caf\u00e9: The (Movie) (1999)", "Drama", ["Drama", "War"], 1999), ("2", "X", None, None, None),
    ]  # fmt: skip
    assert [(path.name, line) for path, line, _ in found.rejected] == [("users.dat", 4), ("users.dat", 5), ("movies.dat", 3)]


def test_attributes_of_later_releases(tmp_path):
    movies = [("1", 'American "President", The (1995)', "Comedy|Drama"), ("2", "\u00c9t\u00e9", "(no genres listed)"), ("3", "Z (2001)"), ("4", "W (1)", "War")]
    write_csv(tmp_path / "movies.csv", [("movieId", "title", "genres"), *movies])
    found = movielens.read_attributes(tmp_path / "ratings.csv", {"1"}, set("1234"))
    assert found.users.empty and found.rejected == [(tmp_path / "movies.csv", 4, "2 fields instead of 3")]
    assert [(item, *row.values()) for item, row in records(found.items).items()] == [
        ("1", 'American "President", The (1995)', "Comedy", ["Comedy", "Drama"], 1995),
        ("2", "\u00c9t\u00e9", None, None, None),
        ("4", "W (1)", "War", ["War"], None),
    ]


def test_movielens_titles_of_10m_are_utf_8(tmp_path):
    write(tmp_path / "movies.dat", "1::Am\u00e9lie (2001)::Comedy\n")
    assert records(movielens.read_attributes(tmp_path, set(), {"1"}).items)["1"]["title"] == "Am\u00e9lie (2001)"


@pytest.mark.parametrize("ratings, title", [("u.data", "of 100K"), ("ratings.dat", "of 1M"), ("ratings.csv", "of later")])
def test_of_several_releases_in_a_folder_that_of_the_ratings(tmp_path, ratings, title):
    write(tmp_path / "u.item", "1|of 100K|" + "|0" * 21)
    write(tmp_path / "movies.dat", "1::of 1M::War")
    write(tmp_path / "movies.csv", "movieId,title,genres\n1,of later,War\n")
    assert records(movielens.read_attributes(tmp_path / ratings, set(), {"1"}).items)["1"]["title"] == title


def test_every_age_has_its_band(tmp_path):
    tops = {17: "under 18", 24: "18-24", 34: "25-34", 44: "35-44", 49: "45-49", 55: "50-55", 999: "56+"}
    write(tmp_path / "u.user", "".join(f"{age}|{age}|M|x|1\n" for age in range(1, 120)))
    found = movielens.read_attributes(tmp_path, {str(age) for age in range(120)}, set())
    assert found.users["age"].tolist() == [next(name for top, name in tops.items() if age <= top) for age in range(1, 120)]
    assert found.users["age_band"].tolist() == ["under 30" if age < 30 else "30 and over" for age in range(1, 120)]


@pytest.mark.parametrize("reader", [movielens, anime])
def test_without_attribute_files_nothing_is_known(tmp_path, reader):
    for path in (tmp_path, tmp_path / "train.csv"):
        found = reader.read_attributes(path, {"1"}, {"1"})
        assert isinstance(found, Attributes) and found.users.empty and found.items.empty and found.rejected == []


def test_columns_keep_their_type_where_no_id_is_known(tmp_path):
    write(tmp_path / "u.user", "1|24|M|technician|85711\n")
    write(tmp_path / "u.item", "1|A|" + "|0" * 21)
    for ids in ({"1"}, set()):
        found = movielens.read_attributes(tmp_path, ids, ids)
        assert len(found.users) == len(found.items) == len(ids)
        assert found.users.dtypes.astype(str).tolist() == ["str"] * 4
        assert found.items.dtypes.astype(str).tolist() == ["str", "str", "object", "float64"]
        assert found.users.index.dtype == found.items.index.dtype == "str"


# ---------------------------------------------------------------------------------------------- anime: ratings


def test_anime_ratings_of_three_collections(tmp_path):
    sample = write(tmp_path / "a", "User_ID\tAnime_ID\tFeedback\n1\t12\t8\n2\t7\n")
    of_2016 = write(tmp_path / "b", "user_id,anime_id,rating\n1,12,8\n1,7,-1\n")
    of_2023 = write_csv(tmp_path / "c", [
        ("user_id", "Username", "anime_id", "Anime Title", "rating"),
        (1, "Xinil", 12, "One Piece", 8), (1, "Xinil", 48, '.hack, "Sign"', 7), (2, "x", 5, "a\nb", 1), (1,),
    ])  # fmt: skip
    assert short(anime.read_ratings(sample)) == [(2, "1", "12", 8.0, None, None), (3, None, None, None, None, "2 fields instead of 3")]
    assert short(anime.read_ratings(of_2016)) == [(2, "1", "12", 8.0, None, None), (3, "1", "7", -1.0, None, None)]
    assert short(anime.read_ratings(of_2023)) == [
        (2, "1", "12", 8.0, None, None), (3, "1", "48", 7.0, None, None), (4, "2", "5", 1.0, None, None),
        (6, None, None, None, None, "1 fields instead of 5"),
    ]  # fmt: skip


TITLE = st.text(st.sampled_from('ab",\n5\u00e9'), max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 99), TITLE, st.integers(1, 99), TITLE, st.integers(1, 10)), max_size=9), st.integers(20, 200))
@example([(1, "", 1, "", 1), (1, "555\n5\u00e9,", 1, ',5555\n"', 1)], 20)  # a block begins inside quotes and reads as the inverse of them
def test_anime_ratings_agree_with_the_csv_module(tmp_path_factory, table, size):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("user_id", "Username", "anime_id", "Anime Title", "rating"), *table])
    path = write(tmp_path_factory.getbasetemp() / "property.gz", gzip.compress(text.getvalue().encode()))
    reader = csv.DictReader(io.StringIO(text.getvalue(), newline=""))
    want, start = [], 1
    for row in reader:
        want.append((start + 1, row["user_id"], row["anime_id"], float(row["rating"]), None, None))
        start = reader.line_num
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK", size)  # the ends of blocks fall anywhere, also inside quotes
        assert short(anime.read_ratings(path)) == want


@pytest.mark.parametrize("text, changed", [
    ('1,u,2,"a, b",5\n1,u,2,c,5\n', '1,u,2,,5\n1,u,2,c,5\n'),
    ('1,u,2,"a ""b"", c",5\n2,"x,",3,"""",4\n', "1,u,2,,5\n2,,3,,4\n"),
    ('1,u,"2",c,5\n', None), ('"1",u,2,"a,b",5\n', None), ('1,u,2,"a,\nb",5\n', None), ('1,u,2,a" b,"5\n', None),
])  # fmt: skip
def test_titles_are_blanked_only_where_no_quote_remains(text, changed):
    assert anime._without_titles((3, text.encode())) == (3, (text if changed is None else changed).encode())


@pytest.mark.parametrize("header", ["user,anime,rating", "1,20,8", "User_ID\tAnime_ID", "{}"])
def test_other_files_are_no_anime_ratings(tmp_path, header):
    message = one_line(anime.read_ratings, write(tmp_path / "r", header + "\n"))
    assert "r: not anime ratings; expected a header with user_id" in message and re.split("[,\t]", header)[-1] in message


# ------------------------------------------------------------------------------------------- anime: attributes

OF_2016 = ["name", "genre", "type", "episodes", "rating", "members"]
TITLES_2016 = [
    ("12", "Gintama&#039; \u00b0", "Action, Sci-Fi", "TV", "51", "9.25", "114262"),
    ("7", '"Quoted" one', "", "", "Unknown", "", "0"),
    ("8", "Not asked for", "Drama", "TV", "1", "5", "6"),
]
NAMES_2016 = ["title", "category", "genres", "type", "episodes", "site_score", "site_members"]
WANT_2016 = {
    "12": dict(zip(NAMES_2016, ["Gintama' \u00b0", "Action", ["Action", "Sci-Fi"], "TV", 51, 9.25, 114262])),
    "7": dict(zip(NAMES_2016, ['"Quoted" one', None, None, None, None, None, 0])),
}


def test_titles_of_the_sample_and_of_2016(tmp_path):
    tabs = ["\t".join(row) for row in [("anime_ids", *OF_2016), *TITLES_2016, ("9", "short"), TITLES_2016[0]]]
    sample = write(tmp_path / "anime_info.dat", "\n".join(tabs))
    found = anime.read_attributes(tmp_path, {"1"}, {"12", "7", "9", "12.0"})
    assert records(found.items) == WANT_2016 and found.users.empty and found.rejected == [(sample, 5, "2 fields instead of 7")]
    write_csv(tmp_path / "anime.csv", [("anime_id", *OF_2016), *TITLES_2016[:1]])
    assert len(anime.read_attributes(tmp_path / "rating.csv", set(), {"12", "7"}).items) == 1  # its own file, not the first in the folder
    assert len(anime.read_attributes(tmp_path / "train.csv", set(), {"12", "7"}).items) == 2
    (tmp_path / "rating.csv").touch()
    assert len(anime.read_attributes(tmp_path, set(), {"12", "7"}).items) == 1
    assert len(anime.read_attributes(tmp_path / "train.csv", set(), {"12", "7"}).items) == 1
    write_csv(tmp_path / "anime.csv", [("anime_id", *OF_2016), *TITLES_2016])
    assert records(anime.read_attributes(tmp_path, set(), {"12", "7"}).items) == WANT_2016


HEADER_2023 = [
    "anime_id", "Name", "English name", "Other name", "Score", "Genres", "Synopsis", "Type", "Episodes", "Aired", "Premiered", "Status",
    "Producers", "Licensors", "Studios", "Source", "Duration", "Rating", "Rank", "Popularity", "Favorites", "Scored By", "Members", "Image URL",
]  # fmt: skip
HEADER_USERS = [
    "Mal ID", "Username", "Gender", "Birthday", "Location", "Joined", "Days Watched", "Mean Score", "Watching", "Completed", "On Hold", "Dropped",
    "Plan to Watch", "Total Entries", "Rewatched", "Episodes Watched",
]  # fmt: skip


def test_titles_and_users_of_2023(tmp_path):
    known = {
        "anime_id": "1", "Name": "Cowboy, Bebop", "Score": "8.75", "Genres": "Action, Award Winning", "Synopsis": 'It is "2071",\n\nin space,\nfar away.',
        "Type": "TV", "Episodes": "26.0", "Studios": "Sunrise, Bones", "Source": "Original", "Rating": "R - 17+", "Rank": "41.0", "Popularity": "43",
        "Favorites": "78525", "Members": "1771505",
    }  # fmt: skip
    zero = dict.fromkeys(("Rank", "Popularity", "Favorites", "Members"), "0")
    titles = [[row.get(name, "UNKNOWN") for name in HEADER_2023] for row in (known, {"anime_id": "5"} | zero, known | {"anime_id": "6"})]
    write_csv(tmp_path / "anime-dataset-2023.csv", [HEADER_2023, titles[0], ["broken"], *titles[1:]])
    users = [["1", "Xinil", "Male", "1985-03-04T00:00:00+00:00"], ["3", "a,b", "", ""], ["4", "c", "Non-Binary", "soon"], ["9", "d", "Female", ""]]
    write_csv(tmp_path / "users-details-2023.csv", [HEADER_USERS, *(user + ["7.37"] * 12 for user in users)])
    found = anime.read_attributes(tmp_path / "users-score-2023.csv", {"1", "3", "4"}, {"1", "5"})
    assert found.rejected == [(tmp_path / "anime-dataset-2023.csv", 6, "1 fields instead of 24")]
    assert records(found.users) == {
        "1": {"gender": "Male", "birth_decade": "1980s"}, "3": {"gender": None, "birth_decade": None}, "4": {"gender": "Non-Binary", "birth_decade": None},
    }  # fmt: skip
    names = ["title", "category", "genres", "type", "episodes", "source", "studio", "site_score"]
    assert records(found.items) == {
        "1": dict(zip(names, ["Cowboy, Bebop", "Action", ["Action", "Award Winning"], "TV", 26, "Original", "Sunrise", 8.75]))
        | {"site_members": 1771505, "site_rank": 41, "site_popularity": 43, "site_favorites": 78525},
        "5": dict.fromkeys(names) | {"site_members": 0, "site_rank": None, "site_popularity": None, "site_favorites": 0},
    }
    assert found.items.dtypes.astype(str).tolist() == ["str", "str", "object", "str", "float64", "str", "str", *["float64"] * 5]


@pytest.mark.parametrize("name, text, match", [
    ("anime.csv", "id,title\n1,x\n", "no column anime_id; expected it in line 1, found id, title"),
    ("anime_info.dat", "1\tx\n", "no column anime_ids"),
    ("users-details-2023.csv", b"\x89PNG\0\0\n\0", "no column Mal ID"),
    ("anime-dataset-2023.csv", "", "the file is empty"),
    ("anime.csv", 'anime_id,name\n1,x\n2,"' + "x\n" * 100_000, r"cannot be parsed from line 3 on \(field larger.*a quote is missing"),
])  # fmt: skip
def test_attribute_files_that_cannot_be_parsed(tmp_path, name, text, match):
    write(tmp_path / name, text)
    assert re.search(rf"{re.escape(name)}: {match}", one_line(anime.read_attributes, tmp_path, {"1"}, {"1"}))


# ------------------------------------------------------------------------------------------------- real files


def frame(reader, path):
    return pa.concat_tables(reader.read_ratings(reader.find_ratings(path))).to_pandas()


@needs_data
@pytest.mark.parametrize("reader, name, rows, users, items, top", [
    (movielens, "ml-100k", 100_000, 943, 1682, 5), (movielens, "ml-100k/u1.base", 80_000, 943, 1650, 5),
    (movielens, "ml-100k/u1.test", 20_000, 459, 1410, 5), (movielens, "ml-1m", 1_000_209, 6040, 3706, 5),
    (anime, "anime", 419_943, 4714, 7157, 10),
])  # fmt: skip
def test_real_ratings(reader, name, rows, users, items, top):
    table = frame(reader, DATA / name)
    assert (len(table), table.user.nunique(), table.item.nunique()) == (rows, users, items)
    assert table.problem.isna().all() and table.rating.between(1, top).all() and (table.rating % 1 == 0).all()
    assert table.timestamp.isna().all() if reader is anime else table.timestamp.between(8e8, 1.1e9).all()
    width = 3 if reader is anime else 4
    words = reader.find_ratings(DATA / name).read_text().replace("::", " ").split()
    of_users, of_items, ratings = (words[column::width][len(words) // width - rows :] for column in range(3))  # without the header
    assert table.user.tolist() == of_users and table.item.tolist() == of_items and table.rating.tolist() == list(map(float, ratings))


@needs_data
@pytest.mark.parametrize("name, users, movies, file, delimiter", [("ml-100k", 943, 1682, "u.item", "|"), ("ml-1m", 6040, 3883, "movies.dat", "::")])
def test_real_movielens_attributes(name, users, movies, file, delimiter):
    everyone = {str(number) for number in range(7000)}
    found = movielens.read_attributes(DATA / name, everyone, everyone)
    assert (len(found.users), len(found.items), found.rejected) == (users, movies, [])
    assert found.users.notna().all(axis=None) and found.items.title.notna().all()
    fields = [line.split(delimiter) for line in (DATA / name / file).read_bytes().decode("latin-1").split("\n") if line]
    assert found.items.title.tolist() == [row[1].strip() for row in fields]
    if delimiter == "::":
        assert found.items.genres.tolist() == [row[2].split("|") for row in fields]
    else:
        assert [len(genres) for genres in found.items.genres] == [row[5:].count("1") for row in fields]
    years = [float(year[1]) if (year := re.search(r"\((\d{4})\)(?: \(V\))?$", row[1].strip())) else np.nan for row in fields]
    differ = (found.items.release_year != years) & ~np.isnan(years)
    assert differ.sum() == 0 and found.items.release_year.isna().sum() == (1 if name == "ml-100k" else 0)
    assert found.items.category.equals(found.items.genres.str[0].astype("str"))


@needs_data
def test_real_anime_attributes_are_of_the_renumbered_ids():
    """The site's rating of an id and the users' mean rating of the same id agree: the ids of both files mean the same titles."""
    table = frame(anime, DATA / "anime")
    found = anime.read_attributes(DATA / "anime", set(table.user), set(table.item))
    assert len(found.items) == 7157 and found.users.empty and not found.rejected
    assert found.items.title[["82", "1723"]].tolist() == ["Fullmetal Alchemist: Brotherhood", "Kimi no Na wa."]
    assert found.items.genres.isna().sum() == 2 and not found.items.title.str.contains("&#").any()
    ratings = table.groupby("item").rating.agg(["mean", "size"]).join(found.items)
    assert ratings[ratings["size"] >= 20][["mean", "site_score"]].corr().iloc[0, 1] > 0.9
    assert ratings[["size", "site_members"]].corr("spearman").iloc[0, 1] > 0.9


def test_the_further_data_set_of_the_readme(tmp_path, monkeypatch):
    """The README's reader, as it stands there, through all of preprocessing."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    reader, entry = (readme.split(f"<!-- {name} -->\n```python\n")[1].split("```")[0] for name in ("reader", "format"))
    assert len(reader.splitlines()) <= 20
    module = ModuleType("goodbooks")
    exec(reader, module.__dict__)
    monkeypatch.setitem(formats.FORMATS, "goodbooks", None)
    exec(entry, {"FORMATS": formats.FORMATS, "Format": formats.Format, "goodbooks": module})
    rated = [f"{u},{b},{1 + (u + b) % 5}\n" for u in range(1, 13) for b in range(1, 9) if u % b != 3]
    (tmp_path / "ratings.csv").write_text("user_id,book_id,rating\n" + "".join(rated))
    (tmp_path / "books.csv").write_text("book_id,authors,original_publication_year,title,language_code\n" + "".join(
        f'{b},"Ann A., Bob {b % 2}",{1990 + b},"Book {b}, vol. 1",{"eng" if b > 2 else ""}\n' for b in range(1, 11)))
    stage1.main(["--dataset", "goodbooks", "--input", str(tmp_path / "ratings.csv"), "--split", "random", "--output-dir", str(tmp_path / "data")])
    found = stage1.load_dataset(tmp_path / "data")
    items = found.items.set_index("item")
    assert len(items) == 9 and items["title"]["3"] == "Book 3, vol. 1" and items["item_year"]["8"] == 1998
    assert [found.vocabularies["item_language"][code] for code in items["item_language"][["1", "5"]]] == [stage1.UNKNOWN, "eng"]
    assert items.loc["3", ["item_authors=Ann A.", "item_authors=Bob 0", "item_authors=Bob 1"]].tolist() == [1, 0, 1]
