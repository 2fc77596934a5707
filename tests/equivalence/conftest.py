import pytest
import torch

from patchset.project import PACKAGE, Project, exclusive, write_tree
from patchset.upstream import read_package
from stock import StockTimm


@pytest.fixture(scope='session')
def stock():
    """Stock timm, the pinned wheel unpacked, answering from a process of its own."""
    torch.set_num_threads(1)
    project = Project()
    folder = project.build_folder / 'stock'
    with exclusive(project.build_folder / '.lock'):
        write_tree(read_package(project.wheel()), folder, PACKAGE)
    process = StockTimm(folder)
    yield process
    process.close()
