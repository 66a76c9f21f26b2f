"""The files of the web page: ours, and the runtime's from the npm package onnxruntime-web."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from pocketgan.files import TEMPORARY_SUFFIX, explained_write_error, whole_files, whole_folder

RUNTIME_VERSION = "1.30.0"
RUNTIME_VARIABLE = "POCKETGAN_ONNXRUNTIME_WEB"
PAGE_FILES = ("index.html", "style.css", "page.js", "worker.js", "icon.svg")
# of the package's dist/: for each backend the module that worker.js imports, and what that loads
RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
LICENCE = "NOTICE.txt"
FETCH_TIMEOUT_SECONDS = 600
_FOLDER = Path(__file__).parent / "web_page"


def write_web_page(folder: Path, runtime: Path | None = None) -> None:
    """Write the page and its runtime, which ask no other host for anything, beside a pack.

    Args:
        folder: Gets index.html and what it needs; is made if need be, and other files stay.
        runtime: The npm package onnxruntime-web, unpacked. If None: the folder that the environment variable
            POCKETGAN_ONNXRUNTIME_WEB names, or the user's cache, which npm fills where it does not have it.

    Raises:
        FileNotFoundError: The runtime is not where it should be, or nowhere and npm is not installed.
        ValueError: It is another version than the page is tested with.
        RuntimeError: npm did not get it.
        OSError: The folder cannot be written.
    """
    package = find_runtime(runtime)
    with whole_files(folder) as writing:
        for name in PAGE_FILES:
            shutil.copyfile(_FOLDER / name, writing / name)
        copied = writing / "onnxruntime"
        copied.mkdir()
        for name in RUNTIME_FILES:
            shutil.copyfile(package / "dist" / name, copied / name)
        # the package names its licence without the text that MIT asks to be handed on
        own = package / "LICENSE"
        shutil.copyfile(own if own.is_file() else _FOLDER / f"onnxruntime_{LICENCE}", copied / LICENCE)


def find_runtime(runtime: Path | None = None) -> Path:
    """Find the package onnxruntime-web, or have npm fetch it into the user's cache; see ``write_web_page``."""
    named = runtime or (Path(os.environ[RUNTIME_VARIABLE]) if os.environ.get(RUNTIME_VARIABLE) else None)
    if named is not None:
        _check(named)
        return named
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketgan"
    package = cache / f"onnxruntime-web-{RUNTIME_VERSION}"
    if not package.is_dir():
        _fetch(package)
    _check(package)
    return package


def _check(package: Path) -> None:
    """Refuse a folder that is not the package.

    Raises:
        FileNotFoundError: Files that the page needs are not in it.
        ValueError: It is another version.
    """
    missing = [
        name for name in ("package.json", *(f"dist/{name}" for name in RUNTIME_FILES)) if not (package / name).is_file()
    ]
    if missing:
        raise FileNotFoundError(
            f"{package} is not the npm package onnxruntime-web: it lacks {', '.join(missing)}; {_remedy()}"
        )
    version = json.loads((package / "package.json").read_text())["version"]
    if version != RUNTIME_VERSION:
        raise ValueError(
            f"{package} is onnxruntime-web {version}, but the page is tested with {RUNTIME_VERSION}; {_remedy()}"
        )


def _fetch(package: Path) -> None:
    """Have npm fetch the package; only what the page needs is kept.

    Raises:
        FileNotFoundError: npm is not installed.
        RuntimeError: npm failed, or took longer than ten minutes.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"the web page needs the npm package onnxruntime-web, and npm is not installed; {_remedy()}"
        )
    with explained_write_error(package):
        package.parent.mkdir(parents=True, exist_ok=True)
        made = TemporaryDirectory(prefix=".npm.", suffix=TEMPORARY_SUFFIX, dir=package.parent)
    with made as prefix:
        # scripts of packages that it depends on have no business here
        options = ["--no-audit", "--no-fund", "--ignore-scripts"]
        command = [npm, "install", "--prefix", prefix, *options, f"onnxruntime-web@{RUNTIME_VERSION}"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT_SECONDS)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(
                f"npm did not get onnxruntime-web: {error.stderr.strip()[-500:]}; {_remedy()}"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(
                f"npm did not get onnxruntime-web within {FETCH_TIMEOUT_SECONDS // 60} minutes; {_remedy()}"
            ) from error
        fetched = Path(prefix) / "node_modules" / "onnxruntime-web"
        with whole_folder(package) as writing:
            (writing / "dist").mkdir()
            kept = ("package.json", "LICENSE", *(f"dist/{name}" for name in RUNTIME_FILES))
            for name in kept:
                if (fetched / name).is_file():
                    shutil.copyfile(fetched / name, writing / name)


def _remedy() -> str:
    return (
        f"run `npm install onnxruntime-web@{RUNTIME_VERSION}` on a machine with npm and a network, and name its folder "
        f"node_modules/onnxruntime-web by {RUNTIME_VARIABLE}"
    )
