"""The raw requests of tests/requests, and what a server is to make of them. tests/requests/README.md describes the files."""

import re
import shlex
from dataclasses import dataclass, field

from support.stage import TESTS

DIRECTORY = TESTS / "requests"


@dataclass
class Call:
    """A request as the application is to see it."""

    method: str
    target: str
    # None: reading the body raises OSError.
    body: str | None = ""
    keys: dict = field(default_factory=dict)
    absent: list = field(default_factory=list)


@dataclass
class Expected:
    hosts: list
    # Of the responses in order; "0.9" is one without a head.
    statuses: list
    # "kept", "closed" or "waits".
    ending: str
    calls: list = field(default_factory=list)


@dataclass
class Case:
    name: str
    sent: bytes = b""
    allowed: frozenset = frozenset()
    answers: list = field(default_factory=list)

    def expected(self, host):
        """What is said for this very host, else for its server, else for all."""
        for name in (host, host.split("-")[0], None):
            for answer in self.answers:
                if (not answer.hosts and name is None) or name in answer.hosts:
                    return answer
        raise AssertionError(f"{self.name}: nothing is expected on {host}")


def groups():
    return sorted(path.stem for path in DIRECTORY.glob("*.txt"))


def read(group):
    cases = []
    for line in (DIRECTORY / f"{group}.txt").read_text("ascii").splitlines():
        if line.startswith("== "):
            cases.append(Case(line[3:]))
        elif line.startswith("# ") or not line:
            pass
        elif line.startswith("allows: "):
            cases[-1].allowed = frozenset(line.split()[1:])
        elif line.startswith("=> "):
            *hosts, answer = line[3:].split(": ")
            *statuses, ending = answer.replace(",", "").split()
            assert ending in ("kept", "closed", "waits"), line
            cases[-1].answers.append(Expected(hosts[0].split() if hosts else [], statuses, ending))
        elif line.startswith("    "):
            cases[-1].answers[-1].calls.append(call(line))
        else:
            assert not cases[-1].answers, f"{group}: {cases[-1].name}: a blank line or == is missing before {line!r}"
            cases[-1].sent += unescaped(line)
    return cases


def call(line):
    words = shlex.shlex(line, posix=True)
    # Backslashes are for what comes after.
    words.whitespace_split, words.escape, words.commenters = True, "", ""
    method, target, *rest = (unescaped(word).decode("latin-1") for word in words)
    seen = Call(method, target)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "body!":
            seen.body = None
        elif word.startswith("-"):
            seen.absent.append(word[1:])
        elif name == "body":
            seen.body = value
        else:
            assert equals, line
            seen.keys[name] = value
    return seen


def unescaped(text):
    r"""`\r \n \t \0 \\ \xHH`, and `<9000*a>` for a run."""
    run = re.compile(r"<(\d+)\*(\\x..|[^>]+)>")
    text = run.sub(lambda match: match[2] * int(match[1]), text)
    return text.encode().decode("unicode_escape").encode("latin-1")
