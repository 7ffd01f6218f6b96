"""Servers for tests, and the gate that each test passes at its end.

A test that takes `site` or `serve` runs once for every host; `only("nginx")` keeps it to one.

- `site`: one server for all tests of a run, with everything in apps/behaviours. Quick; not to be reloaded or stopped.
- `recorder`: another such one, whose application takes any request and notes it.
- `serve(Mount(...), ...)`: a server for this test alone.

Afterwards the gate looks at each server the test had: its log holds what the test expects and nothing else at warn or
above, its worker processes are those it had, without zombies, and no descriptor is left open.
"""

import os

import pytest

from support.apache import Apache, ApacheGroup, ApachePrefork, ApacheWorker, ModWsgi
from support.nginx import Nginx, NginxGroup, NginxUnbuffered
from support.server import Mount, Server, Site, write_script
from support.stage import Stage
from support.client import until

# One entry per host and execution model.
HOSTS = {
    "nginx": Nginx,
    "nginx-unbuffered": NginxUnbuffered,
    "nginx-group": NginxGroup,
    "apache": Apache,
    "apache-group": ApacheGroup,
    "apache-worker": ApacheWorker,
    "apache-prefork": ApachePrefork,
}

# Starting, loading and reloading differ between nginx and Apache. Within one they do not: the shared server of `site`
# shows each model what an application can see, and tests that start servers of their own take one.
ONE_OF_EACH = ["nginx", "apache"]

# The same tests, asked of another module (make test-reference).
if "HIGHBALL_REFERENCE" in os.environ:
    HOSTS = {"apache": ModWsgi}
    ONE_OF_EACH = ["apache"]


def pytest_generate_tests(metafunc):
    if "host" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("only")
        hosts = list(HOSTS) if {"site", "recorder"} & set(metafunc.fixturenames) else ONE_OF_EACH
        metafunc.parametrize("host", [name for name in only.args if name in HOSTS] if only else hosts)


@pytest.fixture(scope="session")
def stage():
    stage = Stage()
    yield stage
    stage.remove()


class Shared:
    """The servers that outlive a test, by host and application; one that broke is replaced before the next test."""

    def __init__(self, stage):
        self.stage = stage
        self.servers = {}

    def server(self, host, module="behaviours"):
        server = self.servers.get((host, module))
        if server is None or not server.alive:
            site = Site([Mount(f"{module}:application")], threads=8)
            server = HOSTS[host](self.stage, site, self.stage.directory(f"{host}-{module}"), {"HIGHBALL_ENV": "set"})
            self.servers[host, module] = server
            # A process of prefork that once waited for a client keeps its poll set; links to workers are kept, too.
            server.spare_descriptors = {"apache-prefork": 1, "nginx-group": 1, "apache-group": site.threads + 1}.get(host, 0)
            server.start()
            assert server.get("/hello").body == b"hello", server.log.text()
            until(lambda: False, 0.1)
            server.note_workers()
        return server

    def discard(self, server):
        self.servers = {key: other for key, other in self.servers.items() if other is not server}
        server.stop()

    def stop(self):
        complaints = []
        for server in self.servers.values():
            server.log.begin()
            complaints += server.stop() + server.log.unexpected()
        assert not complaints, "\n".join(complaints)


@pytest.fixture(scope="session")
def shared(stage):
    shared = Shared(stage)
    yield shared
    shared.stop()


@pytest.fixture
def site(host, shared, request):
    """The server all tests of a run share."""
    yield from lent(shared, shared.server(host), request)


@pytest.fixture
def recorder(host, shared, request):
    """A server whose application notes each request, whatever it is."""
    yield from lent(shared, shared.server(host, "recorder"), request)


def lent(shared, server, request):
    server.begin()
    request.node.servers = [server]
    yield server
    complaints = server.gate()
    if complaints:
        shared.discard(server)
        pytest.fail("\n".join(complaints), pytrace=False)


class Serve:
    """Makes servers for one test."""

    def __init__(self, stage, host, name):
        self.stage = stage
        self.host = host
        self.name = name
        self.servers = []
        self.scripts = stage.directory(f"{host}-{name}"[:60])

    def site(self, *mounts, **options):
        return Site([mount if isinstance(mount, Mount) else Mount(mount) for mount in mounts], **options)

    def prepare(self, *mounts, environment=None, wrapper=(), **options) -> Server:
        """A server that is configured, not started."""
        directory = self.stage.directory(f"{self.host}-{self.name}"[:60])
        return HOSTS[self.host](self.stage, self.site(*mounts, **options), directory, environment, wrapper)

    def __call__(self, *mounts, **options) -> Server:
        server = self.prepare(*mounts, **options)
        self.servers.append(server)
        server.start()
        server.begin()
        server.log.position = 0
        return server

    def check(self, *mounts, **options):
        """Tests a configuration, as nginx -t or apachectl configtest: (whether it is right, what it says)."""
        if "HIGHBALL_REFERENCE" in os.environ:
            pytest.skip("asks what Highball says of a configuration")
        return self.prepare(*mounts, **options).check()

    def script(self, name, text):
        """A script file that the workers can read."""
        return write_script(self.scripts, name, text)


@pytest.fixture
def serve(host, stage, request):
    """Starts servers for this test alone."""
    maker = Serve(stage, host, request.node.originalname.removeprefix("test_"))
    request.node.servers = maker.servers
    yield maker
    complaints = []
    for server in maker.servers:
        if server.process is None:
            continue
        if not server.stopped:
            complaints += server.gate() + server.stop()
        complaints += [line for line in server.log.unexpected() if line not in complaints]
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for server in getattr(item, "servers", []):
            text = server.log.text()
            report.sections.append((f"{server.host} error log ({server.directory})", text[-6000:] + server.output()[-2000:]))


@pytest.fixture
def key(request):
    """A name for what the application notes of this test."""
    return "".join(character if character.isalnum() else "-" for character in request.node.name)
