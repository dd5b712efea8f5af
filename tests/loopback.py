"""A chat endpoint on loopback, for models behind a network: it answers what a test lays out, over real sockets."""

import contextlib
import http.server
import json
import threading


def completion(text, reason="stop"):
    """Body of a chat completion."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]})


def ok(text, reason="stop"):
    """A reply that says a text."""
    return 200, {"Content-Type": "application/json"}, completion(text, reason)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers what the test laid out: (code, headers, body), or a function of this handler that gives it or None."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, dict(self.headers), json.loads(body)))
        reply = self.server.replies[min(len(self.server.seen), len(self.server.replies)) - 1]
        if callable(reply):
            reply = reply(self)
        if reply is None:
            return
        code, headers, text = reply
        data = text.encode()
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Quiet."""


@contextlib.contextmanager
def serving(*replies):
    """A server of replies, in order, the last one again and again; `seen` holds (path, headers, body) of requests."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.replies, server.seen, server.daemon_threads = replies, [], True
    server.address = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
