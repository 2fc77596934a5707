"""Writes a tree of files so that a reader never sees half a file, and a failure leaves everything as it was."""
import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Dict, Iterator, Optional

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One process at a time; the operating system frees the lock of a process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'ab') as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            lock_windows(file)
        yield


def lock_windows(file) -> None:
    while True:
        with contextlib.suppress(OSError):
            file.seek(0)
            return msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        time.sleep(0.1)


def write_tree(files: Dict[str, bytes], folder: Path, package: str) -> None:
    """Make `folder/package` hold exactly these files. Files that are right already are not touched.

    Args:
        files: Contents by path below the folder; all paths lie in the package.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.writing-') as staging:
        staged = []
        for path, data in files.items():
            target = folder / path
            if not (target.is_file() and target.read_bytes() == data):
                staged.append((stage(Path(staging, str(len(staged))), data, target), target))
        for source, target in staged:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
    remove_others(folder / package, {folder / path for path in files})


def stage(source: Path, data: bytes, target: Path) -> Path:
    """Write a file that is to replace another, with another second of modification than that has.

    Bytecode is cached by the second: two versions of equal length within one would be taken for the same.
    """
    source.write_bytes(data)
    with contextlib.suppress(FileNotFoundError):
        changed = max(int(time.time()), int(target.stat().st_mtime) + 1)
        os.utime(source, (changed, changed))
    return source


def remove_others(folder: Path, keep: set) -> None:
    for path in sorted(folder.rglob('*'), reverse=True):
        if path.is_dir() and path.name == '__pycache__':
            if not any(kept.parent == path.parent for kept in keep):
                shutil.rmtree(path)
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif not path.is_dir() and path not in keep and path.parent.name != '__pycache__':
            path.unlink()


def replace_files(files: Dict[Path, bytes], folder: Path) -> None:
    """Write all files or none, each with the permissions that it had.

    Args:
        files: Contents by path, in the folder.
        folder: On the files' device, for what is written before it takes its place.
    """
    before = {target: target.read_bytes() if target.exists() else None for target in files}
    with tempfile.TemporaryDirectory(dir=folder, prefix='.writing-') as staging:
        staged = []
        for target, data in files.items():
            source = stage(Path(staging, str(len(staged))), data, target)
            if before[target] is not None:
                shutil.copymode(target, source)
            staged.append((source, target))
        done = []
        try:
            for source, target in staged:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
                done.append(target)
        except BaseException:
            restore({target: before[target] for target in done})
            raise


def restore(files: Dict[Path, Optional[bytes]]) -> None:
    for target, data in files.items():
        if data is None:
            target.unlink()
        else:
            target.write_bytes(data)
