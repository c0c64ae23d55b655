"""Two machines simulated on one: network namespaces at a switch, each with its own address, loopback and HF_HOME.

They share the disk, so a test gives each its own folders. The Hub of the test session, which serves 127.0.0.1 only, has the
same address inside each of them, as through an SSH tunnel. Creating namespaces needs root and `ip`.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ADDRESSES = ["10.77.0.1", "10.77.0.2"]
PORT = 29500


def missing_requirement() -> str | None:
    """Return why network namespaces cannot be created; None if they can."""
    if os.geteuid() != 0:
        return "needs root, to create network namespaces"
    if not shutil.which("ip"):
        return "needs the command ip (Debian package iproute2)"
    trial = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return f"network namespaces are not allowed here: {trial.stderr.strip()}" if trial.returncode else None


class Machines:
    """Two machines and the switch between them, removed at the end of the `with` block."""

    def __init__(self, folder: Path, hub_port: int):
        self.folder, self.hub_port = folder, hub_port
        self.switch, *self.names = (f"cells-{os.getpid()}-{name}" for name in ("switch", "0", "1"))

    def __enter__(self) -> "Machines":
        self.ip("netns add", self.switch)
        self.ip("-n", self.switch, "link add name bridge type bridge")
        self.ip("-n", self.switch, "link set bridge up")
        for number, name in enumerate(self.names):
            self.ip("netns add", name)
            self.ip("-n", name, "link set lo up")
            self.ip(f"-n {name} link add eth0 type veth peer name port{number} netns {self.switch}")
            self.ip("-n", name, f"addr add {ADDRESSES[number]}/24 dev eth0")
            self.ip("-n", name, "link set eth0 up")
            self.plug(number)
            (self.folder / f"hf_home_{number}").mkdir()
        self.tunnel = self.folder / "hub.socket"
        ends = (unix_server(self.tunnel), ("127.0.0.1", self.hub_port))
        threading.Thread(target=relay, args=ends, daemon=True).start()
        for number in range(2):
            self.start(number, [sys.executable, __file__, str(self.hub_port), str(self.tunnel)])
        return self

    def __exit__(self, *_) -> None:
        for number, name in enumerate(self.names):
            self.kill(number)
            self.ip("netns del", name)
        self.ip("netns del", self.switch)

    def ip(self, *words: str) -> str:
        return subprocess.check_output(["ip", *" ".join(words).split()], stderr=subprocess.PIPE, text=True)

    def plug(self, number: int) -> None:
        """Connect the machine to the switch."""
        self.ip("-n", self.switch, f"link set port{number} master bridge up")

    def unplug(self, number: int) -> None:
        """Disconnect it: packets are lost without an error."""
        self.ip("-n", self.switch, f"link set port{number} nomaster")

    def start(self, number: int, command: list[str], log: Path | None = None, **variables: str):
        """Start a command on a machine, with its HF_HOME; its output goes to `log`."""
        environment = os.environ | variables
        environment |= {"HF_HOME": str(self.folder / f"hf_home_{number}"), "GLOO_SOCKET_IFNAME": "eth0"}
        environment |= {"OMP_NUM_THREADS": "1", "MAIN": ADDRESSES[0], "MACHINE": str(number)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        command = ["ip", "netns", "exec", self.names[number], *command]
        with open(log or os.devnull, "w") as output:
            options = {"env": environment, "cwd": REPOSITORY, "start_new_session": True}
            return subprocess.Popen(command, stdout=output, stderr=output, **options)

    def kill(self, number: int) -> None:
        """SIGKILL every process of a machine, including its Hub tunnel, as in a power failure."""
        while pids := self.ip("netns pids", self.names[number]).split():
            for pid in pids:
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)


def unix_server(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(64)
    return server


def relay(server: socket.socket, target: tuple[str, int] | str) -> None:
    """Forward every connection to `server` to a TCP address or a Unix socket."""
    while True:
        near, _ = server.accept()
        far = socket.socket(socket.AF_UNIX if isinstance(target, str) else socket.AF_INET)
        far.connect(target)
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=copy, args=(source, sink), daemon=True).start()


def copy(source: socket.socket, sink: socket.socket) -> None:
    """Copy bytes from one socket to the other until its end."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        sink.close()


if __name__ == "__main__":  # on a machine: the Hub's port there, into the tunnel
    relay(socket.create_server(("127.0.0.1", int(sys.argv[1]))), sys.argv[2])
