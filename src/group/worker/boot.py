def boot():
    """The main thread of a worker of a process group. Its descriptors: see docs/process-groups-protocol.md, section 2."""
    import faulthandler
    import os
    import sys

    faulthandler.enable(2)

    def fail(report):
        import json
        import socket

        with socket.socket(fileno=4) as control:
            control.send(json.dumps({"say": "failed", "report": report}).encode())
        os._exit(1)

    name = "%s.%s.%s" % sys.version_info[:3]
    if sys.version_info < (3, 10):
        fail("HB0204 Python %s (%s) cannot run a process group; it takes 3.10 or newer" % (name, sys.executable))

    import json
    import signal
    from importlib.machinery import ExtensionFileLoader
    from importlib.util import module_from_spec, spec_from_file_location

    settings = os.pread(3, os.fstat(3).st_size, 0).decode()
    os.close(3)
    told = json.loads(settings)
    path = told["extension"]
    if told["group"]["locale"]:
        import locale

        try:
            locale.setlocale(locale.LC_ALL, told["group"]["locale"])
        except locale.Error as error:
            print("locale=%s: %s" % (told["group"]["locale"], error), file=sys.stderr, flush=True)
    # The supervisor has it open: at the path there may be another version by now.
    opened = "/proc/self/fd/8"
    try:
        spec = spec_from_file_location("highball_worker", opened, loader=ExtensionFileLoader("highball_worker", opened))
        worker = module_from_spec(spec)
        spec.loader.exec_module(worker)
        os.close(8)
    except Exception as error:
        fail(
            "HB0204 Python %s (%s) cannot load \"%s\": %s; it must be a CPython with the global interpreter lock, for this "
            "machine, and allowed to read the file" % (name, sys.executable, path, error)
        )

    woken, wake = os.pipe()
    os.set_blocking(wake, False)

    def ready():
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        set_signal = getattr(signal.signal, "__wrapped__", signal.signal)
        for number in (signal.SIGTERM, signal.SIGINT):
            set_signal(number, lambda *_: worker.drain())

    try:
        worker.serve(settings, wake, name, sys.prefix, ready)
    except RuntimeError as error:
        print(error, file=sys.__stderr__, flush=True)
        os._exit(1)
    while not worker.is_over():
        try:
            os.read(woken, 512)
        except InterruptedError:
            pass
    if worker.stop():
        return
    # A thread of the application does not come back: Python itself cannot be taken down under it.
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    os._exit(0)


boot()
