"""Every file of conf-examples/ starts and serves, with its example paths put where the test has them."""

import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest

from support.apache import binary as apache_binary
from support.client import Connection, exchange, until
from support.nginx import binary as nginx_binary
from support import processes
from support.stage import APACHE_MODULE, NGINX_MODULE, TESTS, free_port, open_to_all, worker_user

EXAMPLES = TESTS.parent / "conf-examples"

# They are started as their users start them, without a sanitizer.
pytestmark = pytest.mark.no_sanitizer


@pytest.fixture(scope="module")
def sites(stage):
    """/srv/mysite and /srv/blog of the examples."""
    mysite, blog = stage.directory("mysite"), stage.directory("blog")
    python = stage.venv / "bin" / "python"
    for directory in (mysite, blog):
        (directory / "venv").symlink_to(stage.venv)
    for name in ("blog.py", "blog.wsgi"):
        shutil.copy(EXAMPLES / name, blog / name)
    run = {"cwd": mysite, "check": True, "timeout": 60, "stdout": subprocess.DEVNULL}
    subprocess.run([python, "-m", "django", "startproject", "mysite", "."], **run)
    with open(mysite / "mysite" / "settings.py", "a") as settings:
        settings.write("\nSTATIC_ROOT = BASE_DIR / 'static'\n")
    subprocess.run([python, "manage.py", "collectstatic", "--noinput", "--verbosity", "0"], **run)
    subprocess.run([python, "manage.py", "migrate", "--verbosity", "0"], **run)
    open_to_all(mysite)
    open_to_all(blog)
    if worker_user():
        shutil.chown(mysite, worker_user())
        shutil.chown(mysite / "db.sqlite3", worker_user())
    return SimpleNamespace(mysite=mysite, blog=blog)


@pytest.fixture(params=sorted(path.name for path in EXAMPLES.glob("*.conf")))
def example(request, stage, sites):
    """A running server of one example."""
    directory = stage.directory(request.param)
    for name in ("highball", "libhighball_worker.so"):
        stage.artefact(name)
    port = free_port()
    text = (EXAMPLES / request.param).read_text()
    types = directory / "mime.types"
    nginx = request.param.startswith("nginx")
    types.write_text("types { text/css css; text/html html; }\n" if nginx else "text/css css\ntext/html html\n")
    for old, new in (
        ("/srv/mysite", sites.mysite),
        ("/srv/blog", sites.blog),
        (f"/usr/lib/nginx/modules/{NGINX_MODULE}", stage.artefact(NGINX_MODULE)),
        (f"/usr/lib/apache2/modules/{APACHE_MODULE}", stage.artefact(APACHE_MODULE)),
        ("127.0.0.1:8000", f"127.0.0.1:{port}"),
        ("/run/highball", stage.root / "s" / directory.name[:3]),
        ("/run/", f"{directory}/"),
        ("DefaultRuntimeDir /run", f"DefaultRuntimeDir {directory}"),
        ("/var/log/nginx/", f"{directory}/"),
        ("/var/log/apache2/", f"{directory}/"),
        ("/etc/nginx/mime.types", types),
        ("/etc/mime.types", types),
    ):
        text = text.replace(old, str(new))
    if not worker_user():
        text = "\n".join(line for line in text.splitlines() if "www-data" not in line)
    configuration = directory / request.param
    configuration.write_text(text)
    if nginx:
        command = [nginx_binary(), "-e", directory / "error.log", "-p", directory, "-c", configuration, "-g", "daemon off;"]
    else:
        command = [apache_binary(), "-f", configuration, "-DFOREGROUND"]
    process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 15
    while True:
        try:
            Connection(port, timeout=1).close()
            break
        except OSError:
            log = directory / "error.log"
            assert process.poll() is None and time.monotonic() < deadline, log.read_text() if log.exists() else request.param
            time.sleep(0.02)
    yield SimpleNamespace(name=request.param, port=port, log=directory / "error.log", process=process)
    process.send_signal(signal.SIGTERM)
    process.wait(15)
    assert until(lambda: not processes.in_session(process.pid), 3)


def test_the_example_serves(example):
    def get(path):
        return exchange(example.port, "GET", path)

    if "django" in example.name:
        page = get("/admin/login/")
        assert page.status == 200 and "Django administration" in page.text
        style = get("/static/admin/css/base.css")
        assert style.status == 200 and style.header("Content-Type") == "text/css"
    else:
        assert get("/").header("Location").endswith("/blog/")
        front = get("/blog/")
        assert front.status == 200 and "/blog/posts/1" in front.text and "stage example" in front.text
        assert "post 1" in get("/blog/posts/1").text
        assert get("/blogs").status == 404
    log = example.log.read_text()
    assert not [line for line in log.splitlines() if any(f"{level}]" in line for level in ("warn", "crit", "alert", "emerg"))], log
    assert "HB0" not in log and "Traceback" not in log, log
