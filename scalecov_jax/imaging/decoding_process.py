"""A process that decodes and resizes the images of a source, one at a time, when asked.

It is a program of its own, not a fork of the one that asks: JAX and forking do not mix. It ends when the other end of the pipe
closes, so also when the one that asks is killed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import traceback
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
from jaxtyping import UInt8

from scalecov_jax.imaging.decoding import resize_image
from scalecov_jax.imaging.image_set import Source


class DecodingProcess:
    """Starts a process for one source and one size.

    Args:
        source: Examples; it and what it is made of must be picklable and importable.
        size: Height and width of the images in pixels.

    Raises:
        ValueError: The source cannot be handed over.
    """

    def __init__(self, source: Source, size: int):
        self._connection, there = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment["JAX_PLATFORMS"] = "cpu"  # a renderer must not ask for the accelerator of this process
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(there.fileno())],
                pass_fds=[there.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
            )
        finally:
            there.close()
        try:
            alive = self._send((source, size))
        except Exception as error:
            self.close()
            raise ValueError(
                f"Images of this source cannot be decoded in other processes ({error}); pass --config.workers=0."
            ) from error
        if not alive:
            self.close()
            raise self._died()

    def load(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        """The image of one example, resized.

        Raises:
            ImageError: It cannot be decoded.
            ValueError: The process ended.
        """
        answer = None
        with contextlib.suppress(EOFError, OSError):
            answer = self._connection.recv() if self._send(index) else None
        if answer is None:
            raise self._died()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _send(self, message: object) -> bool:
        """Whether the process took a message; a broken pipe says that it has ended."""
        # The error must not live on: its frames hold a view of the pickled bytes, and Python 3.13 complains of bytes that are
        # collected with a view of them.
        try:
            self._connection.send(message)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _died(self) -> ValueError:
        status = self._process.wait()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return ValueError(
            f"A process that decodes images ended ({how}); was memory short? What was saved before is kept: pass --resume, with "
            "fewer --config.workers or 0."
        )


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other end closes
    source, size = connection.recv()
    while True:
        try:
            index = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = resize_image(source[index].image, size)
        except Exception as error:
            error.add_note(traceback.format_exc())
            answer = error
        try:
            connection.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception:  # an error that cannot be pickled
            connection.send(RuntimeError("".join(answer.__notes__)))  # pyright: ignore


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
