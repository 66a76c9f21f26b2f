"""A folder with a page, shown on this machine."""

import errno
import functools
import http.server
import io
import os
from pathlib import Path
from typing import BinaryIO

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

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        """Know a type by our table alone: Python's also reads this machine's, which may be wrong."""
        return _TYPES.get(Path(path).suffix.lower(), "application/octet-stream")

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Refuse what a link leads out of the folder to."""
        folder = Path(self.directory).resolve()
        if not Path(self.translate_path(self.path)).resolve().is_relative_to(folder):
            self.send_error(404)
            return None
        return super().send_head()

    def list_directory(self, path: object) -> None:  # noqa: ARG002
        """Answer that there is nothing: a folder's files are found by their names alone."""
        self.send_error(404)

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Stay silent about what went well."""


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
        server = http.server.ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        remedies = {
            errno.EADDRINUSE: "another program listens there; choose another with --port, 0 for any free one",
            errno.EACCES: "only the administrator may listen there; choose a --port above 1023",
            errno.EADDRNOTAVAIL: "the host is no address of this machine; leave --host out for this machine alone",
        }
        # a name that leads nowhere has a number of its own kind
        remedy = remedies.get(error.errno or 0, f"{error.strerror or error}; check --host and --port")
        raise OSError(error.errno, f"cannot serve on port {port} of {host}: {remedy}") from error
    server.daemon_threads = True  # a browser's open connection does not hold up the end
    return server
