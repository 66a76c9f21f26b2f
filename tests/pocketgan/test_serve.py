"""The server of a page's folder."""

import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from served import served

from pocketgan import web_page_files
from pocketgan.cli import main
from pocketgan.serve import page_server


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "page"
    (folder / "onnxruntime").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>A page</title>")
    for name in ("a.mjs", "a.wasm", "model.onnx", "a.safetensors", "pack.json", "base.weights", "onnxruntime/b.wasm"):
        (folder / name).write_bytes(b"{}")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


def fetch(url):
    try:
        with urllib.request.urlopen(url) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def test_the_server_isolates_the_page_and_keeps_to_its_folder(folder):
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
        for path in ("onnxruntime/", "link.txt", "../secret.txt", "..%2fsecret.txt", "absent.onnx"):
            status, headers, body = fetch(f"{address}/{path}")
            assert status == 404, path
            assert body != b"secret"
            assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"


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


def test_the_command_says_where_and_ends_cleanly(folder):
    command = [sys.executable, "-m", "pocketgan", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)[0]
        assert b"A page" in fetch(address)[2]
        process.send_signal(2)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (0, "stopped\n", "")
