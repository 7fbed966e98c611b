"""The command `scalecov NAME --flags`: runs the script of that name, whose flags are its own; without a name it lists them.

It reads no flag itself. A configuration that is not in the current folder is taken from what comes with the package.
"""

import ast
import difflib
import runpy
import sys

from scalecov_jax import shipped


def main() -> None:
    """Run a script, or list what there is."""
    folder = shipped.ROOT / "scripts"
    scripts = {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "command"}
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: scalecov NAME --config=configs/FILE.py --workdir=FOLDER [--config.SETTING=VALUE ...]\n")
        for script, path in scripts.items():
            summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
            print(f"  {script:<14}{' '.join(summary.split())}")
        print("\nscalecov NAME --help explains the settings. Configurations:")
        print(
            " ", ", ".join(f"configs/{path.name}" for path in sorted((shipped.ROOT / "configs").glob("*.py")))
        )
        return
    if name not in scripts:
        near = difflib.get_close_matches(name, scripts, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        sys.exit(f"error: There is no command {name}; expected one of {', '.join(scripts)}.{meant}")
    sys.argv = [f"scalecov {name}", *map(_with_shipped_config, arguments)]
    sys.path.insert(0, str(folder))
    runpy.run_path(str(scripts[name]), run_name="__main__")


def _with_shipped_config(argument: str) -> str:
    flag, equals, value = argument.partition("=")
    if flag.lstrip("-") != "config" or not equals:
        return argument
    path, colon, variant = value.partition(":")
    return f"{flag}={shipped.find(path)}{colon}{variant}"


if __name__ == "__main__":
    main()
