"""The readers against the json and csv modules, line by line."""

import csv
import gzip
import json
import math
import re
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from readers import METADATA, ROWS, Codes, Columns, InputError, amazon, formats, lines
from readers.amazon import read_metadata, read_ratings, read_reviews
from readers.delimited import parse_columns, read_delimited
from readers.formats import repeated

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "amazon"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the research data sets are not here (../shared/data)")

R2014 = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1393545600, "reviewText": "so  good", "summary": "s"}
R2023 = {"user_id": "AE", "asin": "B2", "parent_asin": "BP", "rating": 3.0, "timestamp": 1588687728923, "text": "", "title": "t"}


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows_of(tables):
    table = pa.concat_tables(tables)
    assert table.schema == ROWS
    return table.to_pylist()


def reviews(path, text):
    return rows_of(read_reviews(write(path, text)))


# ---------------------------------------------------------------------------------------------- reviews


def test_both_eras_in_one_file(tmp_path):
    first, second, third = reviews(tmp_path / "r.json", "\n".join(map(json.dumps, [R2014, R2023, {"asin": "B3"}])))
    assert list(first.values()) == ["A1", "B1", 5.0, 1393545600, 8, 2, 1, None]
    assert list(second.values()) == ["AE", "BP", 3.0, 1588687728, 0, 0, 2, None]
    assert list(third.values()) == [None, "B3", None, None, None, None, 3, None]


def test_bad_lines_cost_one_row_each_and_blank_lines_none(tmp_path):
    good = json.dumps(R2014).encode()
    text = b"\n".join([good, b"", b"{broken", b"  ", b"[1, 2]", b'{"asin": "\xff"}', b'{"asin": "A"} {"asin": "B"}', b"[" * 9999, good])
    rows = reviews(tmp_path / "r", text + b"\r\n")
    assert [(row["line"], row["problem"]) for row in rows] == [
        (1, None), (3, "not JSON"), (5, "not an object"), (6, "not UTF-8"), (7, "not JSON"), (8, "not JSON"), (9, None),
    ]  # fmt: skip
    assert rows[0] | {"line": 9} == rows[-1]
    assert all(row["user"] is row["rating"] is row["review_length"] is None for row in rows[1:-1])


def test_a_bad_line_does_not_disturb_a_large_file(tmp_path):
    texts = [json.dumps(R2014 | {"reviewerID": f"A{i}", "reviewText": "x y " * (i % 90)}) for i in range(6000)]
    texts[4321] = "{"
    rows = reviews(tmp_path / "r", "\n".join(texts))
    assert [row["line"] for row in rows] == list(range(1, 6001))
    assert [row["line"] for row in rows if row["problem"]] == [4322]
    assert all(row["user"] == f"A{i}" and row["word_count"] == 2 * (i % 90) for i, row in enumerate(rows) if i != 4321)


def test_values_that_cannot_be_used_are_null(tmp_path):
    values = [("overall", v) for v in ("5.0", "x", True, None, math.nan, math.inf, [5])]
    values += [("unixReviewTime", v) for v in (10**30, 1e9, "1393545600", 1.5, None)] + [("reviewerID", v) for v in ("", 12, None, {}, " ", " a ")]
    rows = reviews(tmp_path / "r", "\n".join(json.dumps(R2014 | {name: value}) for name, value in values))
    assert [row["rating"] for row in rows[:7]] == [5.0, None, None, None, None, None, None]
    assert [row["timestamp"] for row in rows[7:12]] == [None, 10**9, 1393545600, 1, None]
    assert [row["user"] for row in rows[12:]] == [None, "12", None, None, None, "a"]


STRINGS = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["\ud800", "a\udc00", "\u3000x\u00a0y", "5.0", "a\nb\r\n c\t"]
)
NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([10**400, -0.0, 1e400, 1588687728923])
VALUES = st.none() | st.booleans() | STRINGS | NUMBERS | st.lists(st.integers(), max_size=2) | st.just({"a": {"b": []}})
LIKELY = {
    **dict.fromkeys(("reviewerID", "user_id", "parent_asin", "asin", "reviewText", "text", "summary"), STRINGS | st.none()),
    **dict.fromkeys(("overall", "rating"), st.integers(0, 6) | st.floats() | st.none()),
    **dict.fromkeys(("unixReviewTime", "timestamp"), st.integers(-(2**63), 2**63 - 1) | st.none()),
}
RECORDS = st.fixed_dictionaries({}, optional=LIKELY) | st.dictionaries(st.sampled_from(list(LIKELY)) | STRINGS, VALUES, max_size=5)
JSON_LINES = st.builds(lambda record, ascii: json.dumps(record, ensure_ascii=ascii), RECORDS, st.booleans())
ODD_LINES = st.sampled_from(["", " ", "{}", '{"asin":"a","asin":"b"}', '{"overall":Inf}', '{"a":1}{"b":2}', '{"a":', "1}", "{} ", "null"])


