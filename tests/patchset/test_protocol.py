"""The names of the protocol are the fork's: where upstream defines one, weaving refuses by name."""
import ast
from pathlib import Path

import pytest

from patchset import PatchsetError
from patchset.protocol import MIXIN, NAMES, WHOLE
from patchset.source import names_of
from patchset.project import weave_files
from sandbox import STOCK
from weaving import assert_refused, assert_woven, overlay, text

BEFORE = '''
class Base:
    pass


class Net(Base):
    depth = 1

    def __init__(self, width):
        self.width = width

    def forward_features(self, x):
        x = self.stem(x)
        return x


class Deep(Net):
    pass


class Other:
    pass
'''
CHANGE = '''
class Net(EmbedStagesMixin, Base):
    @moved_from('forward_features')
    def forward_stages(self, x):
        ...
'''
IMPORT = 'from ._embed_stages import EmbedStagesMixin\n'


def test_names_are_those_of_the_mixin():
    """The list in the tool and the mixin that it is about."""
    module = ast.parse(Path(__file__).parents[2].joinpath('timm/models/_embed_stages.py').read_text())
    mixin = next(node for node in module.body if getattr(node, 'name', '') == MIXIN)
    members = {name for statement in mixin.body for name in names_of(statement)}
    assert NAMES | {WHOLE} == {name for name in members if not name.startswith('_')}


@pytest.mark.parametrize('old, new, where', [
    *[('    depth = 1', f'    def {name}(self, x):\n        return x', f'Net.{name}') for name in sorted(NAMES)],
    ('    depth = 1', "    grid_format = 'NHWC'", 'Net.grid_format'),
    ('    depth = 1', '    patch_dim: int = 1', 'Net.patch_dim'),
    ('    depth = 1', '    if True:\n        embed = None', 'Net.embed'),
    ('self.width = width', 'self.embed = width', 'Net.self.embed'),
    ('self.width = width', 'self.patch_dim, self.width = 1, width', 'Net.self.patch_dim'),
    ('self.width = width', 'self.patch_grid: int = 1', 'Net.self.patch_grid'),
    ('self.width = width', "self.register_buffer('keep_grid', width)", 'Net.self.keep_grid'),
    ('self.width = width', "self.add_module('embed', width)", 'Net.self.embed'),
    ('self.width = width', "setattr(self, 'embed', width)", 'Net.self.embed'),
    ('x = self.stem(x)', 'self.grid_format = x', 'Net.self.grid_format'),
    ('class Base:\n    pass', 'class Base:\n    def embed(self, x):\n        return x', 'Base.embed'),
    ('class Deep(Net):\n    pass', 'class Deep(Net):\n    def map_tokens(self):\n        pass', 'Deep.map_tokens'),
])
def test_name_that_upstream_defines_is_refused(old, new, where):
    assert old in BEFORE
    assert_refused(BEFORE.replace(old, new), IMPORT + CHANGE, where)


@pytest.mark.parametrize('old, new', [
    ('class Other:\n    pass', 'class Other:\n    def embed(self, x):\n        return x'),
    ('self.width = width', 'width.embed = self.patch_dim'),
    ('self.width = width', "setattr(width, 'embed', 1)"),
    ('self.width = width', "self.register_hook('width', 'embed')"),
])
def test_name_elsewhere_is_upstreams_own(old, new):
    before = BEFORE.replace(old, new).replace('\nclass Base', IMPORT + '\n\nclass Base')
    whole, part = '    def forward_features(self, x):\n', '    def forward_stages(self, x):\n'
    body = '        return self.forward_stages(self.embed(x))\n\n'
    assert_woven(before, CHANGE, before.replace('Net(Base)', f'Net({MIXIN}, Base)').replace(whole, whole + body + part))


def test_name_that_the_overlay_replaces_is_taken():
    before = BEFORE.replace('    depth = 1', '    def keep_grid(self, x):\n        return x')
    replaced = '\n    def keep_grid(self, x):\n        return 2 * x\n'
    assert_refused(before, IMPORT + CHANGE, 'Net.keep_grid')
    files = {**STOCK, 'timm/models/net.py': text(before)}
    tree = weave_files(files, {'timm/models/net.py': overlay(IMPORT + CHANGE + replaced)})
    assert b'return 2 * x' in tree.changed['timm/models/net.py']


@pytest.mark.parametrize('member, refused', [('embed', True), ('embeds', False)])
def test_class_that_inherits_in_another_module(member, refused):
    files = {**STOCK, 'timm/models/net.py': text(BEFORE), 'timm/models/more.py': text(f'''
        from .net import Net as Parent

        class More(Parent, object):
            def {member}(self, x):
                return x
    ''')}
    ours = {'timm/models/net.py': overlay(IMPORT + CHANGE)}
    if refused:
        with pytest.raises(PatchsetError, match='timm/models/more.py: More.embed'):
            weave_files(files, ours)
    else:
        assert 'timm/models/net.py' in weave_files(files, ours).changed
