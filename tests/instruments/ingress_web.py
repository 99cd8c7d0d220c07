"""A node's ingress on real sockets: HAProxy and its backends in a network namespace, the daemon beside them.

    manifests/  -->  netstack-ingress  -->  files and runtime socket  -->  HAProxy  -->  backends on loopback

Backends are objects of the test's process with sockets in the namespace: each has an address of its own in 127.0.0.0/8
and says in JSON what it received. systemd's part, to start HAProxy again when it ends, is played by `start_haproxy`.

Free properties, checked when a `Web` is left, so by every test:
* HAProxy was reloaded exactly as often as the test says (`reloads`, 0 if it says nothing);
* what runs is what the daemon wants, and HAProxy accepts the files as they are.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import websocket
import yaml

from instruments.ingress_objects import Raw, flat
from instruments.netns import inside
from lab.shell import run, wait_until
from netstack.core.files import write_atomic
from netstack.core.unit import ask

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1"
HTTP, HTTPS = 80, 443


class Backend(http.server.ThreadingHTTPServer):
    """An HTTP server that says what it received, and a websocket that sends back what it gets."""

    daemon_threads = True

    def __init__(self, netns: str, address: str, port: int = 8080) -> None:
        self.target = f"{address}:{port}"
        with inside(netns):
            super().__init__((address, port), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """HAProxy was killed under a connection: several tests do that."""

    def close(self) -> None:
        self.shutdown()
        self.server_close()


def _accept(key: str) -> str:
    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode())
    return base64.b64encode(digest.digest()).decode()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Backend

    def do_GET(self) -> None:
        if self.headers.get("Upgrade", "").lower() == "websocket":
            self._echo()
            return
        length = int(self.headers.get("Content-Length", 0))
        said = {
            "backend": self.server.target,
            "path": self.path,
            "method": self.command,
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "body": len(self.rfile.read(length)),
        }
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_GET

    def _echo(self) -> None:
        """RFC 6455, section 4.2.2; masked text frames under 126 bytes come back unmasked."""
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", _accept(self.headers["Sec-WebSocket-Key"]))
        self.end_headers()
        self.close_connection = True
        while head := self.rfile.read(2):
            length = head[1] & 0x7F
            mask = self.rfile.read(4)
            payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(self.rfile.read(length)))
            self.wfile.write(bytes([head[0], length]) + payload)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests look at answers."""


class Answer:
    """One answer through HAProxy."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.text = response.read().decode()

    @property
    def said(self) -> Any:
        """What the backend said that it received."""
        return json.loads(self.text)

    @property
    def backend(self) -> str:
        """The backend's address and port, or the status if none answered."""
        return str(self.said["backend"]) if self.status == 200 else str(self.status)


