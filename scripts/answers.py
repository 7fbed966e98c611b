"""Print what finished runs found, and where their reports are.

Example:
  python scripts/answers.py runs/demo runs/demo_tissue

Reads summary.json of each folder and computes nothing.
"""

import shutil
import sys
import textwrap
from pathlib import Path

from scalecov_jax.atomic import read_json


def main(folders: list[str]) -> None:
    """Print the answer of each run, wrapped to the width of the terminal."""
    if {*folders} & {"-h", "--help"}:
        print(__doc__)
        return
    if not folders:
        sys.exit("error: Expected folders of finished runs.")
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    for folder in map(Path, folders):
        try:
            answer = read_json(folder / "summary.json")["answer"]
        except (OSError, ValueError, KeyError) as error:
            sys.exit(f"error: {folder} holds no finished run ({type(error).__name__}: {error}).")
        paragraphs = answer if isinstance(answer, list) else answer.splitlines()
        print("", *(textwrap.fill(one, width) for one in paragraphs), sep="\n")
        print(f"Report: {folder / 'report.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
