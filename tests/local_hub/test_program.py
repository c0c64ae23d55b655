"""`python -m local_hub`: 127.0.0.1 only, one sentence for bad arguments, and nothing lost in a restart."""

import signal
import subprocess
import sys
from pathlib import Path

from huggingface_hub import HfApi

from local_hub import LocalHub
from tests.local_hub.raw_requests import hub_process


def run_hub(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "local_hub", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_it_listens_on_127_0_0_1_only(hub):
    tables = [Path(f"/proc/net/{table}").read_text() for table in ("tcp", "tcp6")]
    sockets = [line.split() for line in "".join(tables).splitlines()]
    listening = [fields[1] for fields in sockets if fields[3] == "0A"]
    port = f":{hub.port:04X}"
    assert [address for address in listening if address.endswith(port)] == [f"0100007F{port}"]


def test_an_unusable_root_port_or_token_is_named_in_one_sentence(hub, tmp_path):
    (tmp_path / "file").write_text("")
    for arguments, words in (
        (("--root", str(hub.root)), "already serves"),
        (("--root", str(tmp_path / "file")), "cannot be used"),
        (("--root", str(tmp_path / "a"), "--port", str(hub.port)), "in use"),
        (("--root", str(tmp_path / "b"), "--port", "99999"), "port 99999"),
        (("--root", str(tmp_path / "c"), "--token", ":x"), "--token takes"),
        (("--root", ""), "--root takes"),
    ):
        done = run_hub(*arguments)
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_chosen_token_is_neither_printed_nor_stored(tmp_path):
    root = tmp_path / "hub"
    with hub_process(root, "--token", "hf_marked:anna") as (process, endpoint, output):
        client = HfApi(endpoint, token="hf_marked")
        client.create_repo("anna/x")
        client.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="anna/x")
        process.send_signal(signal.SIGTERM)
        output += process.communicate(timeout=20)[0]
    assert process.returncode == 0
    stored = b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())
    assert "hf_marked" not in output
    assert b"hf_marked" not in stored
    assert b"anna" in stored


def test_pushed_files_survive_a_restart(tmp_path):
    with LocalHub(tmp_path) as hub:
        client = HfApi(hub.endpoint, token=hub.token)
        client.create_repo("localdev/stored")
        client.upload_file(path_or_fileobj=b"x", path_in_repo="a.txt", repo_id="localdev/stored")
    with LocalHub(tmp_path) as hub:
        assert HfApi(hub.endpoint).list_repo_files("localdev/stored") == [".gitattributes", "a.txt"]
