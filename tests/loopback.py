"""A server on the loopback interface, for tests of what reads from a network."""

import http.server
import threading
from typing import Any


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """A handler that writes no log."""

    def log_message(self, *arguments: Any) -> None:
        pass


class LoopbackServer:
    """A server in a thread, from its construction until `close`.

    Attributes:
      url: of the server, without a path.
    """

    def __init__(self, handler: type[QuietHandler]) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
