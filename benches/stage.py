"""What the servers need, gathered where the users of their workers can read it."""

import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import workloads

ROOT = Path(__file__).resolve().parent.parent
BUILD = Path(os.environ.get("HIGHBALL_BUILD_DIR", ROOT / "target" / "release")).resolve()
ENVIRONMENTS = ROOT / "target" / "bench"
ARTEFACTS = ("libngx_http_highball_module.so", "libmod_highball.so", "libhighball_worker.so", "highball")
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


class Stage:
    def __init__(self, directory, peers):
        self.directory = directory
        self.directory.chmod(0o755)
        self.documents = directory / "documents"
        self.packages = directory / "packages"
        self.user = worker_user()
        self.nginx = program("nginx") or sys.exit("nginx is not installed")
        self.apache = program("apache2", "httpd") or sys.exit("Apache httpd is not installed")
        for artefact in ARTEFACTS:
            if not (BUILD / artefact).exists():
                sys.exit(f"{BUILD / artefact} is not built: make build")
        ignored = shutil.ignore_patterns("pip*", "setuptools*")
        shutil.copytree(Path(__file__).parent / "applications", self.documents)
        shutil.copytree(site_packages(ENVIRONMENTS / "applications"), self.packages, ignore=ignored)
        (self.documents / "hello.txt").write_bytes(workloads.HELLO)
        (self.documents / "big.bin").write_bytes(b"x" * 1024 * 1024)
        (self.documents / "file.bin").write_bytes(b"x" * 10 * 1024 * 1024)
        self.versions = {
            "nginx": last_word([self.nginx, "-v"]).removeprefix("nginx/"),
            "Apache": last_word([self.apache, "-v"], line=0, word=2).removeprefix("Apache/"),
            "Python": sys.version.split()[0],
        }
        self.peers, self.left_out = [], []
        for peer in peers:
            trouble = self.find(peer)
            self.left_out += [f"{peer} is left out: {trouble}"] if trouble else []
            self.peers += [] if trouble else workloads.PEERS[peer]

    def find(self, peer):
        """Notes the version of a peer; says why it cannot be measured, if so."""
        if peer == "uwsgi":
            self.uwsgi = program("uwsgi-core", "uwsgi")
            if not self.uwsgi:
                return "it is not installed"
            self.versions["uWSGI"] = last_word([self.uwsgi, "--version"])
            return None
        python = self.environment(peer) / "bin" / "python"
        version = [python, "-c", f"import importlib.metadata as m; print(m.version({peer!r}))"]
        found = subprocess.run(version, capture_output=True, text=True) if python.exists() else None
        if not found or found.returncode:
            return "it could not be installed"
        self.versions[peer] = found.stdout.strip()
        if peer == "mod_wsgi":
            self.mod_wsgi = next(site_packages(self.environment(peer)).glob("mod_wsgi/server/mod_wsgi*.so"))
        return None

    @staticmethod
    def environment(peer):
        # The one the conformance tests use.
        return ROOT / "target" / "mod_wsgi" if peer == "mod_wsgi" else ENVIRONMENTS / peer

    def artefacts(self, place):
        """A copy for each server: by their path its processes are told from others'."""
        for artefact in ARTEFACTS:
            shutil.copy2(BUILD / artefact, place)


def program(*names):
    return next((found for name in names if (found := shutil.which(name, path=SEARCH))), None)


def last_word(command, line=-1, word=-1):
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return run.stdout.strip().splitlines()[line].split()[word]


def site_packages(environment):
    return next(environment.glob("lib/python3.*/site-packages"), None) or sys.exit(f"{environment} is missing: make bench")


def worker_user():
    if os.geteuid() != 0:
        return None
    for name in ("www-data", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    sys.exit("there is neither a user www-data nor a user nobody for the servers' workers")
