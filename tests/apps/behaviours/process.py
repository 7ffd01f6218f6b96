"""What an application sees of its process, and does in it."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

from . import behaviour
from .record import note, noted, query

TEXT = [("Content-Type", "text/plain")]
JSON = [("Content-Type", "application/json")]


@behaviour
def python(environ, start_response):
    """The interpreter and its process, after ?seconds=."""
    time.sleep(float(query(environ, "seconds", "0")))
    start_response("200 OK", JSON)
    info = {
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "executable": sys.executable,
        "path": sys.path,
        "version": list(sys.version_info[:2]),
        "argv": sys.argv,
        "utf8": sys.flags.utf8_mode,
        "filesystem": sys.getfilesystemencoding(),
        "preferred": open(os.devnull).encoding,
        "uid": os.getuid(),
        "pid": os.getpid(),
        "main": threading.main_thread().name,
        "environment": dict(os.environ),
        "modules": sorted(sys.modules),
        "int_handler": repr(signal.getsignal(signal.SIGINT)),
    }
    return [json.dumps(info).encode()]


@behaviour
def subprocesses(environ, start_response):
    """Exit codes, output and terminate() of child processes."""
    sleeper = subprocess.Popen(["sleep", "60"])
    sleeper.terminate()
    interrupted = subprocess.Popen(["sleep", "60"])
    interrupted.send_signal(signal.SIGINT)
    quiet = subprocess.run(["sh", "-c", "kill -TERM $$; sleep 5"])
    info = {
        "false": subprocess.run(["false"]).returncode,
        "true": subprocess.run(["true"]).returncode,
        "seven": subprocess.run(["sh", "-c", "exit 7"]).returncode,
        "output": subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout,
        "terminated": sleeper.wait(10),
        "interrupted": interrupted.wait(10),
        "itself": quiet.returncode,
        "system": os.waitstatus_to_exitcode(os.system("exit 3")),
        "blocked": signals_blocked_in_child(),
    }
    start_response("200 OK", JSON)
    return [json.dumps(info).encode()]


def signals_blocked_in_child():
    """The signals a child process starts with blocked, by number."""
    status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
    (mask,) = (int(line.split(":")[1], 16) for line in status.splitlines() if line.startswith("SigBlk"))
    return [number for number in range(1, 32) if mask & (1 << (number - 1))]


@behaviour
def background(environ, start_response):
    """A thread that works on after the response."""

    def work():
        time.sleep(1)
        note(environ, "worked")

    threading.Thread(target=work, daemon=True).start()
    start_response("200 OK", TEXT)
    return [b"started"]


@behaviour
def printed(environ, start_response):
    print("printed to stdout")
    print("printed to stderr", file=sys.stderr)
    sys.stdout.flush()
    start_response("200 OK", TEXT)
    return [b"printed"]


@behaviour
def logged(environ, start_response):
    logging.getLogger("site").warning("through logging: %s", query(environ, "text"))
    warnings.warn("through warnings")
    start_response("200 OK", TEXT)
    return [b"logged"]


@behaviour
def waiting(environ, start_response):
    """Takes ?seconds=; notes when it ran."""
    note(environ, "begin")
    time.sleep(float(query(environ, "seconds")))
    note(environ, "end")
    start_response("200 OK", TEXT)
    return [b"waited"]


@behaviour
def slow_steps(environ, start_response):
    """Takes ?seconds= in steps of a tenth, between which an exception can come through."""
    end = time.monotonic() + float(query(environ, "seconds"))
    while time.monotonic() < end:
        time.sleep(0.1)
    start_response("200 OK", TEXT)
    return [b"done"]


@behaviour
def busy(environ, start_response):
    """Holds the interpreter for ?seconds= without waiting for anything."""
    end = time.monotonic() + float(query(environ, "seconds"))
    while time.monotonic() < end:
        pass
    start_response("200 OK", TEXT)
    return [b"done"]


@behaviour
def meet(environ, start_response):
    """Returns once ?parties= requests are here at the same time, in any process."""
    note(environ, "here")
    deadline = time.monotonic() + 10
    while len(noted(query(environ, "key"))) < int(query(environ, "parties")):
        if time.monotonic() > deadline:
            raise TimeoutError("nobody else came")
        time.sleep(0.01)
    start_response("200 OK", TEXT)
    return [b"met"]


@behaviour
def thread_local(environ, start_response):
    """How often this thread was here: a thread's state is kept between requests."""
    LOCAL.count = getattr(LOCAL, "count", 0) + 1
    start_response("200 OK", TEXT)
    return [str(LOCAL.count).encode()]


LOCAL = threading.local()


@behaviour
def signal_handler(environ, start_response):
    """Signals are the server's; an application that asks for one is told, or heard, and harms nothing."""
    try:
        signal.signal(signal.SIGTERM, lambda *_: None)
        outcome = "set"
    except Exception as error:
        outcome = type(error).__name__
    start_response("200 OK", TEXT)
    return [outcome.encode()]


@behaviour
def imports(environ, start_response):
    """Extension modules of the standard library, which are not linked to libpython."""
    import ctypes
    import decimal
    import sqlite3
    import ssl
    import zlib

    start_response("200 OK", TEXT)
    return [f"{ctypes.sizeof(ctypes.c_long)} {decimal.Decimal(1)} {sqlite3.connect(':memory:')} {ssl.OPENSSL_VERSION} {zlib.crc32(b'')}".encode()]
