"""Another version of Highball is installed under load: what runs goes on in its own version until the server is replaced."""

import copy
import os
import shutil
import signal
import subprocess

import pytest

from support.client import until
from support.groups import seen_by_root, supervision
from support.load import Load
from support.processes import alive
from support.stage import APACHE_MODULE, COMMAND, NGINX_MODULE, TESTS

# Built by scripts/test.
NEXT = TESTS.parent / "target" / "next" / "debug"

FILES = [COMMAND, NGINX_MODULE, APACHE_MODULE, "libhighball_worker.so"]


@pytest.fixture
def own_stage(stage):
    """A stage whose artefacts are its own, to be replaced."""
    own = copy.copy(stage)
    own.bin = stage.directory("upgrade")
    return own


def install(own, directory):
    """As a package manager does: each file is replaced at once, and what is in use stays what it was."""
    for name in FILES:
        new = own.bin / f"{name}.new"
        shutil.copy2(directory / name, new)
        new.chmod(0o755)
        os.rename(new, own.bin / name)


def supervisors(server):
    return {pid for pid, role in supervision(server.log.path) if role == "supervisor"}


def needs_next():
    if not (NEXT / "libhighball_worker.so").exists():
        pytest.skip("make test builds the next version of the protocol")


@pytest.fixture
def installed(serve, own_stage):
    needs_next()
    serve.stage = own_stage
    server = serve("behaviours:application", threads=8, group="processes=2")
    return server, server.groups.serving(2)


@seen_by_root
@pytest.mark.no_sanitizer
@pytest.mark.only("nginx-group", "apache-group")
def test_until_the_server_is_restarted_everything_stays_what_it_was(installed, own_stage):
    """Workers and supervisors that are started after the upgrade are still of the version that runs."""
    server, before = installed
    first = supervisors(server)
    with Load(server) as load:
        load.reach(20)
        install(own_stage, NEXT)
        server.reload()
        assert server.groups.pids() == before and supervisors(server) == first
        assert server.groups.ask("reload", "site").returncode == 0
        os.kill(*first, signal.SIGKILL)
        assert until(lambda: supervisors(server) and supervisors(server) != first)
        assert not server.groups.serving(2) & before
        assert server.groups.ask("reload", "site").returncode == 0
        load.reach(load.count + 50)
    assert not load.failures, load.failures[:3]
    for _ in range(2):
        assert not server.stop()
        server.start()
        server.stopped = False
        server.begin()
        assert server.get("/hello").body == b"hello", "and then it is the other one"
        install(own_stage, own_stage.build)


@seen_by_root
@pytest.mark.no_sanitizer
@pytest.mark.only("nginx-group")
def test_a_binary_upgrade_of_nginx_meets_the_next_version_and_loses_nothing(serve, own_stage):
    """USR2: two masters, each with a supervisor of its own version; then the old one leaves."""
    needs_next()
    serve.stage = own_stage
    server = serve.prepare("behaviours:application", threads=8, group="processes=2")
    # Only a daemon takes USR2.
    server.configuration.write_text(server.configuration.read_text().replace("daemon off;", "daemon on;"))
    subprocess.run(server.command(), check=True, timeout=10)
    masters = [master(server)]
    try:
        before, old = server.groups.serving(2), supervisors(server)
        with Load(server) as load:
            load.reach(20)
            install(own_stage, NEXT)
            os.kill(masters[0], signal.SIGUSR2)
            assert until(lambda: len(supervisors(server)) == 2, 10), server.log.text()[-2000:]
            assert until(lambda: master(server) not in (None, masters[0]), 10)
            masters.append(master(server))
            load.reach(load.count + 50)
            os.kill(masters[0], signal.SIGQUIT)
            assert until(lambda: not alive(masters[0]), 15)
            assert until(lambda: len(supervisors(server)) == 1 and not supervisors(server) & old, 10)
            load.reach(load.count + 100)
            assert not server.groups.serving(2) & before
        assert not load.failures, load.failures[:3]
        os.kill(masters[1], signal.SIGTERM)
        assert until(lambda: not alive(masters[1]), 10)
        assert server.left_of_groups() == []
    finally:
        for pid in filter(alive, masters):
            os.kill(pid, signal.SIGTERM)


def master(server):
    """The pid in nginx's file; none while one file takes the place of another."""
    try:
        return int((server.directory / "run" / "nginx.pid").read_text())
    except (OSError, ValueError):
        return None
