"""Changes invented in ten families: each is carried and equal, or left by name. Never a third thing."""
import ast
import sys
from types import ModuleType

import pytest
import torch

from patchset.findings import compare_releases
from patchset.project import Project
from patchset.source import docstring
from patchset.upstream import read_package

VIT = dict(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=5)
FAMILIES = {
    'vision_transformer': ('VisionTransformer', VIT),
    'eva': ('Eva', VIT),
    'beit': ('Beit', VIT),
    'cait': ('Cait', VIT),
    'convit': ('ConVit', VIT),
    'vision_transformer_relpos': ('VisionTransformerRelPos', VIT),
    'mlp_mixer': ('MlpMixer', dict(img_size=32, patch_size=8, num_blocks=2, embed_dim=48, num_classes=5)),
    'convmixer': ('ConvMixer', dict(dim=16, depth=2, kernel_size=3, patch_size=4, num_classes=5)),
    'swin_transformer': ('SwinTransformer', dict(
        img_size=64, patch_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=5)),
    'pvt_v2': ('PyramidVisionTransformerV2', dict(depths=(1, 1, 1, 1), embed_dims=(8, 16, 24, 32), num_classes=5)),
}


def first(method, text):
    """A statement before the first one."""
    at = len(docstring(method.body))
    method.body[at:at] = ast.parse(text).body


def image(method):
    return method.args.args[1].arg


def stem(method):
    """The statement that embeds the image, which anchors name."""
    return next(s for s in method.body if isinstance(s, ast.Assign))


def scale(method):
    call = stem(method).value
    call.args = [ast.parse(f'{image(method)} * 1.5').body[0].value]


def after_stem(method):
    method.body.insert(method.body.index(stem(method)) + 1, ast.parse('x = x * 1.5').body[0])


def before_the_end(method):
    method.body.insert(-1, ast.parse('x = x * 1.5').body[0])


def inside(method):
    method.body[-1].value = ast.parse(f'({ast.unparse(method.body[-1].value)}) * 1.5').body[0].value


def another_default(method):
    method.args.args.append(ast.arg('twice'))
    method.args.defaults.append(ast.Constant(True))
    inside(method)


CHANGES = {
    'an anchor': lambda cls, method: scale(method),
    'before': lambda cls, method: first(method, f'{image(method)} = {image(method)} * 1.5'),
    'after the anchor': lambda cls, method: after_stem(method),
    'inside': lambda cls, method: inside(method),
    'before the end': lambda cls, method: before_the_end(method),
    'a new argument': lambda cls, method: another_default(method),
    'an annotation': lambda cls, method: setattr(method.args.args[1], 'annotation', ast.Name('object')),
    'a decorator': lambda cls, method: method.decorator_list.append(ast.parse('torch.no_grad()').body[0].value),
    'a name in the class': lambda cls, method: cls.body.extend(ast.parse('def embed(self, x): return x * 2').body),
    'a name on self': lambda cls, method: cls.body.extend(
        ast.parse('def set_up(self):\n    self.patch_grid = None').body),
    'a class attribute': lambda cls, method: cls.body.insert(0, ast.parse('depth_first = True').body[0]),
    'another base': lambda cls, method: cls.bases.append(ast.Name('object')),
}
# changes of what moves come along; all others are for a person
CARRIED = {'after the anchor', 'inside', 'before the end'}
# overlays that move all of the method from its first statement on, so that a statement before it comes along too
FROM_THE_FIRST = {'mlp_mixer', 'convmixer'}


@pytest.fixture(scope='module')
def project():
    return Project()


@pytest.fixture(scope='module')
def stock(project):
    return read_package(project.wheel())


@pytest.fixture(scope='module', params=FAMILIES)
def family(request, project, stock):
    path = f'timm/models/{request.param}.py'
    return request.param, path, lean(stock[path]), (project.root / path).read_bytes()


def lean(data):
    """A module of models without what registers them, and with no configurations."""
    module = ast.parse(data)
    module.body = [
        statement for statement in module.body
        if 'register_model' not in map(ast.unparse, getattr(statement, 'decorator_list', ()))
        and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call))]
    for statement in module.body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == 'default_cfgs':
            statement.value = ast.Dict([], [])
    return ast.unparse(module).encode() + b'\n'


