"""A worker of a process group with this test in the place of its supervisor and of a server's process."""

import array
import fcntl
import hashlib
import json
import mmap
import os
import signal
import socket
import struct
import time
from pathlib import Path

from support.client import until

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / os.environ.get("HIGHBALL_BUILD_DIR", "target/release")
BOOT = (ROOT / "src/group/worker/boot.py").read_text()
KEY = bytes(range(32))

END, MORE = 1, 2
HELLO, WELCOME, GOAWAY, VERSION = 1, 2, 3, 4
REQUEST, BODY, BODY_FILE, BODY_FAILED, TAKEN, GONE = 16, 17, 18, 19, 20, 21
HEAD, BLOCK, FILE, FINISH, LOG, READ = 32, 33, 34, 35, 36, 37
COMPLETE, FAILED, TRUNCATED, CLIENT_GONE, TIMED_OUT, NOT_HERE = range(6)
LEVELS = ["crit", "error", "warn", "notice", "info", "debug"]

GROUP = {
    "processes": 1, "processes_given": False, "threads": 4, "user": None, "supplementary_groups": None, "umask": None,
    "home": None, "python": None, "python_home": None, "python_path": [], "lang": None, "locale": None,
    "display_name": None, "environ": {}, "startup_timeout": 60000, "request_timeout": 0, "interrupt_timeout": 5000,
    "queue_timeout": 45000, "socket_timeout": 60000, "graceful_timeout": 15000, "shutdown_timeout": 5000,
    "deadlock_timeout": 300000, "maximum_requests": 0, "restart_interval": 0, "memory_limit": 0,
    "memory_limit_hard": 0, "listen_backlog": 100, "response_buffer": 65536, "applications": [], "scripts": [],
}  # fmt: skip


def long(data):
    return struct.pack("<I", len(data)) + data


def short(data):
    return struct.pack("<H", len(data)) + data


