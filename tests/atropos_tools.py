"""Servers that speak Atropos' protocol: one whose answers are scripted, and the real one as a process."""

import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests
from free_port import free_port

REGISTRATION = {"batch_size": 2, "max_token_len": 64, "num_steps": 9, "starting_step": 0}
REGISTRATION |= {"checkpoint_dir": "here", "save_checkpoint_interval": 0}


def group(scores=(1.0, 0.0), length=4, **others):
    """A valid group: a sequence for each score, whose first token is the prompt."""
    tokens = [[5, *range(10 * row + 10, 10 * row + 9 + length)] for row in range(len(scores))]
    masks = [[-100, *row[1:]] for row in tokens]
    return {"tokens": tokens, "masks": masks, "scores": list(scores), **others}


@dataclass
class Answer:
    """What a request is answered with. Defaults: at once, and whole."""

    body: bytes
    status: int = 200
    headers: dict = field(default_factory=dict)
    delay_s: float = 0.0  # before it begins
    pause_s: float = 0.0  # before each of its bytes
    num_sent: int | None = None  # bytes, before the connection is closed
    is_reset: bool = False  # the connection, before an answer
    is_chunked: bool = False


def batch(*groups, **options):
    """The answer of `/batch` with these groups."""
    return Answer(json.dumps({"batch": groups}).encode(), **options)


class ScriptedAtropos(ThreadingHTTPServer):
    """Answers `/batch` with what the script holds, in order, and then with null; else like Atropos, without data.

    Resets a connection at its second request, like a server that has given up an idle one at that moment.

        with ScriptedAtropos(batch(group()), Answer(b"", status=500)) as server:
            AtroposClient(server.url).batch()

    Attributes:
        script: answers of `/batch` to come.
        instead: path -> the answer that is always given there.
        requests: (path, headers) of each request, in order.
        info: batch_size and max_token_len of the registration that counts.
    """

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.script, self.instead = deque(script), {}
        self.requests, self.info = [], (-1, -1)
        self.is_closing = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def __exit__(self, *exception):
        self.is_closing.set()
        self.shutdown()
        self._thread.join()
        super().__exit__(*exception)

    def num_requests(self, path):
        return sum(path == each for each, _ in self.requests)

    def answer_to(self, path, body):
        if path in self.instead:
            return self.instead[path]
        if path == "/batch" and self.script:
            return self.script.popleft()
        if path == "/register" and self.info[0] == -1:
            self.info = (body["batch_size"], body["max_token_len"])
        answers = {
            "/register": {"uuid": 2**100},
            "/info": {"batch_size": self.info[0], "max_token_len": self.info[1]},
            "/batch": {"batch": None},
            "/status": {"current_step": 0, "queue_size": 0},
        }
        return Answer(json.dumps(answers[path]).encode()) if path in answers else Answer(b"Not Found", status=404)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that gives up is what we test
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections alive, as Atropos does
    is_used = False

    def do_POST(self):
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_GET(self):
        self._answer(None)

    def _answer(self, body):
        self.server.requests.append((self.path, dict(self.headers)))
        answer = self.server.answer_to(self.path, body)
        if self.server.is_closing.wait(answer.delay_s):
            return
        is_used, self.is_used = self.is_used, True
        if answer.is_reset or is_used:  # closing with a linger of 0 s sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.is_chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self._send(answer)

    def _send(self, answer):
        body = answer.body[: answer.num_sent]
        if answer.is_chunked:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
            self.wfile.write(b"0\r\n\r\n" if answer.num_sent is None else b"")
        elif not answer.pause_s:
            self.wfile.write(body)
        else:
            for byte in body:
                if self.server.is_closing.wait(answer.pause_s):
                    break
                self.wfile.write(bytes([byte]))
        if answer.num_sent is not None:
            self.close_connection = True

    def log_message(self, *args):
        pass


class RunApi:
    """Atropos' own server, as a process on a free port of the loopback; `start` after `kill` takes the same port."""

    def __init__(self, port=None):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        command = [Path(sys.executable).with_name("run-api"), "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while True:
            with contextlib.suppress(requests.ConnectionError):
                return self.get("/info")
            assert self._process.poll() is None, "run-api could not start"
            time.sleep(0.02)

    def stop(self):
        self._process.terminate()
        self._process.wait()

    def kill(self):
        self._process.kill()
        self._process.wait()

    def get(self, path):
        answer = requests.get(self.url + path, timeout=10)
        answer.raise_for_status()
        return answer.json() if "json" in answer.headers["Content-Type"] else answer.text

    def post(self, path, body):
        """A text as it is, anything else as JSON."""
        text = body if isinstance(body, str) else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        answer = requests.post(self.url + path, data=text, headers=headers, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def post_group(self, *args, **kwargs):
        return self.post("/scored_data", group(*args, **kwargs))

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill()
