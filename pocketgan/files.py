"""Files that appear whole or not at all."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock, Timeout

TEMPORARY_SUFFIX = ".incomplete"

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder, then run again",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder, then run again",
    errno.EACCES: "it may not be written by you; change its permissions or choose another folder",
    errno.EPERM: "it may not be written by you; change its permissions or choose another folder",
    errno.EROFS: "the file system is read-only; choose a folder that can be written",
}


@contextmanager
def explained_write_error(path: Path) -> Iterator[None]:
    """Say what to do about a full or read-only disk.

    Args:
        path: The file being written, named in the message.

    Raises:
        OSError: With the same errno, the path, and the remedy where there is a known one.
    """
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise OSError(error.errno, f"cannot write: {remedy}", str(path)) from error


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that no reader, and no later run, ever sees a part of it.

    The bytes go to a hidden temporary file in the same folder, reach the disk, and take the name in one step.
    A process killed in between leaves only the temporary file, which `remove_temporaries` clears away.

    Args:
        path: The file. Its folder must exist; an existing file is replaced.
        data: The whole content.

    Raises:
        OSError: If it cannot be written; the temporary file is gone and an existing file is as it was.
    """
    # The process id keeps two processes that write the same file from sharing a temporary.
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with explained_write_error(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Let a library write files into a folder of its own, then move each into ``folder`` in one step.

    All files are on the disk before the first is moved. A process killed in between leaves only the temporary folder,
    which `remove_temporaries` clears away.

    Args:
        folder: Is made if need be; files of other names stay.

    Yields:
        The folder to write to, with subfolders if need be. An error while it is written leaves ``folder`` as it was.
    """
    with explained_write_error(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # a folder that exists may be another disk's
        beside = folder if folder.is_dir() else folder.parent
        made = TemporaryDirectory(prefix=f".{folder.name}.", suffix=TEMPORARY_SUFFIX, dir=beside)
    with explained_write_error(folder), made as temporary:
        yield Path(temporary)
        files = sorted(path for path in Path(temporary).rglob("*") if path.is_file())
        for file in files:
            with file.open("rb") as written:
                os.fsync(written.fileno())
        for file in files:
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)


@contextmanager
def exclusive(lock_path: Path, busy: Exception) -> Iterator[None]:
    """Hold a lock file, or refuse at once.

    Args:
        lock_path: In a folder that exists.
        busy: What to raise if another process holds it.

    Raises:
        OSError: It cannot be written, or the file system has no locks.
    """
    lock = FileLock(lock_path)
    with explained_write_error(lock_path.parent):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise busy from None
        # what filelock says of a file system without flock
        except NotImplementedError as error:
            raise OSError(
                f"{lock_path} cannot be locked: the file system has no locks; mount it with them (flock), or choose a "
                "root on another"
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Let a folder be filled beside its place, and take the name in one step once all is on the disk.

    A process killed in between leaves only a hidden temporary folder, which the next one clears away.

    Args:
        folder: Must not exist, or be empty. The folder that holds it is made if need be.

    Yields:
        The folder to write to. An error while it is written leaves nothing behind.

    Raises:
        OSError: It cannot be written, or another process is filling it.
    """
    building, lock_path = (folder.with_name(f".{folder.name}{suffix}") for suffix in (TEMPORARY_SUFFIX, ".lock"))
    with explained_write_error(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        busy = BlockingIOError(
            f"{folder} is being written by another process, which holds {lock_path}; wait until it ends"
        )
        with exclusive(lock_path, busy):
            try:
                shutil.rmtree(building, ignore_errors=True)
                building.mkdir()
                yield building
                for file in building.rglob("*"):
                    if file.is_file():
                        with file.open("rb") as written:
                            os.fsync(written.fileno())
                building.replace(folder)
            finally:
                shutil.rmtree(building, ignore_errors=True)
                lock_path.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left of `write_whole` and `whole_files` in a folder and below.

    Only for a folder that no other process is writing to.
    """
    for temporary in list(folder.rglob(f".*{TEMPORARY_SUFFIX}")):
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_changed(path: Path, data: bytes) -> None:
    """Write a file whole if it does not hold these bytes already, so that what reads it sees no needless change."""
    if not path.is_file() or path.read_bytes() != data:
        write_whole(path, data)
