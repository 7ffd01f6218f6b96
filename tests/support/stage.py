"""Puts what the servers run where their unprivileged workers can read it: modules, applications, environment."""

import importlib.metadata
import os
import pwd
import random
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
NGINX_MODULE = "libngx_http_highball_module.so"
APACHE_MODULE = "libmod_highball.so"
COMMAND = "highball"


class Stage:
    """One directory for a whole run. Everything in it, and every directory above it, is open to any user."""

    def __init__(self):
        self.python = os.environ.get("PYTHON", "/usr/bin/python3")
        self.build = Path(os.environ.get("HIGHBALL_BUILD_DIR", TESTS.parent / "target" / "release")).resolve()
        self.root = Path(tempfile.mkdtemp(prefix="highball-tests-", dir=os.environ.get("HIGHBALL_TEST_DIR")))
        self.root.chmod(0o755)
        closed = first_closed(self.root)
        if closed:
            raise RuntimeError(f"{closed} is closed to other users: set HIGHBALL_TEST_DIR to a directory that is not")
        self.bin = self.root / "bin"
        self.bin.mkdir()
        self.apps = self.root / "apps"
        shutil.copytree(TESTS / "apps", self.apps, ignore=shutil.ignore_patterns("__pycache__"))
        open_to_all(self.apps)
        # Where applications note what they did.
        notes = self.root / "notes"
        notes.mkdir()
        notes.chmod(0o777)
        self._venv = None
        self._count = 0

    def artefact(self, name):
        """A built file, copied once. Missing files fail the test that needs them."""
        staged = self.bin / Path(name).name
        if not staged.exists():
            built = self.build / name
            if not built.exists():
                raise FileNotFoundError(f"{built} is not built: run make build, or set HIGHBALL_BUILD_DIR")
            shutil.copy2(built, staged)
            staged.chmod(0o755)
        return staged

    @property
    def venv(self):
        """The environment applications run in, made by the Python the modules are built for."""
        if self._venv is None:
            self._venv = self.make_venv("venv", packages=True)
        return self._venv

    def make_venv(self, name, packages=False):
        venv = self.root / name
        subprocess.run([self.python, "-I", "-m", "venv", "--without-pip", venv], check=True, timeout=60)
        if packages:
            site = next((venv / "lib").glob("python*/site-packages"))
            if (found := installed_here()) and site.parent.name == f"python{sys.version_info[0]}.{sys.version_info[1]}":
                for distribution in found:
                    copy_distribution(distribution, site)
            else:
                requirements = TESTS / "apps" / "requirements.txt"
                subprocess.run(
                    [sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "-q", "-r", requirements],
                    check=True,
                    timeout=300,
                )
        open_to_all(venv)
        return venv

    @property
    def certificates(self):
        """A directory with an authority (ca), a server (localhost, 127.0.0.1) and a client, each .pem and .key."""
        directory = self.root / "certificates"
        if not directory.exists():
            directory.mkdir()

            def openssl(*arguments):
                subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=60)

            openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Test CA", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem")
            (directory / "server.ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
            (directory / "client.ext").write_text("extendedKeyUsage=clientAuth\n")
            for name, subject in (("server", "/CN=localhost"), ("client", "/O=Test/CN=A Client")):
                openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
                openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                        "-extfile", f"{name}.ext", "-out", f"{name}.pem")  # fmt: skip
            open_to_all(directory)
        return directory

    def directory(self, name):
        """A fresh directory for one server or one test."""
        self._count += 1
        path = self.root / f"{self._count:03}-{name}"
        path.mkdir()
        return path

    def remove(self):
        if not os.environ.get("HIGHBALL_KEEP"):
            shutil.rmtree(self.root, ignore_errors=True)


def installed_here():
    """The distributions of apps/requirements.txt with what they need, if this environment has them all."""
    lines = (TESTS / "apps" / "requirements.txt").read_text().splitlines()
    found, todo = {}, [re.match(r"[\w.-]+", line)[0] for line in lines if line]
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            return None
        for requirement in distribution.requires or []:
            if "extra ==" not in requirement and "python_version <" not in requirement and "platform" not in requirement:
                todo.append("".join(c if c.isalnum() or c in "-_." else " " for c in requirement).split()[0])
    return list(found.values())


def copy_distribution(distribution, site):
    for file in distribution.files or []:
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(distribution.locate_file(file), target)


def open_to_all(path):
    """Makes a tree readable by any user, whatever umask it was made with."""
    for directory, _, files in os.walk(path):
        os.chmod(directory, 0o755)
        for file in files:
            name = os.path.join(directory, file)
            if not os.path.islink(name):
                os.chmod(name, (os.stat(name).st_mode & 0o100) and 0o755 or 0o644)


def first_closed(path):
    """The first directory on the way to `path` that other users cannot enter."""
    for directory in [*reversed(path.resolve().parents), path]:
        if not directory.stat().st_mode & stat.S_IXOTH:
            return directory
    return None


def worker_user():
    """The unprivileged user of the servers' workers; None where the suite itself is unprivileged."""
    if os.geteuid() != 0:
        return None
    for name in ("www-data", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise RuntimeError("no unprivileged user www-data or nobody")


def free_port():
    """A port below the range the kernel gives to clients, so that no connection takes it in between."""
    for _ in range(200):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")