def expected(number, text):
    """One row by the json module alone."""
    row = dict.fromkeys(ROWS.names) | {"line": number}
    try:
        record = json.loads(text)
    except ValueError:
        return row | {"problem": "not JSON"}
    if not isinstance(record, dict):
        return row | {"problem": "not an object"}
    cells = {field.name: amazon.CELL[field.type](record.get(field.name)) for field in amazon.RAW}

    def first(*names):
        return next((cells[name] for name in names if cells[name] is not None), None)

    review = first("reviewText", "text")
    seconds = cells["timestamp"] // 1000 if cells["timestamp"] is not None else None
    return row | {
        "user": (first("reviewerID", "user_id") or "").strip(" \t\r\n") or None,
        "item": (first("parent_asin", "asin") or "").strip(" \t\r\n") or None,
        "rating": first("overall", "rating"),
        "timestamp": seconds if cells["unixReviewTime"] is None else cells["unixReviewTime"],
        "review_length": None if review is None else len(review),
        "word_count": None if review is None else len(re.findall("[^\x00-\x20]+", review)),
    }


@settings(max_examples=150, deadline=None)
@given(st.lists(JSON_LINES | JSON_LINES | ODD_LINES, max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_both_ways_of_parsing_agree_with_the_json_module(texts, newline):
    block = "".join(text + newline for text in texts).encode("utf-8", "replace")
    want = [expected(n, text) for n, text in enumerate(block.decode().split("\n"), 7) if text.strip()]
    slow = amazon._to_rows(*amazon._parse_slowly(7, block)).to_pylist()
    assert slow == want
    if block:
        assert amazon._parse_block(7, block).to_pylist() == want


def test_clean_lines_take_the_fast_way():
    block = "".join(json.dumps(record) + "\n" for record in (R2014, R2023)).encode()
    assert amazon._parse_fast(block) is not None
    assert amazon._parse_fast(block.replace(b"\n", b"\r\n")) is None  # blank before the newline: left to the other way


# ------------------------------------------------------------------------------------------- files of lines


def test_gzip_is_told_by_its_bytes_and_may_have_members_and_padding(tmp_path):
    line = json.dumps(R2014).encode() + b"\n"
    plain = write(tmp_path / "plain.gz", b"\xef\xbb\xbf" + line * 3)
    zipped = write(tmp_path / "zipped.json", gzip.compress(line) + gzip.compress(line * 2) + b"\0" * 10)
    assert rows_of(read_reviews(plain)) == rows_of(read_reviews(zipped))


def test_blocks_are_whole_lines_with_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK", 50)
    text = b"".join(b"%d\n" % (i**5) for i in range(100)) + b"no newline"
    blocks = list(lines.read_blocks(write(tmp_path / "x", gzip.compress(text))))
    assert b"".join(block for _, block in blocks) == text + b"\n" and all(block.endswith(b"\n") for _, block in blocks)
    assert [line for line, _ in blocks] == [1 + text[: text.index(block[:-1])].count(b"\n") for _, block in blocks]


@pytest.mark.parametrize("cut, match", [(-40, "ends early after line"), (-5, "ends early"), (None, "is damaged")])
def test_incomplete_or_damaged_gzip(tmp_path, cut, match):
    data = bytearray(gzip.compress(b"".join(json.dumps(R2014 | {"asin": str(i**9)}).encode() + b"\n" for i in range(2000))))
    if cut is None:
        data[len(data) // 2 : len(data) // 2 + 50] = bytes(50)
    path = write(tmp_path / "r.gz", bytes(data[:cut]))
    with pytest.raises(InputError, match=rf"r\.gz: the gzip stream {match}.*fetch it again") as failure:
        list(read_reviews(path))
    assert "\n" not in str(failure.value)


def test_missing_file_directory_and_a_line_without_end(tmp_path, monkeypatch):
    for read in (read_reviews, read_ratings, lambda path: iter(read_metadata(path)), lambda path: read_delimited(path, {})):
        with pytest.raises(InputError, match="nothing: cannot be read"):
            list(read(tmp_path / "nothing"))
        with pytest.raises(InputError, match="cannot be read"):
            list(read(tmp_path))
    monkeypatch.setattr(lines, "LONGEST_LINE", 1000)
    monkeypatch.setattr(lines, "BLOCK", 1000)
    with pytest.raises(InputError, match="line 2 is longer"):
        list(read_reviews(write(tmp_path / "x", b"{}\n" + b"[" * 5000)))


# ------------------------------------------------------------------------------------------- ratings, delimited

USER = "A1B2C3D4E5F6G"


def ratings(path, text):
    return rows_of(read_ratings(write(path, text)))


def test_ratings_of_three_eras(tmp_path):
    of_2014 = ratings(tmp_path / "a", f"{USER},B00004Z5M1,5.0,1365811200\n" * 3)
    of_2018 = ratings(tmp_path / "b", gzip.compress(f"B00004Z5M1,{USER},5.0,1365811200\n".encode() * 3))
    of_2023 = ratings(tmp_path / "c", "user_id,parent_asin,rating,timestamp,history\n" + f"{USER},B00004Z5M1,5.0,1365811200999,B1 B2\n" * 3)
    assert of_2014 == of_2018 == [row | {"line": row["line"] - 1} for row in of_2023]
    assert of_2014[0] == dict(zip(ROWS.names, [USER, "B00004Z5M1", 5.0, 1365811200, None, None, 1, None]))


def test_malformed_ratings(tmp_path):
    rows = ratings(tmp_path / "a", f"{USER},B00004Z5M1,5.0,1365811200\n\n{USER},B00004Z5M1\n{USER},B00004Z5M1,x,\n")
    assert [(row["line"], row["rating"], row["problem"]) for row in rows] == [
        (1, 5.0, None), (3, None, "2 fields instead of 4"), (4, None, None),
    ]  # fmt: skip


@pytest.mark.parametrize("line", ["B00004Z5M1,B00004Z5M2,5,1", "1,2,5,1", "user,item,rating", "1 2 3 4"])
def test_ambiguous_ratings_name_the_flag(tmp_path, line):
    with pytest.raises(InputError, match=r"a: cannot tell.*--columns user=0,item=1"):
        ratings(tmp_path / "a", f"{line}\n" * 5)


FIELD, TEXT = (st.text(st.sampled_from('ab" ,;\t5.é' + more), max_size=6) for more in ("", "\n"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(FIELD, FIELD, FIELD, TEXT), min_size=1, max_size=8), st.sampled_from(",\t"), st.sampled_from(["\n", "\r\n"]))
def test_delimited_agrees_with_the_csv_module(tmp_path_factory, records, delimiter, newline):
    path = tmp_path_factory.getbasetemp() / "property.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=newline)
        writer.writerows([("rating", "user", "item", "text"), *records])
    rows = rows_of(read_delimited(path, {"user": "user", "item": "item", "rating": "rating"}))
    with open(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        next(reader)
        want, start = [], reader.line_num
        for fields in reader:
            want.append((start + 1, *(fields[i].strip() or None for i in (1, 2))))
            start = reader.line_num
    assert [(row["line"], row["user"], row["item"]) for row in rows] == want


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_a_stray_quote_costs_its_own_line(tmp_path, monkeypatch, delimiter):
    """Of two quotes far apart and of one that never closes, in blocks shorter than what they would swallow; a text of two lines stays one record."""
    monkeypatch.setattr("readers.lines.BLOCK", 1 << 12)
    lines = [[f"u{n}", f"i{n}", "5", "text"] for n in range(9_000)]
    for n in (100, 4_000, 8_500):
        lines[n][1] = '"' + lines[n][1]
    lines[8_000][3] = '"two\nlines"'
    path = write(tmp_path / "a.csv", "\n".join(delimiter.join(line) for line in [["u", "i", "r", "t"], *lines]) + "\n")
    rows = rows_of(read_delimited(path, {"user": "u", "item": "i", "rating": "r"}))
    stray = [row for row in rows if row["problem"]]
    assert [(row["line"], row["problem"]) for row in stray] == [(n, "2 fields instead of 4") for n in (102, 4_002, 8_503)]
    assert [row["user"] for row in rows if not row["problem"]] == [f"u{n}" for n in range(9_000) if n not in (100, 4_000, 8_500)]


def test_lines_that_are_not_utf_8_are_told_and_merge_nobody(tmp_path):
    path = write(tmp_path / "a.csv", "u,i,r\nJosé,1,3\nJosè,1,3\nZoë,1,3\n".encode("latin-1") + "José,2,4\n".encode())
    rows = rows_of(read_delimited(path, {"user": "u", "item": "i", "rating": "r"}))
    assert [(row["user"], row["problem"]) for row in rows] == [*[(None, "not UTF-8")] * 3, ("José", None)]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    text = b"\xef\xbb\xbfu,i,r\n1,2,3\n"
    for path in (write(tmp_path / "a.csv", text), write(tmp_path / "a.csv.gz", gzip.compress(text))):
        assert [row["user"] for row in rows_of(read_delimited(path, {"user": "u", "item": "i", "rating": "r"}))] == ["1"]


def test_no_delimited_text_is_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"a.csv: one of the first lines has more than 131,072 characters"):
        rows_of(read_delimited(write(tmp_path / "a.csv", "x" * 200_000 + "\n"), {"user": "u", "item": "i", "rating": "r"}))


@pytest.mark.parametrize("text, seconds", [
    ("1365811200", 1365811200), ("1365811200.9", 1365811200), ("1365811200999", 1365811200), ("1.3658112e9", 1365811200),
    ("2013-04-13", 1365811200), ("2013-04-13T02:00:00+02:00", 1365811200),
    ("2013-04-13 00:00:00", 1365811200), ("2013-04-13T00:00:00Z", 1365811200),
    ("", None), ("soon", None), ("nan", None), ("1e300", None), ("-86400", -86400),
])  # fmt: skip
def test_times(tmp_path, text, seconds):
    path = write(tmp_path / "t.csv", f"1,2,3,{text}\n1,2,3,5\n")
    rows = rows_of(read_delimited(path, parse_columns("user=0,item=1,rating=2,timestamp=3")))
    assert [row["timestamp"] for row in rows] == [seconds, 5]


def test_blank_separated_and_headers_without_time(tmp_path):
    blanks = rows_of(read_delimited(write(tmp_path / "a.txt", " u1  i1 4\nu2 i2 x \nu3\n"), parse_columns("user=0,item=1,rating=2")))
    assert [(r["user"], r["item"], r["rating"], r["timestamp"], r["problem"]) for r in blanks] == [
        ("u1", "i1", 4.0, None, None), ("u2", "i2", None, None, None), (None, None, None, None, "1 fields instead of 3"),
    ]  # fmt: skip


def test_latin_1_elsewhere_in_the_line_does_no_harm(tmp_path):
    path = write(tmp_path / "a.csv", "u,i,r,title\n1,2,3,caf\u00e9\n".encode("latin-1"))
    assert rows_of(read_delimited(path, {"user": "u", "item": "i", "rating": "r"}))[0]["item"] == "2"


def test_parquet(tmp_path):
    moments = pa.array([1365811200999, None], pa.timestamp("ms"))
    table = pa.table({"u": [7, 8], "i": ["a", None], "r": pa.array([5, 1], pa.int8()), "t": moments})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    want = [("7", "a", 5.0, 1365811200), ("8", None, 1.0, None)]
    for columns in ("user=u,item=i,rating=r,timestamp=t", "user=0,item=1,rating=2,timestamp=3"):
        rows = rows_of(read_delimited(tmp_path / "x.parquet", parse_columns(columns)))
        assert [tuple(row[name] for name in ROWS.names[:4]) for row in rows] == want
    write(tmp_path / "y.parquet", b"PAR1 and no more")
    with pytest.raises(InputError, match=r"y\.parquet: cannot be read as Parquet"):
        list(read_delimited(tmp_path / "y.parquet", parse_columns("user=u,item=i,rating=r")))


def test_parquet_as_pandas_writes_it(tmp_path):
    """Texts of any kind, a cell that is no number, and whole ids that are floats because one is missing."""
    frame = pd.DataFrame({"u": [12345678901.0, np.nan, 3.0], "i": pd.Categorical(["a", "b", "a"]), "r": ["5", "n/a", "1"], "t": ["2013-04-13"] * 3})
    frame.to_parquet(tmp_path / "x.parquet")
    rows = rows_of(read_delimited(tmp_path / "x.parquet", parse_columns("user=u,item=i,rating=r,timestamp=t")))
    assert [(row["user"], row["item"], row["rating"], row["timestamp"]) for row in rows] == [
        ("12345678901", "a", 5.0, 1365811200), (None, "b", None, 1365811200), ("3", "a", 1.0, 1365811200),
    ]  # fmt: skip


def test_wrong_columns(tmp_path):
    path = write(tmp_path / "a.csv", '"u",i,r\n1,2,3\n')
    with pytest.raises(InputError, match=r"a\.csv: --columns user=who: there is no such column; its header is u, i, r"):
        list(read_delimited(path, parse_columns("user=who,item=i,rating=r")))
    with pytest.raises(InputError, match="rating=3: there is no such column; it has 3 columns"):
        list(read_delimited(path, parse_columns("user=0,item=1,rating=3")))
    with pytest.raises(InputError, match="the file is empty"):
        list(read_delimited(write(tmp_path / "e.csv", ""), parse_columns("user=0,item=1,rating=2")))


@pytest.mark.parametrize("text", ["", "user", "user=", "user=0,item=1", "user=0,item=1,rating=2,price=3", "user=0,user=1,item=2,rating=3"])
def test_bad_columns_flag(text):
    with pytest.raises(InputError, match=r"^--columns: "):
        parse_columns(text)


# ---------------------------------------------------------------------------------------------- metadata


def test_metadata_of_three_eras(tmp_path):
    of_2014 = {"asin": "B1", "title": "A &amp; B", "brand": "X", "price": 12.99, "categories": [["Electronics", "Camera"], ["Y"]]}
    of_2018 = {
        "asin": "B2",
        "title": "T" * 300,
        "brand": "by\n Y",
        "category": ["Gift Cards", "Gift Cards"],
        "main_cat": "Grocery",
        "price": "$1,012.50",
    }
    of_2023 = {"parent_asin": "B3", "title": None, "store": "Z", "main_category": "Books", "categories": [], "price": None}
    text = [repr(of_2014), json.dumps(of_2018), json.dumps(of_2023), "", json.dumps(of_2018 | {"title": "again"}), "{'a': f()}", "[]", "{}"]
    path = write(tmp_path / "m.gz", gzip.compress("\n".join(text).encode()))
    table, rejected = read_metadata(path)
    assert table.schema == METADATA
    assert [list(row.values()) for row in table.to_pylist()] == [
        ["B1", "A & B", "X", "Camera", 12.99],
        ["B2", "T" * 200, "Y", "Grocery", 1012.5],
        ["B3", None, "Z", "Books", None],
    ]
    assert rejected == [(6, "neither JSON nor a Python literal"), (7, "not an object"), (8, "no asin")]
    assert read_metadata(path, {"B1", "B3"})[0]["item"].to_pylist() == ["B1", "B3"]


@pytest.mark.parametrize("text, dollars", [
    ("$12.99 - $15.00", 12.99), ("from 3.50", 3.5), ("", None),
    (".a-box{display:none}", None), ("None", None), (True, None), (7, 7.0), ("$.,", None), ("9" * 39, None),
])  # fmt: skip
def test_prices(tmp_path, text, dollars):
    path = write(tmp_path / "m", json.dumps({"asin": "B1", "price": text}))
    assert read_metadata(path)[0]["price"].to_pylist() == [dollars]


@pytest.mark.parametrize(
    "hostile", ["{'a': " + "[" * 100000, "{'a': " + "-" * 500000 + "1}", "{'a': '" + "x" * (2 << 20) + "'}", "__import__('os')"]
)
def test_hostile_metadata_lines_are_rejected(tmp_path, hostile):
    table, rejected = read_metadata(write(tmp_path / "m", hostile + "\n{'asin': 'B1'}\n"))
    assert table["item"].to_pylist() == ["B1"] and [line for line, _ in rejected] == [1]


# ---------------------------------------------------------------------------------------------- blocks of lines


@given(st.lists(st.lists(st.text(max_size=3), max_size=8), min_size=1, max_size=8), st.integers(0, 5))
def test_codes_are_places_among_the_sorted_texts(blocks, least):
    codes = Codes()
    codes.least = least
    for block in blocks:
        codes.add(pa.chunked_array([pa.array(block, pa.string())]))
    found, words = codes.result()
    every = [text for block in blocks for text in block]
    assert words.tolist() == sorted(set(every)) and [words[code] for code in found] == every


numbers = st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=6)


@given(numbers)
def test_columns_stand_beside_their_lines_where_blocks_lack_some(blocks):
    columns, expected = Columns({"a": np.float64, "b": np.float32, "c": np.int16}), {"a": [], "b": [], "c": []}
    for n, has_a, has_b in blocks:
        there = {"a": has_a, "b": has_b, "c": True}
        values = {name: np.arange(n) + len(expected["c"]) for name in there if there[name]}
        columns.add(n, values)
        for name in expected:
            expected[name] += values.get(name, np.full(n, np.nan)).tolist()
    found = columns.result(["b"])
    assert {*found} == ({"a", "b", "c"} if any(has_b for *_, has_b in blocks) else {"a", "c"})
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 5), st.sampled_from([-1, -1, 1, 2])), max_size=40))
def test_the_last_row_of_a_pair_is_not_repeated(rows):
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp", "given"])
    last = frame.sort_values(["given", "timestamp"], kind="stable").drop_duplicates(["user", "item"], keep="last").index
    columns = {name: frame[name].to_numpy(np.int32 if name in ("user", "item") else float) for name in frame}
    assert np.flatnonzero(~repeated(columns)).tolist() == sorted(last)


