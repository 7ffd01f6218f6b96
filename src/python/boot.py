"""What Highball does in Python itself, once per interpreter.

Run by interpreter.rs in a namespace of its own, with these names given: ``log(text)`` writes a record to the server's
error log, ``note(text)`` one at level info, ``unfinished()`` says that this thread has begun a line, ``wake()`` tells the server to look at its signals, ``host_signals`` are the signals its threads block,
``path`` are directories for the front of ``sys.path``. ``own_process`` says that this is a worker of a process group,
whose signals are Python's own; there ``record(level, text)`` writes a record with a level of ``logging``, and
``forked()`` is called in a child that the application forks.
"""

import atexit
import hashlib
import importlib
import io
import os
import signal
import site
import sys
import threading
import traceback
import types


class LogWriter(io.RawIOBase):
    """Bytes into the error log, a record for each complete line; one buffer per thread, so that lines stay whole."""

    def __init__(self):
        self._pending = threading.local()

    def writable(self):
        return True

    def write(self, data):
        data = bytes(data)
        pending = getattr(self._pending, "data", b"") + data
        end = pending.rfind(b"\n") + 1
        if not end and len(pending) > 65536:
            end = len(pending)
        self._pending.data = pending[end:]
        if len(pending) > end:
            unfinished()
        if end:
            log(pending[:end].decode("utf-8", "backslashreplace"))
        return len(data)

    def flush(self):
        pending = getattr(self._pending, "data", b"")
        if pending:
            self._pending.data = b""
            log(pending.decode("utf-8", "backslashreplace"))


class LogStream(io.TextIOBase):
    """sys.stdout and sys.stderr. No lock is shared between threads: each writes whole lines of its own."""

    encoding = "utf-8"
    errors = "backslashreplace"
    mode = "w"

    def __init__(self, name):
        self.name = name
        self.buffer = LogWriter()

    def writable(self):
        return True

    def write(self, text):
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.buffer.write(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def flush(self):
        self.buffer.flush()


class FileWrapper:
    """wsgi.file_wrapper (PEP 3333, "Optional Platform-Specific File Handling")."""

    def __init__(self, filelike, block_size=8192):
        self.filelike = filelike
        self.block_size = block_size
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self):
        return self

    def __next__(self):
        data = self.filelike.read(self.block_size)
        if data:
            return data
        raise StopIteration


def regular_file(wrapper):
    """Descriptor and position of a plain binary file, else None.

    Only the types whose bytes are those of the descriptor: a GzipFile too has a fileno(), of the compressed file.
    """
    file = wrapper.filelike
    if type(file).__name__ == "_TemporaryFileWrapper":
        file = file.file
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file
    if type(raw) is not io.FileIO or not raw.readable():
        return None
    if type(file) is io.BufferedRandom:
        file.flush()
    return raw.fileno(), file.tell()


