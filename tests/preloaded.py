"""The real `mmspeech` for recipes that call it dozens of times, without the seconds in which each call imports torch.

One process imports everything, once. Each call of the program that `preloaded` puts into a folder becomes a fork of it,
which takes over the call's arguments, folder and streams and runs the command line; its exit code is the call's.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
# What others import only where they use it.
LATE = ("matplotlib.pyplot", "sklearn.cluster", "sklearn.manifold", "torch.utils.tensorboard", "typer._adapters")
CALL = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    socket.send_fds(server, [json.dumps([os.getcwd(), sys.argv[2:], dict(os.environ)]).encode()], [0, 1, 2])
    server.shutdown(socket.SHUT_WR)
    code = server.recv(16)
sys.exit(int(code) if code else "the process that forks has ended")
"""


@contextlib.contextmanager
def preloaded(folder: Path) -> Iterator[None]:
    """While it lasts, `folder`, which should stand first in PATH, holds an `mmspeech` that starts at once."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "mmspeech"
    with tempfile.TemporaryDirectory() as short:  # the path of a socket holds about a hundred characters
        place = os.path.join(short, "socket")
        call = shlex.join([sys.executable, "-IS", "-c", CALL, place, "mmspeech"])
        program.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
        program.chmod(0o755)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        words = [sys.executable, __file__, place]
        # Its input stays open as long as this process lives, whatever ends it.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(words, env=env, **pipes, start_new_session=True) as server:
            try:
                assert server.stdout is not None and server.stdout.readline() == b"ready\n"
                yield
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(server.pid, signal.SIGKILL)


def serve(place: str) -> None:
    """One call after the other: recipes wait for each."""
    modules = [file.relative_to(ROOT).with_suffix("").parts for file in (ROOT / "mmspeech").rglob("[!_]*.py")]
    for name in [*(".".join(parts) for parts in modules), *LATE]:
        importlib.import_module(name)
    from mmspeech.cli import app

    threading.Thread(target=end_with_input, daemon=True).start()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen()
    gc.collect()
    gc.freeze()  # else the first collection of each fork copies all pages
    print("ready", flush=True)
    while True:
        call, _ = listener.accept()
        words, streams, _, _ = socket.recv_fds(call, 1 << 17, 3)
        while more := call.recv(1 << 17):
            words += more
        child = os.fork()
        if not child:
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            call.close()
            listener.close()
            folder, sys.argv, environment = json.loads(words)
            os.environ.update(environment)
            os.chdir(folder)
            run(app.main)
        for stream in streams:
            os.close(stream)
        _, status = os.waitpid(child, 0)
        with call:
            call.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def end_with_input() -> None:
    """End this process and its forks when its input ends. Not by sys.stdin, whose lock would be held in every fork."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def run(main: Callable[[], NoReturn]) -> NoReturn:
    """Run the command line and leave with its exit code; to take down all modules would take two seconds a call."""
    code: object = 1
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    if not isinstance(code, int):
        print(code, file=sys.stderr)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    serve(sys.argv[1])
