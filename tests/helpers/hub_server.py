"""A hub on this machine: the part of the Hugging Face hub that its library calls for our files."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit


class Hub(ThreadingHTTPServer):
    """Repositories by name; each has the files of its only branch, ``main``."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, name: str) -> str:
        files = self.repositories[name]
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def _get(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(path)
        is_api = path.startswith("/api/models/")
        parts = path.removeprefix("/api/models" if is_api else "").strip("/").split("/")
        name, (action, revision, *rest) = "/".join(parts[:2]), [*parts[2:], "", ""][:9]
        file = "/".join(rest).rstrip("/")
        files = self.server.repositories.get(name)
        if files is None:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", self.server.sha(name)):
            self._send(404, {"error": "No such revision"}, {"X-Error-Code": "RevisionNotFound"})
        elif action == "revision":
            self._send(200, {"id": name, "sha": self.server.sha(name), "siblings": []})
        elif action == "tree":
            tree = [
                {"type": "file", "path": file, "size": len(content), "oid": _digest(content)}
                for file, content in files.items()
            ]
            self._send(200, tree)
        else:
            content = files[file]
            head = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": self.server.sha(name)}
            self._send(200, content, head)

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append(path)
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parts = path.removeprefix("/api/models/").split("/")
        name = "/".join(parts[:2])
        if self.headers.get("Authorization") != "Bearer hf_test":
            self._send(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.server.repositories.setdefault(name, {})
            self._send(200, {"url": f"{self.server.url}/{name}"})
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif "preupload" in parts:
            asked = json.loads(body)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in asked
            ]
            self._send(200, {"files": modes})
        else:  # commit
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.repositories[name][line["value"]["path"]] = content
            sha = self.server.sha(name)
            url = f"{self.server.url}/{name}/commit/{sha}"
            self._send(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def _send(self, code: int, content: object, head: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(head or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub in a thread."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