def changed(data, class_name, change):
    module = ast.parse(data)
    cls = next(s for s in module.body if isinstance(s, ast.ClassDef) and s.name == class_name)
    method = next(s for s in cls.body if getattr(s, 'name', '') == 'forward_features')
    CHANGES[change](cls, method)
    return ast.unparse(ast.fix_missing_locations(module)).encode() + b'\n'


def results(data, name, class_name, options):
    """Features, output in train mode, gradients, with the same weights and random state."""
    module = ModuleType(f'timm.models.changed_{name}')
    module.__package__ = 'timm.models'
    sys.modules[module.__name__] = module
    try:
        exec(compile(data, module.__name__, 'exec', dont_inherit=True), vars(module))
        torch.manual_seed(0)
        model = getattr(module, class_name)(**options)
        torch.manual_seed(1)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        image = torch.randn(2, 3, 64, 64) if options.get('img_size', 64) == 64 else torch.randn(2, 3, 32, 32)
        found = [model.eval().forward_features(image)]
        if hasattr(model, 'forward_stages'):
            found.append(model.forward_stages(model.embed(image)))
        else:
            found *= 2
        torch.manual_seed(2)
        output = model.train()(image)
        output.square().sum().backward()
        return found + [output, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize('change', CHANGES)
def test_carried_and_equal_or_left_by_name(family, change):
    name, path, pinned, overlay = family
    class_name, options = FAMILIES[name]
    theirs = changed(pinned, class_name, change)
    assert theirs != pinned
    findings, woven = compare_releases(pinned, theirs, overlay, path)
    left = [finding for finding in findings if finding.kind == 'left']
    carried = CARRIED | ({'before'} if name in FROM_THE_FIRST else set())
    if left:
        assert woven is None and change not in carried, left
        assert all(finding.path == path and finding.name.startswith(class_name) for finding in left)
        return
    assert change in carried
    assert [finding.kind for finding in findings if finding.name == class_name] == ['carried']
    ours, expected = (results(data, name, class_name, options) for data in (woven, theirs))
    before = results(pinned, name, class_name, options)
    assert len(ours) == len(expected) and all(map(torch.equal, ours, expected))
    assert not torch.equal(expected[0], before[0])


def test_nothing_changed(family):
    name, path, pinned, overlay = family
    findings, woven = compare_releases(pinned, pinned, overlay, path)
    assert {finding.kind for finding in findings} == {'unchanged'} and b'def forward_stages' in woven
    comments = b'# another comment\n' + pinned
    assert {finding.kind for finding in compare_releases(pinned, comments, overlay, path)[0]} == {'unchanged'}


SMALL = b'''
from nets import Module, Other, final, no_grad

SCALE = 2
OTHER = 3


class Net(Module):
    depth = 1

    def __init__(self, width):
        self.width = width
        self.unused = 1

    def grid(self, x):
        return x

    def moved_only(self, x):
        return x

    def replaced(self, x):
        return x

    def forward_features(self, x, mask=None):
        if x is None:
            x = 0
        x = self.stem(x)
        x = self.moved_only(x)
        for blk in self.blocks:
            x = blk(x)
        return x
'''
PARTIAL = b'''# Overlay: a test.
class Net(Module):
    @moved_from('forward_features', after='x = self.stem(x)', without='return x')
    def forward_stages(self, x, mask=None):
        ...
        return x

    @moved_from('forward_features', through='if x is None: ...')
    def check(self, x):
        ...

    def embed(self, x):
        self.check(x)
        return self.stem(x) * SCALE

    def replaced(self, x):
        return self.grid(x) * self.width
'''


# no person can say of these that the overlay is right as it is
DOES_NOT_WEAVE = {
    b'class Nest(Module)', b'x, mask=1', b'x = self.stem(x, 1)', b'        return 2 * x\n',
    b'    depth = 1\n\n    def check(self, x):\n        return x',
}


@pytest.mark.parametrize('old, new, name', [
    (b'SCALE = 2', b'SCALE = 3', 'SCALE'),
    (b'    depth = 1', b'    depth = 2', 'Net.depth'),
    (b'    depth = 1', b'    depth = 1\n    fresh = 1', 'Net.fresh'),
    (b'class Net(Module)', b'class Net(Module, Other)', 'Net'),
    (b'class Net(Module)', b'@final\nclass Net(Module)', 'Net'),
    (b'class Net(Module)', b'class Nest(Module)', 'Net'),
    (b'self.width = width', b'self.width = 2 * width', 'Net.self.width'),
    (b'grid(self, x):\n        return x', b'grid(self, x):\n        return 2 * x', 'Net.grid'),
    (b'replaced(self, x):\n        return x', b'replaced(self, x):\n        return 2 * x', 'Net.replaced'),
    (b'    def replaced(self, x)', b'    @property\n    def replaced(self, x)', 'Net.replaced'),
    (b'x, mask=None', b'x, mask=1', 'Net.forward_features'),
    (b'x, mask=None', b'x, *, mask=None', 'Net.forward_features'),
    (b'def forward_features', b'@no_grad\n    def forward_features', 'Net.forward_features'),
    (b'def forward_features', b'async def forward_features', 'Net.forward_features'),
    (b'x = self.stem(x)', b'x = self.stem(x, 1)', 'Net.forward_features'),
    (b'        return x\n', b'        return 2 * x\n', 'Net'),
    (b'    depth = 1', b'    depth = 1\n\n    def check(self, x):\n        return x', 'Net.check'),
])
def test_left_by_name(old, new, name):
    assert old in SMALL
    findings, woven = compare_releases(SMALL, SMALL.replace(old, new), PARTIAL, 'net.py')
    left = [finding for finding in findings if finding.kind == 'left']
    assert woven is None and left and all(f.name.startswith(name) for f in left), findings
    kept = tuple(finding.place for finding in left)
    findings, woven = compare_releases(SMALL, SMALL.replace(old, new), PARTIAL, 'net.py', kept)
    still_left = any(finding.kind == 'left' for finding in findings)
    assert still_left == (woven is None) == (new in DOES_NOT_WEAVE), findings


@pytest.mark.parametrize('old, new, kind', [
    (b'OTHER = 3', b'OTHER = 4', 'unchanged'),
    (b'self.unused = 1', b'self.unused = 2', 'unchanged'),
    (b'grid(self, x):\n        return x', b'grid(self, x):\n        """A grid."""\n        return x', 'unchanged'),
    (b'x = blk(x)', b'x = blk(x, 1)', 'carried'),
    (b'            x = 0', b'            x = 1', 'carried'),
    (b'moved_only(self, x):\n        return x', b'moved_only(self, x):\n        return 2 * x', 'carried'),
    (b'        for blk', b'        x = x + 1\n        for blk', 'carried'),
])
def test_carried_or_unchanged(old, new, kind):
    assert old in SMALL
    findings, woven = compare_releases(SMALL, SMALL.replace(old, new), PARTIAL, 'net.py')
    assert [finding.kind for finding in findings] == [kind] and new.split(b'\n')[-1] in woven


@pytest.mark.parametrize('old, new', [
    (b'            x = 0', b'            x = 1'),
    (b'            x = blk(x)', b'            x = blk(x, 1)'),
    (b'        for blk in self.blocks:', b'        for blk in self.blocks[1:]:'),
    (b'            x = blk(x)', b'            x = blk(x)\n        else:\n            x = 0'),
])
def test_dropped_compound_statement_is_compared_whole(old, new):
    """The anchor leaves the body open; what stands in it is dropped all the same."""
    assert old in SMALL
    dropped = PARTIAL.replace(
        b"through='if x is None: ...'", b"through='x = self.moved_only(x)', without='if x is None: ...'")
    dropped = dropped.replace(b"after='x = self.stem(x)', without='return x'", b"after='for blk in self.blocks: ...'")
    dropped = dropped.replace(b'        ...\n        return x\n', b'        ...\n')
    findings, woven = compare_releases(SMALL, SMALL, dropped, 'net.py')
    assert [finding.kind for finding in findings] == ['unchanged'] and woven
    findings, woven = compare_releases(SMALL, SMALL.replace(old, new), dropped, 'net.py')
    assert woven is None and {f.name for f in findings if f.kind == 'left'} == {'Net.forward_features'}, findings