class Worker:
    """One process. `applications` are targets; `options` are those of the group."""

    def __init__(self, directory, applications, python="/usr/bin/python3", version=1, reloading=True, serve=True, **options):
        self.directory = directory
        self.logs = []
        self.packets = []
        self.reloading = reloading
        self.socket_path = directory / "worker.sock"
        listed = [{"target": target, "script_reloading": reloading} for target in applications]
        group = {**GROUP, "python_path": [str(directory)], "applications": listed, **options}
        self.threads = group["threads"]
        settings = {
            "version": version,
            "extension": str(BUILD / "libhighball_worker.so"),
            "name": "test",
            "slot": 0,
            "incarnation": 77,
            "server_software": "Test/1.0",
            "key_hash": hashlib.sha256(KEY).hexdigest(),
            "socket": str(self.socket_path),
            "group": group,
        }
        memory = os.memfd_create("settings")
        os.write(memory, json.dumps(settings).encode())
        self.control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.socket_path))
        listener.listen(100)
        life, self.life = os.pipe()
        self.page_file = os.memfd_create("page", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.page_file, 65536 + 256 * self.threads)
        fcntl.fcntl(self.page_file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.page = mmap.mmap(self.page_file, 0, prot=mmap.PROT_READ)
        self.output = directory / "output.txt"
        output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open("/dev/null", os.O_RDONLY)
        there = os.path.exists(settings["extension"])
        extension = os.open(settings["extension"] if there else "/dev/null", os.O_RDONLY)
        given = {0: null, 1: output, 2: output, 3: memory, 4: control.fileno(), 5: listener.fileno(), 6: life, 7: self.page_file, 8: extension}
        high = {number: fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, 100) for number, file in given.items()}
        actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in high.items()]
        arguments = [str(python), "-I", "-X", "utf8", "-c", BOOT]
        self.pid = os.posix_spawn(arguments[0], arguments, {"LANG": "C.UTF-8"}, file_actions=actions, setsid=True)
        self.status = None
        control.close()
        listener.close()
        for file in [*high.values(), memory, life, output, null, extension]:
            os.close(file)
        self.connections = []
        if serve:
            self.wait("ready")
            self.say(do="serve")

    def say(self, **packet):
        self.control.send(json.dumps(packet).encode())

    def receive(self, timeout=10):
        """The next packet that is no record; None at the end."""
        self.control.settimeout(timeout)
        while True:
            try:
                data = self.control.recv(1 << 17)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            packet = json.loads(data)
            if packet["say"] != "log":
                self.packets.append(packet)
                return packet
            self.logs.append((packet["level"], packet["text"]))

    def wait(self, say, timeout=10):
        """The next packet of this name."""
        until_ = time.monotonic() + timeout
        while packet := self.receive(max(0.01, until_ - time.monotonic())):
            if packet["say"] == say:
                return packet
        raise AssertionError(f"no {say}: {self.packets} {self.logs} {self.output.read_text()}")

    def log(self):
        """All records outside requests so far."""
        self.control.setblocking(False)
        try:
            while self.receive(0.05):
                pass
        except (BlockingIOError, TimeoutError):
            pass
        return self.logs

    def connect(self, key=KEY, version=1, hello=True):
        connection = Connection(self, key, version, hello)
        self.connections.append(connection)
        return connection

    def ended(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def end(self, timeout=10):
        """Waits for the process; its exit code."""
        assert until(self.ended, timeout), f"the worker does not end: {self.log()}"
        return self.status

    def kill(self):
        for connection in self.connections:
            connection.close()
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self.end()
        self.control.close()
        self.page.close()
        for file in (self.life, self.page_file):
            try:
                os.close(file)
            except OSError:
                pass

    def begun(self, slot):
        return struct.unpack_from("<I", self.page, 64 + 4 * slot)[0]

    def thread(self, number):
        at = 65536 + 256 * number
        phase = struct.unpack_from("<I", self.page, at + 4)[0]
        (length,) = struct.unpack_from("<I", self.page, at + 24)
        return phase, bytes(self.page[at + 28 : at + 28 + length]).decode()

    def counts(self):
        return struct.unpack_from("<QQ", self.page, 16)


class Answer:
    def __init__(self):
        self.status = None
        self.headers = {}
        self.body = b""
        self.outcome = None
        self.logs = []
        self.files = 0
        self.granted = 0


class Connection:
    def __init__(self, worker, key, version, hello):
        self.worker = worker
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(worker.socket_path))
        self.buffer = b""
        self.descriptors = []
        self.answers = {}
        self.last = 0
        self.goaway = False
        self.closed = False
        self.take = True
        if hello:
            self.send(0, HELLO, b"HBWG" + struct.pack("<H", version) + key)
            kind, payload = self.frame()
            self.first = kind
            if kind == WELCOME:
                self.version, self.window, self.slot, self.slots, self.incarnation = struct.unpack("<HIIIQ", payload)
                self.page = self.descriptors.pop()

    def send(self, stream, kind, payload=b"", flags=0, files=()):
        frame = struct.pack("<IHBB", stream, len(payload), kind, flags) + payload
        if files:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))
            assert self.socket.sendmsg([frame], [rights]) == len(frame)
        else:
            self.socket.sendall(frame)

    def request(self, path, method="GET", target=None, body=None, script=None, slot=0, headers=(), length=None, extra=b""):
        """Begins a request. body: bytes sent with it; b"" none yet (the caller sends it); None: no body."""
        self.last += 1
        facts = {0: method, 1: "", 2: path, 3: "", 4: path, 5: "HTTP/1.1", 6: "http", 7: "localhost", 8: "80"}
        target = target or self.worker_target()
        application = json.dumps({"target": target, "script_reloading": self.worker.reloading}, separators=(",", ":"))
        (identifier,) = struct.unpack("<Q", hashlib.sha256(application.encode()).digest()[:8])
        if script:
            identifier = 0
        if length is None and body is not None:
            length = len(body)
        kind = 0 if body is None else 2 if length == -1 else 1
        payload = struct.pack("<QIBQ", identifier, self.slot + slot, kind, max(length or 0, 0))
        payload += struct.pack("<H", sum(1 << number for number in facts))
        payload += b"".join(long(value.encode("latin-1")) for value in facts.values())
        payload += struct.pack("<H", len(headers))
        for name, value in headers:
            payload += b"\0" + short(name.encode()) + long(value.encode())
        payload += struct.pack("<HH", 0, 0)
        if script:
            payload += long(script.encode()) + short(b"application") + bytes([self.worker.reloading])
        payload += extra
        while len(payload) > 65535:
            self.send(self.last, REQUEST, payload[:65535], MORE)
            payload = payload[65535:]
        self.send(self.last, REQUEST, payload, END if body is None else 0)
        if body:
            self.send(self.last, BODY, body, END)
        self.answers[self.last] = Answer()
        return self.last

    def worker_target(self):
        return self.worker.target

    def frame(self, timeout=10):
        """The next frame, taken in; None at the end."""
        self.socket.settimeout(timeout)
        while True:
            if len(self.buffer) >= 8:
                stream, length, kind, flags = struct.unpack_from("<IHBB", self.buffer)
                if len(self.buffer) >= 8 + length:
                    payload = self.buffer[8 : 8 + length]
                    self.buffer = self.buffer[8 + length :]
                    self.handle(stream, kind, flags, payload)
                    return kind, payload
            try:
                data, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(64))
            except ConnectionResetError:
                data, ancillary = b"", []
            for _, _, rights in ancillary:
                files = array.array("i")
                files.frombytes(rights)
                self.descriptors += files
            if not data:
                self.closed = True
                return None, b""
            self.buffer += data

    def handle(self, stream, kind, flags, payload):
        if kind == GOAWAY:
            self.goaway = True
        answer = self.answers.get(stream)
        if answer is None:
            return
        assert answer.outcome is None, "nothing follows FINISH"
        if kind == HEAD:
            answer.status, reason = struct.unpack_from("<HH", payload)
            at = 4 + reason
            (count,) = struct.unpack_from("<H", payload, at)
            at += 2
            for _ in range(count):
                (length,) = struct.unpack_from("<H", payload, at)
                name = payload[at + 2 : at + 2 + length].decode()
                at += 2 + length
                (length,) = struct.unpack_from("<I", payload, at)
                answer.headers[name] = payload[at + 4 : at + 4 + length].decode("latin-1")
                at += 4 + length
        elif kind == BLOCK:
            answer.body += payload
            if self.take:
                self.send(stream, TAKEN, struct.pack("<I", len(payload)))
        elif kind == FILE:
            offset, length = struct.unpack("<QQ", payload)
            file = self.descriptors.pop(0)
            answer.body += os.pread(file, length, offset)
            answer.files += 1
            os.close(file)
        elif kind == LOG:
            answer.logs.append((LEVELS[payload[0]], payload[1:].decode()))
        elif kind == READ:
            answer.granted += struct.unpack("<I", payload)[0]
        elif kind == FINISH:
            assert flags & END
            answer.outcome = payload[0]

    def answer(self, stream, timeout=10):
        """Reads until the stream is over."""
        end = time.monotonic() + timeout
        answer = self.answers[stream]
        while answer.outcome is None and not self.closed:
            self.frame(max(0.01, end - time.monotonic()))
        return answer

    def get(self, path, **options):
        return self.answer(self.request(path, **options))

    def close(self):
        self.socket.close()
        for file in self.descriptors:
            os.close(file)
        self.descriptors = []
        if hasattr(self, "page"):
            os.close(self.page)
            del self.page