def test_a_file_with_texts_may_follow_one_without(tmp_path):
    """Lines without a time are rejected where others have one, lines without a text are not."""
    parts = [[R2014 | {"reviewerID": user, "asin": item} for item in ("B1", "B2")] for user in ("A1", "A2")]
    del parts[0][0]["reviewText"], parts[0][1]["reviewText"], parts[1][1]["unixReviewTime"]
    paths = [write(tmp_path / name, "".join(json.dumps(line) + "\n" for line in part)) for name, part in zip("ab", parts)]
    args = Namespace(dataset="amazon-reviews", columns=None, input=paths, validation_input=None, test_input=None, drop_rating=[])
    rows, ids, rejected = formats.read_ratings(args)
    assert {name: ids[name][rows[name]].tolist() for name in ids} == {"user": ["A1", "A1", "A2"], "item": ["B1", "B2", "B1"]}
    np.testing.assert_array_equal(rows["review_length"], [math.nan, math.nan, len(R2014["reviewText"])])
    assert rejected.to_dict("records") == [{"file": paths[1], "line": 2, "reason": "missing or unparsable timestamp"}]
    rows, *_ = formats.read_ratings(Namespace(**vars(args) | {"input": paths[:1], "drop_rating": [4.0]}))
    assert "review_length" not in rows and len(rows["rating"]) == 2


