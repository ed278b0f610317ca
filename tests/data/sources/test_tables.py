"""The table layout: quotes, separators, grouping, and errors that name the row."""

import csv
import pickle

import pytest

from lexlip_data.errors import BrokenImage, DataError
from lexlip_data.sources.rows import Rows
from lexlip_data.sources.skipped import Rules
from lexlip_data.sources.table import CaptionTable, TsvSource
from lexlip_data.sources.tsv import read_columns

TITLES = [
    'a sign that says " free dinner "',
    '"Mambo" is written on her shirt',
    'she said "hello"',
    '"all of it"',
    "it's 5' 10\"",
    'an unclosed " quote',
    "plain, with a comma",
    '"one" and "two"',
]


def write(path, titles, quoting, separator="\t"):
    with open(path, "w", newline="", encoding="utf-8") as file:
        if quoting is None:
            file.write(separator.join(["title", "filepath", "image_id"]) + "\n")
            for i, title in enumerate(titles):
                file.write(separator.join([title, f"{i}.jpg", str(i)]) + "\n")
        else:
            rows = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator="\n")
            rows.writerow(["title", "filepath", "image_id"])
            rows.writerows([title, f"{i}.jpg", i] for i, title in enumerate(titles))
    return path


def titles_of(path) -> list[str]:
    source = TsvSource("x", "train", path)
    return [source.captions(i)[0] for i in range(len(source))]


def test_quoted_by_pandas(tmp_path):
    assert titles_of(write(tmp_path / "t.tsv", TITLES, csv.QUOTE_MINIMAL)) == TITLES


def test_raw_quotes(tmp_path):
    # A raw title that is one quotation cannot be told from a quoted field; the words are the same.
    expected = [title if title != '"all of it"' else "all of it" for title in TITLES]
    assert titles_of(write(tmp_path / "t.tsv", TITLES, None)) == expected


def test_raw_quote_that_opens_a_title_swallows_nothing(tmp_path):
    titles = ['"hello she said', "second", 'third" ', '"fourth']
    assert titles_of(write(tmp_path / "t.tsv", titles, None)) == titles


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_quoted_line_breaks_and_tabs(tmp_path, quoting):
    titles = TITLES + ["two\nlines", "a\ttab", "the end"]
    assert titles_of(write(tmp_path / "t.tsv", titles, quoting)) == titles


def test_pandas_itself(tmp_path):
    pandas = pytest.importorskip("pandas")
    titles = TITLES + ["two\nlines"]
    frame = pandas.DataFrame({"title": titles, "filepath": [f"{i}.jpg" for i in range(len(titles))]})
    frame.to_csv(tmp_path / "t.csv", sep="\t")  # with its index column
    assert titles_of(tmp_path / "t.csv") == titles


def test_comma_separated(tmp_path):
    assert titles_of(write(tmp_path / "t.csv", TITLES, csv.QUOTE_MINIMAL, ",")) == TITLES


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes("\ufefftitle\tfilepath\timage_id\r\nein Füchslein\ta.jpg\t1\r\n".encode())
    source = TsvSource("x", "train", path)
    assert (source.captions(0), source.image_id(0), source.path(0)) == (["ein Füchslein"], "1", tmp_path / "a.jpg")


