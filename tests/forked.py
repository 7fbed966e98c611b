"""Scripts in forks of one process that has imported everything: as a person types them, but for the start of Python."""

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SERVER = """
import gc, json, os, runpy, signal, sys, warnings
sys.path.insert(0, "scripts")
import tiny_network
from ml_collections import config_flags
from scalecov_jax import reproduction, run
from scalecov_jax.models import parity, port
gc.freeze()  # else every fork copies and collects all that is imported
for line in sys.stdin:
    job = json.loads(line)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that jax has threads, which it has not before it computes
        forked = os.fork()
    if not forked:
        for stream, path in ((1, job["stdout"]), (2, job["stderr"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        signal.alarm(300)
        sys.argv = job["arguments"]
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
else:
    sys.exit()
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextlib.contextmanager
def forked(**options):
    """A function that runs a script with arguments and returns what `subprocess.run` does; options are those of `Popen`."""
    command, pipe = [sys.executable, "-c", SERVER], subprocess.PIPE
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **options) as server,
    ):

        def run(*arguments):
            paths = {name: Path(folder, name) for name in ("stdout", "stderr")}
            for path in paths.values():
                path.unlink(missing_ok=True)
            job = {"arguments": [*map(str, arguments)], **{name: str(path) for name, path in paths.items()}}
            server.stdin.write(json.dumps(job) + "\n")
            server.stdin.flush()
            status = int(server.stdout.readline())
            return subprocess.CompletedProcess(
                arguments, status, *(path.read_text() for path in paths.values())
            )

        yield run
        server.stdin.close()
