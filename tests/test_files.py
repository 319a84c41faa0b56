"""Files as users have them: text, JSON, CSV, TSV, Parquet; pointers, marks and other traps."""

import codecs
import csv
import gzip
import io
import random

import pytest

from salign.errors import ConfigError, DataError
from salign.files import RowError, format_of, read_rows, read_text, stream_rows
from salign.models import resolve

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"


def write(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- what is no file of data -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["q.txt", "q.jsonl", "q.csv", "q.parquet", "q.json.gz"])
def test_a_pointer_is_not_the_data(tmp_path, name):
    path = write(tmp_path / name, POINTER)
    for read in (read_text, read_rows, format_of):
        with pytest.raises(DataError, match=rf"{name} is a Git LFS pointer, not the data: .*git lfs pull"):
            read(path)
    write(path, "/annex/objects/SHA256E-s12345--00.json\n")
    with pytest.raises(DataError, match="is a git-annex pointer"):
        read_rows(path)


def test_a_pointer_of_a_case_is_not_three_questions(shared_data):
    with pytest.raises(DataError, match="Git LFS pointer, not the data"):
        read_text(shared_data.parent / "cases" / "lfs_pointer.txt")


def test_a_models_weights_may_be_a_pointer(tmp_path):
    write(tmp_path / "config.json", "{}")
    write(tmp_path / "tokenizer.json", "{}")
    write(tmp_path / "model.safetensors", POINTER)
    with pytest.raises(ConfigError, match=r"model\.safetensors is a Git LFS pointer, not the data"):
        resolve(str(tmp_path))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match=r"no data file .*: it is a folder.* kind: dataset"):
        read_rows(tmp_path)


@pytest.mark.parametrize(
    ("magic", "name"), [(b"PK\x03\x04", "zip"), (b"\x28\xb5\x2f\xfd", "Zstandard"), (b"BZh", "bz")]
)
def test_other_compression_is_named(tmp_path, magic, name):
    with pytest.raises(DataError, match=f"not UTF-8 text, but {name}"):
        read_rows(write(tmp_path / "q.jsonl", magic + b"\0" * 20))


# --- text of any encoding with a mark ----------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["q.jsonl", "q.csv"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, name, encoding, compressed):
    text = '{"q": "grüßen ✓"}\n' if name == "q.jsonl" else "q\ngrüßen ✓\n"
    raw = text.encode(encoding)
    # Compressed by its content, whatever its name.
    assert [row for _, row in stream_rows(write(tmp_path / name, gzip.compress(raw) if compressed else raw))] == [
        {"q": "grüßen ✓"}
    ]


def test_utf_16_without_a_mark_is_no_text(tmp_path):
    raw = "May I?\n".encode("utf-16")[len(codecs.BOM_UTF16) :]
    with pytest.raises(DataError, match="NUL bytes: UTF-16 without a byte order mark"):
        read_text(write(tmp_path / "q.txt", raw))


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.json"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    assert read_rows(write(tmp_path / name, b"")) == []


def test_json_that_is_too_deep_is_a_malformed_row(tmp_path):
    deep = '{"a":' * 100_000
    (_, first), (_, second) = stream_rows(write(tmp_path / "q.jsonl", f'{deep}\n{{"a": 1}}\n'))
    assert isinstance(first, RowError)
    assert second == {"a": 1}


# --- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "delimiter"), [("q.csv", ","), ("q.csv", ";"), ("q.tsv", "\t"), ("q.csv.gz", ",")])
def test_cells_of_any_text_come_back(tmp_path, name, delimiter):
    """Against the library's own writer, with what makes tables hard: quotes, delimiters, lines, long cells."""
    draw = random.Random(0)
    parts = ["a", '"', ",", ";", "\t", "\n", "é ✓", " ", "\\", "'", "word " * 40_000]
    rows = [{name: "".join(draw.choices(parts, k=draw.randrange(6))) for name in ("q", "a", "b")} for _ in range(60)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ("q", "a", "b"), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    raw = buffer.getvalue().encode()
    path = write(tmp_path / name, gzip.compress(raw) if name.endswith(".gz") else raw)
    expected = [{name: cell or None for name, cell in row.items()} for row in rows]
    assert list(stream_rows(path)) == list(enumerate(expected, start=2))  # as a spreadsheet numbers them


def test_a_table_that_is_malformed_is_named(tmp_path):
    path = write(tmp_path / "q.csv", "q,a\n1,2\n1\n1,2,3\n\n4,5\n")
    rows = list(stream_rows(path))
    assert [number for number, _ in rows] == [2, 3, 4, 6]
    assert [str(row) for _, row in rows if isinstance(row, RowError)] == [
        "1 cells, and the header names 2 columns",
        "3 cells, and the header names 2 columns",
    ]
    with pytest.raises(DataError, match=r"q\.csv, line 3: 1 cells"):
        read_rows(path)
    with pytest.raises(DataError, match=r"line 3: not valid CSV"):
        read_rows(write(path, 'q,a\n1,2\n"1,2\n'))
    with pytest.raises(DataError, match="names the column 'q' twice"):
        read_rows(write(path, "q,q\n1,2\n"))


def test_parquet_is_read_row_by_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"q": f"{n}?", "a": [{"text": "x", "rank": n}], "s": None if n % 2 else 1.5} for n in range(700)]
    for name in ("q.parquet", "named otherwise"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name, row_group_size=300)
        assert format_of(tmp_path / name) == "parquet"
        assert list(stream_rows(tmp_path / name)) == list(enumerate(rows, start=1))
    raw = (tmp_path / "q.parquet").read_bytes()
    write(tmp_path / "q.parquet", raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"q\.parquet: no Parquet file, or damaged"):
        read_rows(tmp_path / "q.parquet")
