"""Prints what a package needs, a requirement a line: of its pyproject.toml, with these of its extras."""

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in sys.argv[2:])]
    print(*(requirement for group in groups for requirement in group), sep="\n")
