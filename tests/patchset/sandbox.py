"""A small project with a small upstream, so that a build takes milliseconds."""
import hashlib
import json
import os
import zipfile

from patchset.project import Project

NET = b'''"""Net."""
from a import nn


class Net(nn.Module):

    def __init__(self):
        self.blocks = []

    def _pos_embed(self, x):
        return x

    def pool(self, x):
        return x

    def forward_features(self, x):
        x = self.patch_embed(x)
        x = self._pos_embed(x)
        for blk in self.blocks:
            x = blk(x)
        return x
'''

OVERLAY = b'''# Overlay: a test.
class Net(nn.Module):

    @moved_from('forward_features', after='x = self.patch_embed(x)')
    def forward_stages(self, x):
        ...

    def forward_features(self, x):
        return self.forward_stages(self.patch_embed(x))

    def added(self, x):
        return x
'''

STOCK = {
    'timm/__init__.py': b'from .version import __version__\n',
    'timm/version.py': b"__version__ = '1.0'\n",
    'timm/models/net.py': NET,
    'timm/data/names.txt': b'\xff\x00 not text\r\n',
    'timm/py.typed': b'',
}


def write_wheel(file, files):
    with zipfile.ZipFile(file, 'w') as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr('timm-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: timm\nVersion: 1.0\n')
        archive.writestr('timm-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nTag: py3-none-any\n')
        archive.writestr('timm-1.0.dist-info/RECORD', '')
        archive.writestr('timm-1.0.dist-info/licenses/LICENSE', 'licence\n')
    return hashlib.sha256(file.read_bytes()).hexdigest()


def pin_wheel(project, files):
    """Put a wheel where a download would, and its hash into the lock."""
    file = project.build_folder / 'upstream' / 'timm-1.0-py3-none-any.whl'
    file.parent.mkdir(parents=True, exist_ok=True)
    digest = write_wheel(file, files)
    lock = json.loads(project.lock_file.read_text()) if project.lock_file.exists() else {}
    lock['upstream'] = {'name': 'timm', 'version': '1.0', 'wheel': file.name, 'sha256': digest}
    project.lock_file.write_text(json.dumps(lock))
    return file


def make_project(root, stock=STOCK):
    """A project with the overlays of models/net.py and version.py, a new file, and an up-to-date lock."""
    project = Project(root)
    for path, data in {
        'timm/models/net.py': OVERLAY,
        'timm/version.py': b"# Overlay: a test.\n__version__ = '1.0+mim.1'\n",
        'timm/mim/__init__.py': b'NEW = 1\n',
    }.items():
        write(root, path, data)
    pin_wheel(project, stock)
    project.update_lock()
    return project


def write(root, path, data):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(data)


def snapshot(folder):
    """Contents and modification times of all files, without the lock file that processes wait for."""
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob('*')) if path.is_file() and path.name != '.lock'
    }


def touch_later(path):
    """Change a file's time as an editor does, whatever the clock's resolution."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