def load_script(path, source):
    """Runs a script as a module of its own, whatever its file is called. Named as mod_wsgi names it."""
    name = "_mod_wsgi_" + hashlib.md5(path.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
    module = types.ModuleType(name)
    module.__file__ = path
    code = compile(source, path, "exec", dont_inherit=True)
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def load_module(name):
    # A finder may remember that a file was missing which has come since.
    importlib.invalidate_caches()
    return importlib.import_module(name)


def find_callable(module, name):
    """Follows a dotted name; LookupError carries what there is instead."""
    value = module
    for part in name.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            names = [key for key, found in vars(module).items() if callable(found) and not key.startswith("_")]
            raise LookupError(", ".join(names[:8])) from None
    return value


def format_exception(error):
    """The traceback, without the lines of this file; of a very long one the beginning and the end."""
    kept = error.__traceback__
    while kept is not None and kept.tb_frame.f_code.co_filename == __file__:
        kept = kept.tb_next
    error.__traceback__ = kept
    text = "".join(traceback.format_exception(type(error), error, kept))
    return text if len(text) <= 65536 else text[:32768] + "\n[...]\n" + text[-32768:]


def flush():
    """Ends the lines that this thread has begun on the streams of boot.py."""
    stdout.flush()
    stderr.flush()


def stop():
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


class Retired(BaseException):
    """Raised in a thread whose request is given up, because its server process has to end."""


class RequestTimeout(BaseException):
    """Raised in a thread whose request takes longer than allowed."""


def frames(thread):
    """What a thread executes just now, the innermost call last: file, line, function."""
    frame = sys._current_frames().get(thread)
    found = []
    while frame is not None and len(found) < 200:
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    found.reverse()
    return found


def format_frames(found):
    return "".join(traceback.format_list([traceback.FrameSummary(*frame) for frame in found if frame[0] != __file__]))


def stacks(notes):
    """The stacks of all threads, each with its note where there is one."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for thread in list(sys._current_frames()):
        found = [frame for frame in frames(thread) if frame[0] not in (__file__, "<string>")]
        if found or thread in notes:
            title = notes.get(thread) or names.get(thread, "a thread")
            parts.append(f"{title}\n{format_frames(found)}")
    return "\n".join(parts)


_signal = signal.signal


def _ignore_signal(signalnum, handler):
    """signal.signal(): the server's handlers stay the server's."""
    name = getattr(signalnum, "name", signalnum)
    note(f"signal.signal({name}) was ignored: inside a web server signals belong to the server")
    return signal.getsignal(signalnum)


def _set_signal(signalnum, handler):
    """signal.signal() in a worker: as in any program on the main thread. Requests run on others, which may not."""
    if threading.current_thread() is threading.main_thread():
        return _signal(signalnum, handler)
    name = getattr(signalnum, "name", signalnum)
    note(f"signal.signal({name}) was ignored: only a worker's main thread, which imports the application, may set it")
    return signal.getsignal(signalnum)


def _let_signals_through(function):
    """Children are started with the signals let through that the server's threads block, or terminate() would do
    nothing to them. A signal for the server that arrives here meanwhile is passed on by wake()."""

    def start(*arguments, **keywords):
        before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            return function(*arguments, **keywords)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            wake()

    start.__name__ = start.__qualname__ = getattr(function, "__name__", "start")
    start.__doc__ = function.__doc__
    return start


def _own_signals():
    signal.signal = _set_signal if own_process else _ignore_signal
    if own_process:
        os.register_at_fork(after_in_child=_leave_the_worker)
    if not host_signals:
        return
    import _posixsubprocess
    import subprocess

    fork_exec = _let_signals_through(_posixsubprocess.fork_exec)
    _posixsubprocess.fork_exec = fork_exec
    if hasattr(subprocess, "_fork_exec"):
        subprocess._fork_exec = fork_exec
    os.posix_spawn = _let_signals_through(os.posix_spawn)
    os.posix_spawnp = _let_signals_through(os.posix_spawnp)
    os.register_at_fork(after_in_child=_leave_the_server)


def _leave_the_server():
    """In a forked child: its signals and its output are its own."""
    signal.signal = _signal
    for number in host_signals:
        _signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)


def _leave_the_worker():
    """In a forked child: the worker's connections and its request are not this process's."""
    forked()
    signal.signal = _signal
    for number in (signal.SIGTERM, signal.SIGINT):
        _signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)


def _log_with_levels():
    """Where the application configures no logging, its records keep their level."""
    import logging

    class Records(logging.Handler):
        def emit(self, entry):
            try:
                record(entry.levelno, self.format(entry))
            except Exception:
                self.handleError(entry)

    logging.lastResort = Records(logging.WARNING)


def _add_paths():
    """Directories at the front, in the order given; .pth files in them are read, and what these add follows."""
    before = list(sys.path)
    for directory in path:
        site.addsitedir(directory)
    new = [entry for entry in sys.path if entry not in before]
    first = list(dict.fromkeys(path))
    sys.path[:] = first + [entry for entry in new if entry not in first] + [e for e in before if e not in first]


stdout = sys.stdout = sys.__stdout__ = LogStream("<stdout>")
stderr = sys.stderr = sys.__stderr__ = LogStream("<stderr>")
_own_signals()
_add_paths()
if own_process:
    _log_with_levels()