# ---------------------------------------------------------------------------------------------- real files


@real
@pytest.mark.parametrize("name, rows, users, items, pairs", [
    ("2014/reviews_Musical_Instruments_5.json.gz", 10261, 1429, 900, 10261),
    ("2018/All_Beauty_5.json.gz", 5269, 991, 85, 5269 - 1177),
    ("2018/Gift_Cards_5.json.gz", 2972, 458, 148, None),
])  # fmt: skip
def test_real_reviews(name, rows, users, items, pairs):
    table = pa.concat_tables(read_reviews(DATA / name)).to_pandas()
    assert (len(table), table.user.nunique(), table.item.nunique()) == (rows, users, items)
    assert pairs is None or len(table.drop_duplicates(["user", "item"])) == pairs
    assert table.problem.isna().all()
    want = [expected(number, text) for number, text in enumerate(gzip.decompress((DATA / name).read_bytes()).decode().splitlines(), 1)]
    assert pa.concat_tables(read_reviews(DATA / name)).to_pylist() == want


@real
@pytest.mark.parametrize("name, columns, rows, users, items", [
    ("Magazine_Subscriptions_2018.csv", None, 89689, 72098, 2428),
    ("ratings_Electronics_first_rows_2014.csv", None, 50698, None, None),
    ("Electronics_dense.csv", "user=user_id,item=prod_id,rating=rating", 65290, 1540, 5689),
    ("Digital_Music_20plus.txt", "user=0,item=1,rating=2,timestamp=3", 46468, 844, 18813),
])  # fmt: skip
def test_real_ratings(name, columns, rows, users, items):
    path = DATA / "ratings" / name
    table = pa.concat_tables(read_delimited(path, parse_columns(columns)) if columns else read_ratings(path)).to_pandas()
    assert len(table) == rows and table.rating.between(1, 5).all()
    assert users is None or (table.user.nunique(), table.item.nunique()) == (users, items)
    assert table.timestamp.isna().all() if name == "Electronics_dense.csv" else table.timestamp.between(8e8, 1.6e9).all()


@real
def test_real_metadata():
    table, rejected = read_metadata(DATA / "2018" / "meta_Gift_Cards.json.gz")
    assert table.num_rows == 1547 and not rejected
