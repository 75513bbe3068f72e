# SPDX-License-Identifier: Apache-2.0
"""A Hub on this machine: the part of its API that a push and a download use, over HTTP, kept in memory.

Repositories are created, files go in by preupload, LFS and commit, and come out by resolve, as with the real one. What
is not known here is answered with 404; what was to be written so is kept in `unknown`, for tests to see.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.scripts.hub_cards import card_errors

USER = "me"
TOKEN = "hf_" + "0" * 34
LARGE = (".safetensors", ".bin", ".pt", ".pth")
Files = dict[str, "File"]


@dataclass
class File:
    content: bytes
    large: bool

    @property
    def etag(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()  # git's


@dataclass
class Repository:
    commits: list[tuple[str, str]] = field(default_factory=list)  # id and message
    versions: dict[str, Files] = field(default_factory=dict)

    def commit(self, message: str, files: Files) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((oid, message))
        self.versions[oid] = files
        return oid

    def revision(self, name: str) -> str | None:
        return self.commits[-1][0] if name == "main" else name if name in self.versions else None

    @property
    def files(self) -> Files:
        return self.versions[self.commits[-1][0]]


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}"  # large files lie elsewhere, with the real one, too
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.unknown: list[str] = []
        self.lock = threading.Lock()


@contextmanager
def serving() -> Iterator[Hub]:
    """Run a Hub meanwhile."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self._answer(
            (r"/api/whoami-v2", self._whoami),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", self._info),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", self._tree),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._resolve),
            (r"/lfs/(\w+)", lambda oid: self._send(200, self.server.blobs[oid])),
        )

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", self._preupload),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/lfs/verify", self._verify),
            (r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", self._commit),
            writes=True,
        )

    def do_PUT(self) -> None:
        self._answer((r"/lfs/(\w+)", self._store))

    def _answer(self, *routes: tuple[str, Any], writes: bool = False) -> None:
        length = self.headers.get("Content-Length")
        self.body = self.rfile.read(int(length)) if length else self._chunks()
        path = unquote(urlsplit(self.path).path)
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": "Invalid username or password."})
            return
        for pattern, answer in routes:
            if found := re.fullmatch(pattern, path):
                answer(*found.groups())
                return
        if writes:
            self.server.unknown.append(f"{self.command} {path}")
        self._json(404, {"error": "not known here"})

    def _chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    # ------------------------------------------------------------------------------------------------------------------
    # What goes in
    # ------------------------------------------------------------------------------------------------------------------
    def _whoami(self) -> None:
        self._json(200, {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}})

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization'] or USER}/{asked['name']}"
        with self.server.lock:
            new = name not in self.server.repositories
            if new:
                self.server.repositories[name] = Repository()
                self.server.repositories[name].commit("initial commit", {".gitattributes": File(b"*.bin lfs\n", False)})
        answer = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
        self._json(200 if new else 409, answer if new else {**answer, "error": "You already created this model repo"})

    def _validate(self) -> None:
        errors = card_errors(json.loads(self.body)["content"])
        self._json(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def _preupload(self, name: str, _: str) -> None:
        files = [
            {"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
             "shouldIgnore": False}
            for file in json.loads(self.body)["files"]
        ]  # fmt: skip
        self._json(200 if name in self.server.repositories else 404, {"files": files})

    def _batch(self, _: str) -> None:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"},
                                   "verify": {"href": f"{self.server.url}/lfs/verify"}}}
            for wanted in json.loads(self.body)["objects"]
        ]  # fmt: skip
        self._json(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        whole = hashlib.sha256(self.body).hexdigest() == oid
        if whole:
            self.server.blobs[oid] = self.body
        self._send(200 if whole else 400, b"")

    def _verify(self) -> None:
        asked = json.loads(self.body)
        there = len(self.server.blobs.get(asked["oid"], b"")) == asked["size"]
        self._json(200 if there else 404, {})

    def _commit(self, name: str, _: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        with self.server.lock:
            repository = self.server.repositories[name]
            files = dict(repository.files)
            for value in (line["value"] for line in lines if line["key"] == "file"):
                files[value["path"]] = File(base64.b64decode(value["content"]), large=False)
            for value in (line["value"] for line in lines if line["key"] == "lfsFile"):
                files[value["path"]] = File(self.server.blobs[value["oid"]], large=True)
            for value in (line["value"] for line in lines if line["key"] == "deletedFile"):
                del files[value["path"]]
            oid = repository.commit(lines[0]["value"]["summary"], files)
        self._json(200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    # ------------------------------------------------------------------------------------------------------------------
    # What comes out
    # ------------------------------------------------------------------------------------------------------------------
    def _info(self, name: str, revision: str | None) -> None:
        oid = self._known(name, revision or "main")
        if oid is not None:
            files = self.server.repositories[name].versions[oid]
            siblings = [{"rfilename": path} for path in files]
            self._json(
                200, {"id": name, "modelId": name, "sha": oid, "private": False, "tags": [], "siblings": siblings}
            )

    def _tree(self, name: str, revision: str, folder: str | None) -> None:
        oid = self._known(name, revision)
        if oid is None:
            return
        start = f"{folder}/" if folder else ""
        files = {
            path: file for path, file in self.server.repositories[name].versions[oid].items() if path.startswith(start)
        }
        if folder and not files:
            self._missing("EntryNotFound", oid)
        else:
            self._json(
                200, [{"type": "file", "path": p, "size": len(f.content), "oid": f.etag} for p, f in files.items()]
            )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        oid = self._known(name, revision)
        if oid is None:
            return
        file = self.server.repositories[name].versions[oid].get(path)
        if file is None:
            self._missing("EntryNotFound", oid)
            return
        headers = {"X-Repo-Commit": oid, "ETag": f'"{file.etag}"'}
        if not file.large:
            self._send(200, file.content, headers)
            return
        linked = {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        self._send(302, b"", {**headers, **linked, "Location": f"{self.server.storage}/lfs/{file.etag}"})

    def _known(self, name: str, revision: str) -> str | None:
        repository = self.server.repositories.get(name)
        oid = repository.revision(revision) if repository else None
        if oid is None:
            self._missing("RevisionNotFound" if repository else "RepoNotFound", "")
        return oid

    def _missing(self, code: str, oid: str) -> None:
        self._send(404, b"", {"X-Error-Code": code, "X-Error-Message": code, **({"X-Repo-Commit": oid} if oid else {})})

    def _json(self, status: int, content: Any) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""
