"""An application for tests of a worker of a process group: one behaviour for each path."""

import atexit
import ctypes
import json
import logging
import os
import sys
import threading
import time
import warnings
from pathlib import Path

here = Path(__file__).parent
atexit.register(lambda: (here / "exited").write_text("yes"))
print("printed while it was imported")
released = threading.Event()


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def environ(environ, start_response):
    shown = {key: value for key, value in environ.items() if isinstance(value, (str, bool, tuple))}
    start_response("200 OK", [])
    return [json.dumps(shown).encode()]


def large(environ, start_response):
    start_response("200 OK", [])
    return [b"x" * 1_000_000]


def stream(environ, start_response):
    start_response("200 OK", [])

    def blocks():
        try:
            for number in range(40):
                yield bytes([number]) * 10_000
        finally:
            (here / "closed").write_text("yes")

    return blocks()


def echo(environ, start_response):
    start_response("200 OK", [])
    return [environ["wsgi.input"].read()]


def first(environ, start_response):
    """Reads a little of the body and waits."""
    start = environ["wsgi.input"].read(10)
    released.wait(10)
    start_response("200 OK", [])
    return [start]


def file(environ, start_response):
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](open(__file__, "rb"))


def sleep(environ, start_response):
    time.sleep(1)
    start_response("200 OK", [])
    return [b"slept"]


def wait(environ, start_response):
    released.wait(20)
    start_response("200 OK", [])
    return [b"waited"]


def release(environ, start_response):
    released.set()
    return hello(environ, start_response)


def loop(environ, start_response):
    """Runs until it is interrupted."""
    try:
        while True:
            time.sleep(0.01)
    except BaseException as error:
        (here / "interrupted").write_text(type(error).__name__)
        raise


def loop_late(environ, start_response):
    start_response("200 OK", [])
    yield b"begun"
    while True:
        time.sleep(0.01)


def deaf(environ, start_response):
    """Waits in one call of the system's, longer than any test."""
    time.sleep(60)


def late(environ, start_response):
    """Ends in code that is not Python's."""
    start_response("200 OK", [])
    return map(time.sleep, [0.8])


def hold(environ, start_response):
    """Keeps the interpreter."""
    ctypes.PyDLL(None).sleep(int(environ["HTTP_SECONDS"]))
    return hello(environ, start_response)


def log(environ, start_response):
    print("printed")
    print("unfinished", end="")
    environ["wsgi.errors"].write("written\n")
    logging.getLogger("app").warning("warned")
    logging.getLogger("app").error("logged")
    logging.getLogger("app").critical("very much")
    warnings.warn("a warning", stacklevel=1)
    return hello(environ, start_response)


def fails(environ, start_response):
    raise ValueError("on purpose")


def fork(environ, start_response):
    pid = os.fork()
    if pid == 0:
        print("a child's own line")
        environ["wsgi.errors"].write("a child's own record\n")
        time.sleep(int(environ["HTTP_SECONDS"]))
        os._exit(0)
    start_response("200 OK", [])
    return [str(pid).encode()]


def fork_and_return(environ, start_response):
    pid = os.fork()
    start_response("200 OK", [])
    return [str(pid).encode()]


def crash(environ, start_response):
    ctypes.string_at(0)


def title(environ, start_response):
    start_response("200 OK", [])
    return [Path("/proc/self/cmdline").read_bytes().strip(b"\0")]


def locale(environ, start_response):
    import locale

    start_response("200 OK", [])
    return [locale.setlocale(locale.LC_NUMERIC, None).encode()]


def child(environ, start_response):
    """The signals that a child process finds blocked, and its descriptors."""
    import subprocess

    code = "import os, signal; print([int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())], os.listdir('/proc/self/fd'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, close_fds=False)
    start_response("200 OK", [])
    return [out.stdout]


def stamp(environ, start_response):
    start_response("200 OK", [])
    return [b"old code"]


def application(environ, start_response):
    return globals()[environ["PATH_INFO"].strip("/")](environ, start_response)
