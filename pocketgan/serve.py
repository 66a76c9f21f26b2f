"""A folder with a page, shown on this machine."""

import errno
import functools
import http.server
import io
import os
import socket
import sys
from pathlib import Path
from typing import Any, BinaryIO

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# The first two isolate the page, without which browsers give WebAssembly one thread only; no-cache has a browser ask
# whether a file changed, since an export may have replaced it.
HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

_INDEX_PAGES = ("index.html", "index.htm")  # what Python's server gives for a folder
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",  # else it is not compiled while it loads
}


class _PageHandler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, which are never listed."""

    protocol_version = "HTTP/1.1"  # one connection for all files
    timeout = 60  # seconds that a connection, and with it a thread, may be idle

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        """Know a type by our table alone: Python's also reads this machine's, which may be wrong."""
        return _TYPES.get(Path(path).suffix.lower(), "application/octet-stream")

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Refuse what is hidden, what a link leads out of the folder to, and what no file can be called."""
        if not self._is_shown():
            self.send_error(404)
            return None
        return super().send_head()

    def _is_shown(self) -> bool:
        folder = Path(self.directory)
        asked = Path(self.translate_path(self.path))
        try:
            found = [path.resolve() for path in (asked, *(asked / name for name in _INDEX_PAGES))]
        except (OSError, ValueError):  # a name with a null byte, half a surrogate pair, or too long
            return False
        if not all(path.is_relative_to(folder.resolve()) for path in found):
            return False
        # of both, since a link may be hidden, or lead to what is
        names = (*asked.relative_to(folder).parts, *found[0].relative_to(folder.resolve()).parts)
        return not any(name.startswith(".") for name in names)

    def list_directory(self, path: object) -> None:  # noqa: ARG002
        """Answer that there is nothing: a folder's files are found by their names alone."""
        self.send_error(404)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Stay silent about what went well."""

    def log_error(self, format: str, *args: Any) -> None:  # noqa: A002
        """Stay silent about a connection that was closed since it was idle."""
        if not any(isinstance(value, TimeoutError) for value in args):
            super().log_error(format, *args)


class _PageServer(http.server.ThreadingHTTPServer):
    daemon_threads = True  # a browser's open connection does not hold up the end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about a browser that left while a file was on its way."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def page_server(folder: Path, port: int = 8000, host: str = "127.0.0.1") -> http.server.ThreadingHTTPServer:
    """Make a server for a folder with a page; its ``serve_forever`` answers.

    Args:
        folder: Holds index.html, as ``pocketgan export --target web`` writes it.
        port: To listen on; 0 takes a free one.
        host: The address to listen on; "0.0.0.0" lets other devices in.

    Raises:
        FileNotFoundError: The folder does not exist, or holds no page.
        ValueError: The port is no port number.
        OSError: The port is taken or may not be used, or the host is none of this machine's.
    """
    if not (folder / "index.html").is_file():
        found = "holds no index.html" if folder.is_dir() else "is no folder"
        raise FileNotFoundError(
            f"{folder} {found}; give a folder that `pocketgan export RUN --target web --out FOLDER` wrote"
        )
    if not 0 <= port <= 65535:
        raise ValueError(f"port is {port}; give a number from 1 to 65535, or 0 for any free one")
    handler = functools.partial(_PageHandler, directory=str(folder))
    try:
        return _PageServer((host, port), handler)
    except OSError as error:
        remedies = {
            errno.EADDRINUSE: "another program listens there; choose another with --port, 0 for any free one",
            errno.EACCES: "only the administrator may listen there; choose a --port above 1023",
            errno.EADDRNOTAVAIL: "the host is no address of this machine; leave --host out for this machine alone",
        }
        # a name that leads nowhere has a number of its own kind
        remedy = remedies.get(error.errno or 0, f"{error.strerror or error}; check --host and --port")
        raise OSError(error.errno, f"cannot serve on port {port} of {host}: {remedy}") from error


def address_for_others() -> str:
    """Where other devices of the network find this machine; its name if it has no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # sends nothing, but has the system choose the address that it would send from; 192.0.2.1 is nobody's
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return socket.gethostname()
        address: str = probe.getsockname()[0]
        return address
