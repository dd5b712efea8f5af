"""A model hub on loopback: as much of the hub's HTTP interface as huggingface_hub needs to upload and to download."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """What the server holds, and what it was asked for.

    Attributes:
        url: of the server.
        files: by repository and path.
        visibility: of repositories, as they were created.
        downloads: paths that were read.
        writes: addresses that were written to.
        refuse: status with which every write is answered.
    """

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    visibility: dict[str, str | None] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    refuse: int | None = None


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def reply(self, body: bytes, status: int = 200, **headers: str):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, value: object, status: int = 200):
            self.reply(json.dumps(value).encode(), status, Content_Type="application/json")

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = urlsplit(self.path).path
            hub.writes.append(path)
            if hub.refuse:
                return self.json({"error": "not today"}, hub.refuse)
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                hub.files.setdefault(name, {})
                hub.visibility[name] = asked.get("visibility")
                return self.json({"url": f"{hub.url}/{name}"})
            if path == "/api/validate-yaml":
                return self.json({"errors": [], "warnings": []})
            name, action = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
            if action == "preupload":
                files = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": file, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for file in files]
                return self.json({"files": modes})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.json({"commitUrl": f"{hub.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "success": True})

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            if found:
                content = hub.files.get(found[1], {}).get(found[2])
                if content is None:
                    return self.reply(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                if self.command == "GET":
                    hub.downloads.append(found[2])
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.reply(content, ETag=etag, X_Repo_Commit=COMMIT)
            found = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/tree/.*|/revision/.*)?", path)
            files = hub.files.get(found[1]) if found else None
            if files is None:
                return self.json({"error": "Repository not found"}, 404)
            if (found[2] or "").startswith("/tree"):
                oid = lambda data: hashlib.sha1(data).hexdigest()  # noqa: E731
                rows = [{"type": "file", "path": p, "size": len(d), "oid": oid(d)} for p, d in files.items()]
                return self.json(rows)
            return self.json({"id": found[1], "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]})

        do_HEAD = do_GET  # noqa: N815 (the library's name)

    return Handler


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A hub that runs until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
