"""A folder shown by the page's own server."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pocketgan.serve import page_server


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port; gives the address without a slash at its end."""
    with page_server(folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