def test_grouping_keeps_the_order_of_first_rows(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("title\tfilepath\timage_id\na\tz.jpg\t9\nb\ty.jpg\t1\nc\tz.jpg\t9\n \tz.jpg\t9\nd\tx.jpg\t007\n")
    source = TsvSource("x", "train", path)
    assert [source.captions(i) for i in range(3)] == [["a", "c"], ["b"], ["d"]]
    assert [source.image_id(i) for i in range(3)] == ["9", "1", "007"]
    assert [item.kind for item in source.left_out] == ["empty"] and source.caption_counts.tolist() == [2, 1, 1]
    assert "row 5" in source.where(2)
    capped = TsvSource("x", "train", path, max_images=2)
    assert len(capped) == 2 and capped.caption_counts.tolist() == [2, 1]
    again = pickle.loads(pickle.dumps(capped))
    assert len(again) == 2 and again.captions(0) == ["a", "c"] and len(pickle.dumps(capped)) < 1000
    with pytest.raises(BrokenImage, match="z.jpg cannot be read"):
        source.image_bytes(0)
    with pytest.raises(IndexError):
        source.captions(3)


def test_without_ids_the_path_groups(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("filepath\ttitle\nz.jpg\ta\nz.jpg\tb\n")
    source = TsvSource("x", "train", path)
    assert len(source) == 1 and source.image_id(0) == "z.jpg" and source.captions(0) == ["a", "b"]


def test_long_captions():
    table = CaptionTable(
        "x", "train", Rows({"title": ["a", "b"], "filepath": ["p", "p"], "long_caption": ["long", "long"]})
    )
    assert table.long_captions(0) == ["long"] and table.captions(0) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title\timage_id\na\t1\n", "no column filepath"),
        ("", "no column title, filepath"),
        ("title\tfilepath\ttitle\n", "occurs twice"),
        ("title\tfilepath\na\tb\tc\n", "malformed.*Row #2"),
        ("title\tfilepath\timage_id\na\tx.jpg\t1\nb\ty.jpg\t1\n", "row 2: image_id '1' stands for two files"),
        ('title\tfilepath\n"a\tx.jpg\nb\ty.jpg\n"two\nlines"\tz.jpg\n', "malformed"),
        ('title\tfilepath\n"a\tx.jpg\nb" c\ty.jpg\n"two\nlines"\tz.jpg\n', "row 1: the quote that opens title"),
    ],
)
def test_errors(tmp_path, content, message):
    path = tmp_path / "t.tsv"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        TsvSource("x", "train", path)
    assert "t.tsv" in str(raised.value)


def test_absent_file_and_wrong_encoding(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_columns(tmp_path / "none.tsv")
    (tmp_path / "t.tsv").write_bytes("title\tfilepath\nfüchslein\ta\n".encode("latin-1"))
    with pytest.raises(DataError, match="t.tsv, row 1: title is not UTF-8 text .*; save the table as UTF-8"):
        read_columns(tmp_path / "t.tsv")


def test_fingerprint_follows_the_content():
    def make(title="b", path="q", cap=None):
        table = CaptionTable("x", "train", Rows({"title": ["a", title], "filepath": ["p", path]}))
        table.keep_first(cap)
        return table.fingerprint()

    assert make() == make() and len({make(), make("c"), make("bb"), make(path="r"), make(cap=1)}) == 5


@pytest.mark.parametrize(
    ("rows", "row"),
    [
        ('x,0.jpg\n"open,1.jpg\nb,2.jpg\nthe "c" one,3.jpg\nd,4.jpg', 2),
        ('x,0.jpg\nx,1.jpg\n"open,2.jpg\nsize 5",3.jpg', 3),
        ('x,0.jpg\n"open,1.jpg\nb,2.jpg', 2),
        ('x,img0\n"open,img1\nb,img2\nthe "c" one,img3', 2),
        ('x,0.jpg\r\n"open,1.jpg\r\nb,2.jpg\r\nthe "c" one,3.jpg\r\n', 2),
    ],
    ids=["closed by a later quote", "one row", "to the end", "no suffixes", "line ends of Windows"],
)
def test_an_open_quote_in_a_comma_separated_table(tmp_path, rows, row):
    path = tmp_path / "t.csv"
    path.write_bytes(("title,filepath\n" + rows + "\n").encode())
    with pytest.raises(DataError, match=rf"t.csv, row {row}: .*quote.*not closed"):
        read_columns(path)
    kept = read_columns(path, Rules(1))
    swallowed = rows.rstrip("\r\n").count("\n") + 1 - len(kept)
    assert len(kept.left_out) == swallowed >= 2  # each row that is lost counts as one


def test_an_open_quote_in_a_column_that_nobody_reads(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('title,filepath,note\na,0.jpg,x\nb,1.jpg,"open\nc,2.jpg,y\nd,3.jpg,z"\n')
    with pytest.raises(DataError, match="t.csv, row 2: the quote that opens note 'open' is not closed"):
        read_columns(path)


def test_captions_of_several_lines_are_no_open_quote(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('title,filepath\n"A dog, running.\nA cat, ""too""",1.jpg\nb,2.jpg\n')
    rows = read_columns(path)
    assert rows.columns["title"].to_pylist() == ['A dog, running.\nA cat, "too"', "b"] and rows.left_out == []
