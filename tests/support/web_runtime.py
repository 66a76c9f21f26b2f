"""Is onnxruntime-web on this machine?"""

from pathlib import Path

from pocketgan import web_page_files
from pocketgan.web_page_files import find_runtime


def runtime_at_hand() -> Path | None:
    """The package, found without npm; None where it is not there."""
    before, web_page_files._fetch = web_page_files._fetch, lambda package: None
    try:
        return find_runtime()
    except FileNotFoundError:
        return None
    finally:
        web_page_files._fetch = before
