"""An overlay's imports join upstream's."""
import pytest

from weaving import assert_refused, assert_woven


@pytest.mark.parametrize('before, change, after', [
    # names that are there already
    ('from a import b, c', 'from a import c, b', 'from a import b, c'),
    ('import torch', 'import torch', 'import torch'),
    ('import torch.nn as nn', 'import torch.nn as nn', 'import torch.nn as nn'),
    ('from .a import b as b', 'from .a import b as b', 'from .a import b as b'),
    # a further name, in order where upstream is in order
    ('from a import b, d', 'from a import c', 'from a import b, c, d'),
    ('from a import d, b', 'from a import c', 'from a import d, b, c'),
    ('from a import b, d  # why', 'from a import e', 'from a import b, d, e  # why'),
    ('from a import b, d', 'from a import c, e, a', 'from a import a, b, c, d, e'),
    ('from a import b', 'from a import b as c', 'from a import b, b as c'),
    ('from .a import b', 'from a import c', 'from a import c\n\nfrom .a import b'),
    ('from a import (b, d)', 'from a import e', 'from a import (b, d, e)'),
    ('from a import (\n    b,\n    d,\n)', 'from a import c', 'from a import (\n    b,\n    c,\n    d,\n)'),
    ('from a import (\n    b,\n    d,  # why\n)', 'from a import e',
     'from a import (\n    b,\n    d,  # why\n    e,\n)'),
    ('from a import (\n    b,\n    d  # why\n)', 'from a import e', 'from a import (\n    b,\n    d,  # why\n    e\n)'),
    ('from a import (\n    b,\n    d)', 'from a import e', 'from a import (\n    b,\n    d,\n    e)'),
    ('from a import b, \\\n    d', 'from a import e', 'from a import b, \\\n    d, e'),
    ('from a import *', 'from a import b', 'from a import *\nfrom a import b'),
    # a further module, in its block
    ('from .a import b\nfrom .d import e', 'from .c import f', 'from .a import b\nfrom .c import f\nfrom .d import e'),
    ('from .b import b', 'from .a import f', 'from .a import f\nfrom .b import b'),
    ('from .z import *\n\nfrom ._a import b\nfrom ._d import e', 'from ._c import f',
     'from .z import *\n\nfrom ._a import b\nfrom ._c import f\nfrom ._d import e'),
    ('from .a import b  # why', 'from .c import (\n    d,\n)', 'from .a import b  # why\nfrom .c import (\n    d,\n)'),
    ('import math\nimport sys\n\nimport torch', 'import os', 'import math\nimport os\nimport sys\n\nimport torch'),
    ('import math\n\nimport torch\n\nfrom timm.a import b', 'from timm.c import d',
     'import math\n\nimport torch\n\nfrom timm.a import b\nfrom timm.c import d'),
    ('import math', 'import torch', 'import math\n\nimport torch'),
    ('import torch', 'from .a import b', 'import torch\n\nfrom .a import b'),
    ('from timm.a import b', 'from .c import d', 'from timm.a import b\nfrom .c import d'),
    ('"""Doc."""\nx = 1', 'import a', '"""Doc."""\nimport a\nx = 1'),
    ('# Licence\n\nimport b', 'from __future__ import annotations',
     '# Licence\n\nfrom __future__ import annotations\n\nimport b'),
    ('"""Doc."""\nimport b', 'from __future__ import annotations',
     '"""Doc."""\nfrom __future__ import annotations\nimport b'),
    ('import torch', 'import torch.nn', 'import torch\nimport torch.nn'),
])
def test_merge(before, change, after):
    assert_woven(before + '\n', change + '\n', after + '\n')


def test_long_lines_wrap():
    name = 'n' * 110
    assert_woven(f'from a import {name}\n', 'from a import o\n', f'from a import {name}, \\\n    o\n')
    assert_woven(f'from a import ({name})\n', 'from a import o\n', f'from a import ({name},\n    o)\n')


def test_conditional_imports_upstream_stay_and_do_not_count():
    before = 'import a\ntry:\n    from b import c\nexcept ImportError:\n    c = None\n'
    assert_woven(before, 'from a import d\n', before.replace('import a\n', 'import a\nfrom a import d\n', 1))


def test_import_of_a_name_that_upstream_defines_is_refused():
    assert_refused('from a import b\n', 'from c import b\n', "imports 'b'", 'line 1')
    assert_refused('def b():\n    pass\n', 'from c import d as b\n', "imports 'b'", 'line 1')
