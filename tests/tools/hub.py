"""A stand-in for the Hugging Face hub: repositories in memory, served by the part of its HTTP API
that reads and writes models.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml


class Hub(ThreadingHTTPServer):
    """`files` by repository and path; repositories in `private` take the token alone."""

    daemon_threads = True
    token = "hf_right"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.asked: list[str] = []  # paths that were read
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def revision(self, repo: str) -> str:
        parts = [f"{path} {_digest(data)}" for path, data in sorted(self.files[repo].items())]
        return _digest("\n".join(parts).encode())[:40]


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers while the body runs."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Not into the output of the tests."""

    def do_POST(self) -> None:  # noqa: N802
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self._known():
            return self._answer({"error": "Invalid credentials"}, 401)
        match self.path.split("?")[0].split("/")[1:]:
            case ["api", "repos", "create"]:
                asked = json.loads(data)
                repo = f"{asked['organization']}/{asked['name']}"
                if repo in self.server.files:
                    return self._answer({"error": "exists", "url": self._url(repo)}, 409)
                self.server.files[repo] = {".gitattributes": b"*.safetensors lfs\n"}
                if asked.get("visibility") == "private" or asked.get("private"):
                    self.server.private.add(repo)
                self._answer({"url": self._url(repo), "name": repo})
            case ["api", "validate-yaml"]:
                text = json.loads(data)["content"].split("---\n")[1]
                parsed = yaml.safe_load(text)
                errors = [] if isinstance(parsed, dict) else [{"message": "no mapping"}]
                self._answer({"errors": errors, "warnings": []})
            case ["api", "models", user, name, "preupload", _]:
                paths = [file["path"] for file in json.loads(data)["files"]]
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                self._answer({"files": [{"path": path, **modes} for path in paths]})
            case ["api", "models", user, name, "commit", _]:
                self._commit(f"{user}/{name}", [json.loads(line) for line in data.splitlines()])
            case _:
                self._answer({"error": self.path}, 404)

    def do_HEAD(self) -> None:  # noqa: N802
        self._get()

    def do_GET(self) -> None:  # noqa: N802
        self._get()

    def _get(self) -> None:
        self.server.asked.append(self.path)
        parts = self.path.split("?")[0].split("/")[1:]
        api = parts[:2] == ["api", "models"]
        user, name, *rest = parts[2:] if api else parts
        repo = f"{user}/{name}"
        hidden = repo in self.server.private and not self._known()
        if repo not in self.server.files or hidden:
            return self._answer({"error": "none"}, 404 if not hidden else 401, "RepoNotFound")
        files = self.server.files[repo]
        if api and rest[:1] == ["tree"]:
            rows = [self._row(path, data) for path, data in files.items()]
            return self._answer(rows)
        if api:
            names = [{"rfilename": path} for path in files]
            info = {"id": repo, "sha": self.server.revision(repo), "siblings": names}
            return self._answer(info | {"private": repo in self.server.private, "tags": []})
        path = "/".join(rest[2:])
        if path not in files:
            return self._answer({"error": "none"}, 404, "EntryNotFound")
        self._send(files[path], 200, repo)

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = self.server.files[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.server.revision(repo)
        self._answer({"commitUrl": f"{self._url(repo)}/commit/{oid}", "commitOid": oid})

    @staticmethod
    def _row(path: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": path, "size": len(data), "oid": _digest(data)[:40]}

    def _url(self, repo: str) -> str:
        return f"{self.server.endpoint}/{repo}"

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.token}"

    def _answer(self, value: Any, status: int = 200, code: str = "") -> None:
        self._send(json.dumps(value).encode(), status, code=code)

    def _send(self, data: bytes, status: int, repo: str = "", code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{_digest(data)[:40]}"')
        if repo:
            self.send_header("X-Repo-Commit", self.server.revision(repo))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
