"""Parties find the people whom all know, each by commands on its own machine."""

import locale
from importlib.util import find_spec

import pytest
from fsl.simulations.fsl_align import command

from fsl.data.psi_messages import answer, common, question
from fsl.errors import DataError

needs_psi = pytest.mark.skipif(find_spec("private_set_intersection") is None, reason="the extra psi is not installed")
BANK = "customer,age\np3,41\np1,30\np7,55\np2,28\n"
SHOP = 'visits,note,customer\n3,"a, b",p2\n0,,p9\n12,"say ""hi""",p1\n7,,p3\n'
CLINIC = "customer,weight\np3,80\np2,71.50\np5,66\n"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("bank", BANK), ("shop", SHOP), ("clinic", CLINIC)):
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def run(line: str) -> int:
    return command([*line.split(), "--id", "customer"])


@needs_psi
def test_three_parties_keep_the_people_whom_all_know(files, capsys):
    assert run("ask bank.csv --out question.bin --key key.bin") == 0
    assert (files / "key.bin").stat().st_mode & 0o077 == 0
    for other in ("shop", "clinic"):
        assert run(f"answer {other}.csv question.bin --out {other}.bin") == 0
    assert run("common bank.csv --key key.bin shop.bin clinic.bin --out people.txt") == 0
    assert (files / "people.txt").read_text() == "p2\np3\n"
    for party in ("bank", "shop", "clinic"):
        assert run(f"keep {party}.csv people.txt --out {party}-aligned.csv") == 0
    assert (files / "bank-aligned.csv").read_text() == "customer,age\np3,41\np2,28\n"
    assert (files / "shop-aligned.csv").read_text() == 'visits,note,customer\n3,"a, b",p2\n7,,p3\n'
    assert "2 of 3 rows kept" in capsys.readouterr().out


@needs_psi
def test_messages_hold_no_id(files):
    """Neither in the clear, nor as anything that depends on the id alone: two questions about it differ."""
    ids = [f"person-{k}" for k in range(5)]
    asked, key = question(ids)
    assert question(ids)[0] != asked
    answered = answer(["person-1", "person-9"], asked)
    assert not any(one.encode() in asked + answered for one in [*ids, "person-9"])
    assert common(ids, key, answered) == ["person-1"]


@needs_psi
def test_a_message_that_was_cut_or_is_another_is_refused():
    ids = ["a", "b", "c"]
    asked, key = question(ids)
    answered = answer(ids, asked)
    for broken in (b"", asked[:-1], asked + b"1", b"x" * 50, answered):
        with pytest.raises(DataError, match="no question of fsl-align"):
            answer(ids, broken)
    for broken in (b"", answered[:-1], answered + b"1", asked, b"fsl-psi1" + b"\xff" * 40):
        with pytest.raises(DataError, match="no answer of fsl-align"):
            common(ids, key, broken)
    for others in (ids[:1], ids[::-1], [*ids, "d"], ["a", "x", "c"]):
        with pytest.raises(DataError, match="about other ids, or in another order"):
            common(others, key, answered)
    with pytest.raises(DataError, match="to another question"):
        common(ids, question(ids)[1], answered)


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        ("keep bank.csv people.txt --out new.csv", "p1\np5\n", "bank.csv has no row of 'p5'"),
        ("keep bank.csv people.txt --out new.csv", "\n", "people.txt: it names nobody"),
        ("ask bank.csv --out new.csv --key ./new.csv", "", "are one file; the key stays here"),
        ("keep bank.csv people.txt --out bank.csv", "p1\n", "--out bank.csv is there already"),
        ("keep twice.csv people.txt --out new.csv", "p1\n", "it has 'p1' twice"),
        ("keep shop.csv people.txt --out new.csv --replace", "p1\n", "unrecognized arguments"),
        (
            "keep other.csv people.txt --out new.csv",
            "p1\n",
            "--id customer: other.csv has no such column; it has id, x",
        ),
        ("keep short.csv people.txt --out new.csv", "p1\n", "row 3 has other columns"),
        ("keep nobody.csv people.txt --out new.csv", "p1\n", "nobody.csv: No such file"),
    ],
)
def test_wrong_input_is_one_line(line, text, said, files, capsys):
    (files / "people.txt").write_text(text)
    (files / "twice.csv").write_text("customer,a\np1,2\np1,3\n")
    (files / "other.csv").write_text("id,x\np1,2\n")
    (files / "short.csv").write_text("customer,x\np1,2\np3\n")
    assert run(line) in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (files / "new.csv").exists()


@pytest.fixture
def machine_of_ascii():
    """A machine whose texts are ASCII unless somebody says otherwise."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)


def test_ids_are_the_same_on_every_machine(files, machine_of_ascii):
    """Spreadsheets begin files with a mark of bytes; machines read texts each in its own way, but not these."""
    (files / "marked.csv").write_bytes("\ufeffcustomer,age\nß\u2028\x85x,4\n".encode())
    (files / "people.txt").write_bytes("\ufeffß\u2028\x85x\r\n".encode())
    with pytest.raises(UnicodeDecodeError):
        (files / "people.txt").read_text()
    assert run("keep marked.csv people.txt --out kept.csv") == 0
    assert (files / "kept.csv").read_text("utf-8") == "customer,age\nß\u2028\x85x,4\n"