class Web:
    def __init__(self, folder: Path, *, reloads: int = 0, **settings: Any) -> None:
        self.folder = folder
        self.netns = f"ing{os.getpid()}"
        self.reloads = reloads
        self.manifests = folder / "manifests"
        self.state = folder / "state"
        self.settings = {
            "node": "n1",
            "manifests": str(self.manifests),
            "status": str(folder / "status"),
            "state": str(self.state),
            "socket": str(folder / "haproxy.sock"),
            "master_socket": str(folder / "master.sock"),
            "endpoint": str(folder / "endpoint.json"),
            "threads": 2,
            **settings,
        }
        self.haproxy: subprocess.Popen[bytes] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None
        self.backends: list[Backend] = []

    def __enter__(self) -> Self:
        self.manifests.mkdir()
        (self.folder / "run").mkdir()
        Path("/run/netstack").mkdir(exist_ok=True)
        (self.folder / "endpoint.json").write_text(json.dumps({"ips": [{"address": f"{ADDRESS}/8"}]}))
        run(["ip", "netns", "add", self.netns])
        run(["ip", "-n", self.netns, "link", "set", "lo", "up"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as undo:  # whatever fails, the rest is undone: the next test needs the name
            undo.callback(run, ["ip", "netns", "del", self.netns], check=False)
            for backend in self.backends:
                undo.callback(backend.close)
            undo.callback(self.kill_haproxy)
            undo.callback(self.stop_daemon)
            if kind is None:
                self._check()
            else:
                sys.stderr.write(self.log())

    def _check(self) -> None:
        if self.daemon is not None and self.haproxy is not None:
            wait_until(lambda: bool(self.status()["in_step"]), "HAProxy in step with the daemon")
            assert len(self.status()["reloads"]) == self.reloads, self.status()["reloads"]
        run(["haproxy", "-c", *self._files()])

    def _files(self) -> list[str]:
        return ["-f", str(self.state / "haproxy.cfg"), "-f", str(self.state / "pools.cfg")]

    def log(self) -> str:
        files = (self.folder / "daemon.log", self.folder / "haproxy.log")
        return "\n".join(f"--- {file.name}\n{file.read_text()}" for file in files if file.exists())

    # Processes

    def start(self) -> Self:
        """The daemon, then HAProxy: the order that the units have."""
        self.start_daemon()
        self.start_haproxy()
        wait_until(lambda: bool(self.status()["in_step"]), "HAProxy in step with the daemon")
        return self

    def start_daemon(self) -> None:
        (self.folder / "ingress.yaml").write_text(json.dumps(self.settings))
        script = (
            f"set -e; mount --bind {self.folder}/run /run/netstack; "
            f"exec {sys.executable} -m netstack.ingress --config {self.folder}/ingress.yaml"
        )
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                ["unshare", "--mount", "bash", "-c", script],
                env={**os.environ, "PYTHONPATH": str(ROOT / "daemons/src")},
                stderr=log,
            )
        wait_until(self._answers, "the daemon")

    def _answers(self) -> bool:
        assert self.daemon is not None
        if self.daemon.poll() is not None:
            raise RuntimeError(f"the daemon ended:\n{self.log()}")
        try:
            self.status()
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return (self.state / "haproxy.cfg").exists()

    def stop_daemon(self, *, kill: bool = False) -> None:
        if self.daemon is None:
            return
        if kill:
            self.daemon.kill()
        else:
            self.daemon.terminate()
        self.daemon.wait(10)
        self.daemon = None

    def start_haproxy(self) -> None:
        master = str(self.settings["master_socket"])
        with (self.folder / "haproxy.log").open("ab") as log:
            self.haproxy = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.netns}", "haproxy", "-W", "-S", master, *self._files()],
                stdout=log,
                stderr=log,
            )
        wait_until(self._listens, "HAProxy")

    def _listens(self) -> bool:
        assert self.haproxy is not None
        if self.haproxy.poll() is not None:
            raise RuntimeError(f"HAProxy ended:\n{self.log()}")
        try:
            self.connect().close()
        except (ConnectionRefusedError, ConnectionResetError):
            return False
        return True

    def _refuses(self) -> bool:
        try:
            self.connect().close()
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # a listener that ended while the connection waited in its queue
            return False
        return False

    @property
    def workers(self) -> list[int]:
        """Pids of HAProxy's workers, the current one and those of earlier reloads that still serve."""
        assert self.haproxy is not None
        return [
            int(pid) for pid in Path(f"/proc/{self.haproxy.pid}/task/{self.haproxy.pid}/children").read_text().split()
        ]

    def kill_haproxy(self) -> None:
        """kill -9 of master and workers."""
        if self.haproxy is None:
            return
        for pid in self.workers:
            os.kill(pid, 9)
        self.haproxy.kill()
        self.haproxy.wait()
        self.haproxy = None
        # A thread that has not ended yet keeps the ports open, and the next HAProxy would share them with it.
        wait_until(self._refuses, "the end of HAProxy")

    def ip(self, *commands: str) -> None:
        """`ip` in the namespace, one command after the other."""
        for command in commands:
            run(["ip", "-n", self.netns, *command.split()])

    def order(self, command: str) -> str:
        """One command on HAProxy's socket by somebody else's hand."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.settings["socket"]))
            sock.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()

    # Objects

    def apply(self, name: str, *objects: Raw | list[Raw]) -> None:
        """Write a manifest file, as `kubectl apply` of all that it holds."""
        write_atomic(self.manifests / f"{name}.yaml", yaml.dump_all(flat(objects)))

    def remove(self, name: str) -> None:
        (self.manifests / f"{name}.yaml").unlink()

    def backend(self, address: str, port: int = 8080) -> Backend:
        backend = Backend(self.netns, address, port)
        self.backends.append(backend)
        return backend

    def ask(self, command: str) -> Any:
        return ask("ingress", {"command": command}, run=self.folder / "run")

    def status(self) -> Any:
        return self.ask("status")

    def ingress_status(self, name: str, namespace: str = "default") -> Any:
        """The status that the daemon wrote for an Ingress, None if there is none."""
        path = self.folder / f"status/ingress.{namespace}.{name}.yaml"
        return yaml.safe_load(path.read_text())["status"] if path.exists() else None

    # Clients

    def connect(self, port: int = HTTP) -> socket.socket:
        with inside(self.netns):
            sock = socket.socket()
        sock.settimeout(10)
        sock.connect((ADDRESS, port))
        return sock

    def connection(self, *, tls: str = "", trust: str | None = None) -> http.client.HTTPConnection:
        """A keep-alive connection; `tls` is the name to ask for by SNI, `trust` a PEM text to verify against."""
        connection = http.client.HTTPConnection(ADDRESS)
        connection.sock = self.connect(HTTPS if tls else HTTP)
        if tls:
            context = ssl.create_default_context(cadata=trust)
            context.check_hostname = trust is not None
            context.verify_mode = ssl.CERT_REQUIRED if trust else ssl.CERT_NONE
            connection.sock = context.wrap_socket(connection.sock, server_hostname=tls)
        return connection

    def get(self, host: str, path: str = "/", *, tls: bool = False, trust: str | None = None, **request: Any) -> Answer:
        """One request on a connection of its own. `request`: method, body, headers of http.client."""
        connection = self.connection(tls=host if tls else "", trust=trust)
        try:
            return self.get_on(connection, host, path, **request)
        finally:
            connection.close()

    def get_on(self, connection: http.client.HTTPConnection, host: str, path: str = "/", **request: Any) -> Answer:
        method, headers = request.pop("method", "GET"), request.pop("headers", {})
        connection.request(method, path, headers={"Host": host, **headers}, **request)
        return Answer(connection.getresponse())

    def serves(self, host: str, path: str, backend: str, timeout_s: float = 5.0) -> None:
        """Wait until this backend, or status, answers."""
        wait_until(lambda: self.get(host, path).backend == backend, f"{host}{path} answered by {backend}", timeout_s)

    def websocket(self, host: str, path: str = "/") -> websocket.WebSocket:
        """An open websocket whose other end sends everything back."""
        client = websocket.WebSocket()
        client.connect(f"ws://{host}{path}", socket=self.connect())
        return client
