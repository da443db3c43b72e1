"""`fsl-align`: finds the people whom parties on machines of their own all know, by private set intersection."""

import csv
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fsl.simulations.command_lines import Parser
from fsl.simulations.console_scripts import say_why

from fsl.data.psi_messages import answer, common, question
from fsl.errors import DataError, FslError
from fsl.files import write_bytes
from fsl.quoting import short

_MOST = 1 << 30  # bytes of a message that is read
_ABOUT = """Find the people whom several parties all know. The first party asks, each other one answers, the first one
names the people, and each party keeps their rows:

  first    fsl-align ask bank.csv --id customer --out question.bin --key key.bin
  others   fsl-align answer shop.csv --id customer question.bin --out answer.bin
  first    fsl-align common bank.csv --id customer --key key.bin answer.bin [...] --out people.txt
  all      fsl-align keep shop.csv --id customer people.txt --out aligned.csv

The first party learns which of its people each other party knows, the others how many it asked about and who all know.
people.txt has an id a line; lists that were compared in the clear do as well."""


def command(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code: 0, 1 (a file could not be written) or 2 (bad input)."""
    try:
        options = _parser().parse_args(arguments)
        if (out := options.out).exists() and not options.overwrite:
            raise DataError(f"--out {out} is there already; give another name, or --overwrite")
        _STEPS[options.step](options)
    except FslError as error:
        return say_why("fsl-align", str(error), 2)
    except OSError as error:
        return say_why("fsl-align", f"{error.filename}: {error.strerror}", 1)
    print(options.out)
    return 0


def _ask(options: Any) -> None:
    ids = _ids(options.file, options.id)
    if options.key.absolute() == options.out.absolute():
        raise DataError(f"--key {options.key} and --out are one file; the key stays here, and --out is sent")
    if options.key.exists() and not options.overwrite:
        raise DataError(f"--key {options.key} is there already; give another name, or --overwrite")
    asked, key = question(ids)
    write_bytes(options.key, key, private=True)
    write_bytes(options.out, asked)
    print(f"{len(ids)} people asked about; keep {options.key} to yourself")


def _answer(options: Any) -> None:
    write_bytes(options.out, answer(_ids(options.file, options.id), _read(options.message)))


def _common(options: Any) -> None:
    ids = _ids(options.file, options.id)
    key, found = _read(options.key), set(ids)
    for path in options.messages:
        found &= set(common(ids, key, _read(path)))
    if not found:
        raise DataError(f"{options.file}: nobody in it is known to all parties; are ids written alike everywhere?")
    write_bytes(options.out, "".join(f"{one}\n" for one in sorted(found)).encode())
    print(f"{len(found)} of {len(ids)} people are known to all")


def _keep(options: Any) -> None:
    try:
        listed = options.message.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{options.message}: it is no list of ids, one a line") from None
    people = {line.removesuffix("\r") for line in listed.split("\n")} - {""}  # ids may have other ends of lines
    if not people:
        raise DataError(f"{options.message}: it names nobody")
    head, rows, column = _table(options.file, options.id)
    kept = [row for row in rows if row[column] in people]
    if unknown := people - {row[column] for row in kept}:
        raise DataError(f"{options.file} has no row of {min(unknown)!r}, whom all parties are to know")
    lines = _Lines()
    csv.writer(lines, lineterminator="\n").writerows([head, *kept])
    write_bytes(options.out, "".join(lines).encode())
    print(f"{len(kept)} of {len(rows)} rows kept")


_STEPS: Mapping[str, Callable[[Any], None]] = {"ask": _ask, "answer": _answer, "common": _common, "keep": _keep}


class _Lines(list[str]):
    write = list[str].append


def _table(path: Path, id: str) -> tuple[list[str], list[list[str]], int]:
    """Read a CSV file as texts; DataError for one without such a column, or with a person twice."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # the same ids on every machine
            head, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: it cannot be read as CSV ({error})") from None
    if id not in head:
        raise DataError(f"--id {id}: {path} has no such column; it has {', '.join(head)}")
    column = head.index(id)
    if short_row := next((number for number, row in enumerate(rows, 2) if len(row) != len(head)), None):
        raise DataError(f"{path}: row {short_row} has other columns than the first line names")
    seen: set[str] = set()
    for row in rows:
        one = row[column]
        if one in seen or not one or "\n" in one or "\r" in one:
            why = "twice" if one in seen else "which is no id: texts of one line are"
            raise DataError(f"{path}: it has {short(one)} {why}; keep one row for each person")
        seen.add(one)
    return head, rows, column


def _ids(path: Path, id: str) -> list[str]:
    _, rows, column = _table(path, id)
    if not rows:
        raise DataError(f"{path}: it has no rows")
    return [row[column] for row in rows]


def _read(path: Path) -> bytes:
    if (size := path.stat().st_size) > _MOST:
        raise DataError(f"{path}: it has {size} bytes; at most {_MOST} are read")
    return path.read_bytes()


def _parser() -> Parser:
    parser = Parser(prog="fsl-align", description=_ABOUT, formatter_class=RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(
        dest="step", required=True, metavar="ask | answer | common | keep", parser_class=Parser
    )
    for name, others in (("ask", 0), ("answer", 1), ("common", "+"), ("keep", 1)):
        step = steps.add_parser(name)
        step.add_argument("file", type=Path, help="this party's CSV file")
        if others == "+":
            step.add_argument("messages", type=Path, nargs="+", help="each other party's answer")
        elif others:
            step.add_argument("message", type=Path, help="the question, or the list of people")
        step.add_argument("--id", required=True, help="its column of ids")
        step.add_argument("--out", type=Path, required=True, help="what is written")
        if name in ("ask", "common"):
            step.add_argument("--key", type=Path, required=True, help="the key of the question, which stays here")
        step.add_argument("--overwrite", action="store_true", help="replace files that are there")
    return parser


def main() -> None:
    """Run `fsl-align` on this process's arguments."""
    sys.exit(command(sys.argv[1:]))
