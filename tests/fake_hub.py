"""A hub on this machine that speaks the part of its protocol that uploads use, and keeps what it is sent."""

import base64
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Hub(ThreadingHTTPServer):
    """`files` of the last commit of each path; `commits`: message, and the paths that were sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files, self.commits = {}, []


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer({"id": "somebody/run", "name": "somebody", "type": "user", "sha": "0" * 40, "siblings": []})

    def do_POST(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            self._answer({"url": f"{self.server.url}/somebody/run", "name": "somebody/run", "id": "somebody/run"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self._answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            sent = [line["value"] for line in lines if line["key"] == "file"]
            self.server.files |= {each["path"]: base64.b64decode(each["content"]) for each in sent}
            self.server.commits.append((lines[0]["value"]["summary"], [each["path"] for each in sent]))
            self._answer({"commitUrl": f"{self.server.url}/somebody/run/commit/1", "commitOid": "1" * 40})
        else:  # validate-yaml
            self._answer({"errors": [], "warnings": []})

    def _chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()

    def _answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def running_hub():
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
