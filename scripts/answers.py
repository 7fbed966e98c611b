"""Print what finished runs found, and where their reports are.

Example:
  python scripts/answers.py runs/demo runs/demo_tissue

Reads summary.json of each folder and computes nothing.
"""

import json
import shutil
import sys
import textwrap
from pathlib import Path


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
            answer = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["answer"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"error: {folder} holds no finished run ({type(error).__name__}: {error}).")
        paragraphs = answer if isinstance(answer, list) else answer.splitlines()
        print("", *(textwrap.fill(one, width) for one in paragraphs), sep="\n")
        print(f"Report: {folder / 'report.html'}")


if __name__ == "__main__":
    main(sys.argv[1:])
