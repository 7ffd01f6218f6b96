"""Requests one after another while a test does something to their server."""

import threading
import time

from support.client import until


class Load:
    """Requests on connections of their own, one after the other, until stopped."""

    def __init__(self, server, path="/hello", clients=4, expected=b"hello"):
        self.server, self.path, self.expected = server, path, expected
        self.count, self.failures, self.slowest, self.running = 0, [], 0, True
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.client) for _ in range(clients)]

    def client(self):
        while self.running:
            began = time.monotonic()
            try:
                response = self.server.get(self.path)
                if response.status != 200 or response.body != self.expected:
                    self.failures.append(f"{response.status} {response.body[:80]!r}")
            except Exception as error:
                self.failures.append(repr(error))
            with self.lock:
                self.count += 1
                self.slowest = max(self.slowest, time.monotonic() - began)
            time.sleep(0.002)

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
