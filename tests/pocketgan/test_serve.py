"""The server of a page's folder."""

import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from served import served

from pocketgan import web_page_files
from pocketgan.cli import main
from pocketgan.serve import _PageHandler, address_for_others, page_server


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "page"
    (folder / "onnxruntime").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>A page</title>")
    for name in ("a.mjs", "a.wasm", "model.onnx", "a.safetensors", "pack.json", "base.weights", "onnxruntime/b.wasm"):
        (folder / name).write_bytes(b"{}")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "linked").mkdir()
    (folder / "linked" / "index.html").symlink_to(tmp_path / "secret.txt")
    (folder / ".env").write_text("secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    (folder / "shown.txt").symlink_to(folder / ".env")
    (folder / ".shown.json").symlink_to(folder / "pack.json")
    return folder


def fetch(url):
    try:
        with urllib.request.urlopen(url) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_the_server_isolates_the_page_and_keeps_to_its_folder(folder, capfd):
    with served(folder) as address:
        status, headers, body = fetch(f"{address}/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert b"A page" in body
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["Cache-Control"] == "no-cache"
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self' 'wasm-unsafe-eval'")
        assert not re.search(r"https?:|\*|unsafe-inline|'unsafe-eval'", policy)
        page_policy = re.search(
            r'Policy" content="([^"]+)"', (Path(web_page_files._FOLDER) / "index.html").read_text()
        )[1]
        assert policy == f"{page_policy}; frame-ancestors 'none'", (
            "the page says the same where another server shows it"
        )
        for name, kind in (
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("a.wasm", "application/wasm"),
            ("onnxruntime/b.wasm", "application/wasm"),
            ("model.onnx", "application/octet-stream"),
            ("a.safetensors", "application/octet-stream"),
            ("base.weights", "application/octet-stream"),
            ("pack.json?again=1", "application/json"),
        ):
            status, headers, _ = fetch(f"{address}/{name}")
            assert (status, headers["Content-Type"]) == (200, kind), name
        hidden = (".env", ".git/config", "%2eenv", "onnxruntime/../.env", "shown.txt", ".shown.json", ".absent")
        no_names = ("index.html%00", "%00", "pack.json%ED%A0%80", "x" * 5000)
        led_out = ("onnxruntime/", "link.txt", "linked/", "../secret.txt", "..%2fsecret.txt", "absent.onnx")
        for path in (*led_out, *hidden, *no_names):
            status, headers, body = fetch(f"{address}/{path}")
            assert status == 404, path
            assert body != b"secret"
            assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert capfd.readouterr().err.count("\n") == len((*led_out, *hidden, *no_names)), "a line each, no traceback"


def test_a_folder_below_a_hidden_one_is_shown(folder, tmp_path):
    moved = folder.rename(tmp_path / ".cache")
    with served(moved) as address:
        assert fetch(f"{address}/")[0] == 200


def test_an_idle_connection_is_closed_without_a_word(folder, monkeypatch, capfd):
    assert 10 <= _PageHandler.timeout <= 300
    monkeypatch.setattr(_PageHandler, "timeout", 0.05)
    with served(folder) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        for said in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: me\r\n\r\n"):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(said)
                answer = b"".join(iter(lambda: connection.recv(2**16), b""))
            assert (b"A page" in answer) == said.endswith(b"\r\n\r\n")
    assert capfd.readouterr().err == ""


def test_a_browser_that_leaves_is_no_error(folder, capfd):
    (folder / "large.onnx").write_bytes(bytes(2**25))
    with served(folder) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(b"GET /large.onnx HTTP/1.1\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert fetch(f"{address}/")[0] == 200
    assert capfd.readouterr().err == ""


def test_what_cannot_be_served_is_refused(folder, tmp_path):
    with pytest.raises(SystemExit, match=r"absent is no folder; give a folder that `pocketgan export RUN --target web"):
        main(["serve", str(tmp_path / "absent")])
    with pytest.raises(SystemExit, match=r"holds no index.html"):
        main(["serve", str(folder / "onnxruntime")])
    with pytest.raises(SystemExit, match=r"port is 70000; give a number from 1 to 65535"):
        main(["serve", str(folder), "--port=70000"])
    with pytest.raises(SystemExit, match=r"the host is no address of this machine; leave --host out"):
        main(["serve", str(folder), "--port=0", "--host=203.0.113.1"])
    with page_server(folder, 0) as server:
        port = server.server_port
        with pytest.raises(
            SystemExit, match=rf"port {port} of 127.0.0.1: another program listens there; choose another"
        ):
            main(["serve", str(folder), f"--port={port}"])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_command_says_where_and_ends_cleanly(folder, host):
    command = [sys.executable, "-m", "pocketgan", "serve", str(folder), "--port", "0", "--host", host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", said)[0]
            assert b"A page" in fetch(address)[2]
        finally:
            process.send_signal(2)
        out, errors = process.stdout.read(), process.stderr.read()
    assert (process.returncode, errors) == (0, "")
    hint, _, last = out.rpartition("stopped\n")
    assert last == ""
    if host == "0.0.0.0":
        port = address.rstrip("/").rpartition(":")[2]
        assert re.match(rf"Other devices open http://[^/0][^/]+:{port}/; .+ no camera and no WebGPU", hint)
    else:
        assert hint == ""


def test_this_machines_address_for_others(monkeypatch):
    class NoNetwork(socket.socket):
        def connect(self, address):
            raise OSError("Network is unreachable")

    assert address_for_others() != "0.0.0.0"
    monkeypatch.setattr(socket, "socket", NoNetwork)
    assert address_for_others() == socket.gethostname()
