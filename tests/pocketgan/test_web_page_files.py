"""What a page's folder holds, and where its runtime comes from."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from web_runtime import runtime_at_hand

from pocketgan.web_page_files import PAGE_FILES, RUNTIME_FILES, RUNTIME_VERSION, find_runtime, write_web_page

RUNTIME = runtime_at_hand()


@pytest.mark.skipif(RUNTIME is None, reason="no onnxruntime-web on this machine")
def test_a_page_holds_what_it_loads_and_its_licence(tmp_path):
    (tmp_path / "pack.json").write_text("{}")
    write_web_page(tmp_path, RUNTIME)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "pack.json",
        *PAGE_FILES,
        *(f"onnxruntime/{name}" for name in RUNTIME_FILES),
        "onnxruntime/NOTICE.txt",
    }
    notice = (tmp_path / "onnxruntime" / "NOTICE.txt").read_text()
    assert "Copyright (c) Microsoft Corporation" in notice
    assert RUNTIME_VERSION in notice
    own = "\n".join((tmp_path / name).read_text() for name in PAGE_FILES)
    own = re.sub(r"^ *(\*|//).*$", "", own, flags=re.MULTILINE)  # comments name their sources
    assert re.findall(r"https?://[^\s\"]+", own) == ["http://www.w3.org/2000/svg"], "a name space, which is not fetched"


def fake_runtime(folder, version=RUNTIME_VERSION):
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"version": version}))
    for name in RUNTIME_FILES:
        (folder / "dist" / name).write_text(name)
    return folder


def test_the_runtime_is_found_where_it_is_named(tmp_path, monkeypatch):
    given, named = fake_runtime(tmp_path / "given"), fake_runtime(tmp_path / "named")
    cached = fake_runtime(tmp_path / "cache" / "pocketgan" / f"onnxruntime-web-{RUNTIME_VERSION}")
    monkeypatch.setenv("POCKETGAN_ONNXRUNTIME_WEB", str(named))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert (find_runtime(given), find_runtime()) == (given, named)
    monkeypatch.delenv("POCKETGAN_ONNXRUNTIME_WEB")
    assert find_runtime() == cached


def test_a_wrong_runtime_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is onnxruntime-web 1.2.0, but the page is tested with 1.30.0; run `npm"):
        find_runtime(fake_runtime(tmp_path / "old", "1.2.0"))
    incomplete = fake_runtime(tmp_path / "incomplete")
    (incomplete / "dist" / RUNTIME_FILES[2]).unlink()
    with pytest.raises(FileNotFoundError, match=r"it lacks dist/ort-wasm-simd-threaded.wasm; run `npm install"):
        write_web_page(tmp_path / "page", incomplete)
    assert not (tmp_path / "page").exists()


def test_npm_fills_the_cache_once_or_says_why_not(tmp_path, monkeypatch):
    monkeypatch.delenv("POCKETGAN_ONNXRUNTIME_WEB", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"npm is not installed; run `npm install onnxruntime-web@1.30.0` on a"):
        find_runtime()

    calls = []

    def npm(command, **options):
        calls.append(command)
        if len(calls) == 1:
            raise subprocess.CalledProcessError(1, command, stderr="npm error network")
        package = Path(command[command.index("--prefix") + 1], "node_modules", "onnxruntime-web")
        fake_runtime(package)
        (package / "dist" / "ort.all.mjs").write_text("not needed")

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(subprocess, "run", npm)
    with pytest.raises(RuntimeError, match=r"npm did not get onnxruntime-web: npm error network; run"):
        find_runtime()
    assert not [path for path in (tmp_path / "cache" / "pocketgan").iterdir() if path.is_dir()]
    package = find_runtime()
    assert find_runtime() == package
    assert len(calls) == 2
    assert "onnxruntime-web@1.30.0" in calls[1]
    assert {path.name for path in (package / "dist").iterdir()} == {*RUNTIME_FILES}
