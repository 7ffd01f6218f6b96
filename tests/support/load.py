"""Requests one after another while a test does something to their server."""

import threading
import time

from support.client import ConnectionEnded, until


class Load:
    """Requests one after the other, until stopped; each on a connection of its own, or all of a client on one (`keep`).

    A kept connection that the server closes before it has sent a byte is opened again, once for each request (`retried`):
    servers close idle connections when they reload, and a client cannot know before it asks.
    """

    def __init__(self, server, path="/hello", clients=4, expected=b"hello", keep=False):
        self.server, self.path, self.expected, self.keep = server, path, expected, keep
        self.retried = 0
        self.count, self.failures, self.slowest, self.running = 0, [], 0, True
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.client) for _ in range(clients)]

    def ask(self, kept):
        """The response, and the connection that may be used again."""
        if not self.keep:
            return self.server.get(self.path), None
        for connection in (kept, None) if kept else (None,):
            reused = connection is not None
            connection = connection or self.server.connect()
            try:
                connection.request("GET", self.path)
                response = connection.response()
            except (ConnectionEnded, OSError) as error:
                connection.close()
                if not reused or getattr(error, "received", b""):
                    raise
                self.retried += 1
                continue
            if (response.header("Connection") or "").lower() == "close":
                connection.close()
                return response, None
            return response, connection

    def client(self):
        kept = None
        while self.running:
            began = time.monotonic()
            try:
                response, kept = self.ask(kept)
                if response.status != 200 or self.expected not in (None, response.body):
                    self.failures.append(f"{response.status} {response.body[:80]!r}")
            except Exception as error:
                kept = None
                self.failures.append(repr(error))
            with self.lock:
                self.count += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
            time.sleep(0.002)
        if kept:
            kept.close()

    def reach(self, count):
        """Goes on until there have been so many requests: how long that takes is the machine's affair."""
        assert until(lambda: self.count >= count, 30), self.count

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.running = False
        for thread in self.threads:
            thread.join()
