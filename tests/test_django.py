"""A Django project made by startproject: what a newcomer's first site does."""

import hashlib
import os
import re
import shutil
import subprocess

import pytest

from conftest import HOSTS
from support.server import Mount, Site
from support.stage import TESTS, open_to_all, worker_user


@pytest.fixture(scope="module")
def project(stage):
    """django-admin startproject, migrated, with an administrator; the workers own the database."""
    directory = stage.directory("django")
    python = stage.venv / "bin" / "python"

    def run(*command):
        environment = {"PATH": "/usr/bin:/bin", "DJANGO_SUPERUSER_PASSWORD": "admin", "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run(command, cwd=directory, check=True, timeout=120, env=environment, stdout=subprocess.DEVNULL)

    run(python, "-m", "django", "startproject", "mysite", ".")
    shutil.copy(TESTS / "apps" / "django_overlay" / "views.py", directory / "mysite" / "views.py")
    with open(directory / "mysite" / "urls.py", "a") as urls:
        urls.write("\nfrom mysite.views import urlpatterns as views\n\nurlpatterns += views\n")
    with open(directory / "mysite" / "settings.py", "a") as settings:
        settings.write("\nALLOWED_HOSTS = ['*']\nSTATIC_ROOT = BASE_DIR / 'static'\n")
    run(python, "manage.py", "migrate", "--verbosity", "0")
    run(python, "manage.py", "createsuperuser", "--noinput", "--username", "admin", "--email", "admin@example.org")
    run(python, "manage.py", "collectstatic", "--noinput", "--verbosity", "0")
    open_to_all(directory)
    if worker_user():
        shutil.chown(directory, worker_user())
        shutil.chown(directory / "db.sqlite3", worker_user())
    return directory


@pytest.fixture(scope="module")
def running(stage, project):
    """One server per host for this file."""
    servers = {}

    def server(host):
        if host not in servers:
            site = Site(
                [Mount("mysite.wsgi:application")], path=[project], static={"/static/": project / "static"}, threads=4
            )
            servers[host] = HOSTS[host](stage, site, stage.directory(f"{host}-django"))
            servers[host].start()
        return servers[host]

    yield server
    complaints = [line for server in servers.values() for line in server.stop()]
    assert not complaints, "\n".join(complaints)


@pytest.fixture
def django(host, running, request):
    server = running(host)
    request.node.servers = [server]
    # A first request makes threads' connections and caches.
    server.get("/echo/warm")
    server.begin()
    yield server
    complaints = server.gate()
    assert not complaints, "\n".join(complaints)


def test_the_admin_can_be_logged_into(django):
    """CSRF token, session cookie, the database, redirects."""
    http = django.http
    page = http.get("/admin/", follow_redirects=True)
    assert page.status_code == 200 and "Log in" in page.text
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)[1]
    form = {"username": "admin", "password": "admin", "csrfmiddlewaretoken": token, "next": "/admin/"}
    wrong = http.post("/admin/login/", data={**form, "password": "wrong"})
    assert wrong.status_code == 200 and "correct username and password" in wrong.text.lower()
    answer = http.post("/admin/login/?next=/admin/", data=form)
    assert answer.status_code == 302 and answer.headers["location"] == "/admin/"
    assert "sessionid" in http.cookies
    page = http.get("/admin/")
    assert page.status_code == 200 and "Site administration" in page.text
    users = http.get("/admin/auth/user/")
    assert users.status_code == 200 and "admin@example.org" in users.text
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', http.get("/admin/auth/group/add/").text)[1]
    name = f"editors of {django.host}"
    added = http.post("/admin/auth/group/add/", data={"name": name, "csrfmiddlewaretoken": token}, follow_redirects=True)
    assert added.status_code == 200 and name in added.text


def test_a_missing_csrf_token_is_refused(django):
    assert django.http.post("/admin/login/", data={"username": "admin", "password": "admin"}).status_code == 403
    django.allow_log("Forbidden")


def test_static_files_are_the_server_s(django):
    answer = django.http.get("/static/admin/css/base.css")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/css")


@pytest.mark.parametrize("size", [10, 100_000, 6_000_000], ids=["small", "in memory", "in a file"])
def test_files_are_uploaded(django, size):
    content = os.urandom(size)
    answer = django.http.post("/upload", files={"file": ("käse.bin", content)}, data={"note": "grüße"})
    assert answer.json() == {
        "name": "käse.bin", "size": size, "sha256": hashlib.sha256(content).hexdigest(), "note": "grüße",
    }  # fmt: skip


def test_a_streamed_download_is_whole(django):
    answer = django.http.get("/download")
    assert answer.content == b"".join(b"%07d\n" % number for number in range(20000))


def test_a_file_response_is_whole(django, project):
    answer = django.http.get("/file")
    assert answer.content == (project / "mysite" / "views.py").read_bytes()
    assert answer.headers["content-disposition"] == 'attachment; filename="views.py"'


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
def test_an_async_view_reads_the_body(django, size):
    """asgiref reads wsgi.input on a thread of its own."""
    answer = django.http.post("/async-body", content=b"z" * size)
    assert answer.json() == {"size": size, "first": "z" * min(size, 10)}


def test_an_async_stream_arrives(django):
    answer = django.http.get("/async-stream")
    assert answer.text == "0 1 2 3 4 "
    django.allow_log("StreamingHttpResponse must consume asynchronous iterators|warnings.warn")


def test_a_broken_view_is_django_s_debug_page_and_one_log_entry(django):
    answer = django.http.get("/broken")
    assert answer.status_code == 500 and "broken view" in answer.text
    django.expect_log("broken view", times=None)
    django.allow_log("Internal Server Error")


@pytest.mark.parametrize("path", ["gr%C3%BC%C3%9Fe", "a%20b", "a+b", "a/b//c"])
def test_paths_reach_django_as_text(django, path):
    from urllib.parse import unquote

    answer = django.get(f"/echo/{path}")
    expected = unquote(path)
    # Both servers merge slashes.
    assert answer.text == expected.replace("//", "/")


def test_a_page_that_does_not_exist_is_django_s(django):
    answer = django.http.get("/nothing-here")
    assert answer.status_code == 404 and "Page not found" in answer.text
    django.allow_log("Not Found")


def test_requests_run_side_by_side_with_the_database(django):
    import threading

    results = []

    def visit():
        results.append(django.get("/admin/login/").status)

    threads = [threading.Thread(target=visit) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [200] * 20
