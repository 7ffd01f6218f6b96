"""What is asked of each server: a request, the answer it has to give, and how much of it at once."""

from dataclasses import dataclass

OURS = ("nginx pool", "nginx group", "Apache embedded", "Apache group")
# As they are named in PEERS=, and the servers each stands for.
PEERS = {
    "uwsgi": ("uWSGI",),
    "gunicorn": ("gunicorn",),
    "mod_wsgi": ("mod_wsgi", "mod_wsgi daemon"),
    "granian": ("granian",),
    "bjoern": ("bjoern",),
}

HELLO = b"Hello, world\n"
ENVIRON = b"0123456789abcdef" * 64
HEADERS = (
    ("Accept", "text/html,application/xhtml+xml"),
    ("Accept-Language", "en,de;q=0.7"),
    ("Cookie", "session=0123456789abcdef; theme=dark"),
    ("Referer", "http://localhost/before"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0"),
    ("X-Request-Id", "7f3a2b1c"),
)
ITEM = dict(path="/items/7?page=2", answer=b"item 7, page 2\n")


@dataclass(frozen=True)
class Workload:
    name: str
    text: str
    application: str
    answer: bytes
    path: str = "/"
    headers: tuple = ()
    body: bytes = b""
    connections: int = 32
    threads: int = 16
    processes: int = 1
    # Servers without Python, and the file that the static ones of them send.
    controls: tuple = ()
    static: str = ""
    # Peers that cannot do it, and why.
    without: tuple = ()
    # What is compared: CPU of a request, or requests in a second.
    rate: bool = False


WORKLOADS = (
    Workload(
        "hello", "13 bytes", "plain:hello", HELLO,
        controls=("nginx return", "nginx static", "Apache static"), static="hello.txt",
    ),
    Workload(
        "hello-1", "13 bytes, one connection", "plain:hello", HELLO, connections=1,
        controls=("nginx return", "Apache static"), static="hello.txt",
    ),
    Workload(
        "environ", "the application reads 10 keys and answers 1 KiB; 6 headers", "plain:keys", ENVIRON,
        path="/?page=2", headers=HEADERS, controls=("nginx return",),
    ),
    Workload("stream", "100 blocks of 1 KiB from a generator", "plain:stream", b"x" * 102400),
    Workload(
        "big", "1 MiB in one bytestring", "plain:big", b"x" * 1024 * 1024,
        controls=("nginx static", "Apache static"), static="big.bin",
    ),
    Workload(
        "file", "10 MiB through wsgi.file_wrapper", "plain:file", b"x" * 10 * 1024 * 1024,
        connections=8, controls=("nginx static", "Apache static"), static="file.bin",
    ),
    Workload("post", "the application reads 64 KiB", "plain:post", b"65536\n", body=b"x" * 65536),
    Workload(
        "sleep", "the application sleeps 10 ms", "plain:sleep", HELLO, connections=64, threads=64, rate=True,
        without=(("bjoern", "it has one thread"),),
    ),
    Workload("django", "a Django view", "django_view:application", **ITEM),
    Workload("flask", "a Flask view", "flask_view:application", **ITEM),
    Workload(
        "processes", "hello, with two processes", "plain:hello", HELLO, processes=2,
        controls=("nginx return",), without=(("bjoern", "it has one process"),),
    ),
)  # fmt: skip
# Each server alone, as what it shares with another is counted half.
MEMORY = Workload("memory", "memory", "plain:hello", HELLO, controls=("nginx return", "Apache static"), static="hello.txt")
