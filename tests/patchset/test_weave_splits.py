"""`moved_from`: upstream's statements land in new methods."""
import pytest

from weaving import assert_refused, assert_woven

NET = '''
from typing import Optional


class Net:

    def __init__(self):
        self.mixed = True

    # All but the head
    @property
    def forward_features(
            self,
            x,
            mask: Optional[int] = None,
    ):
        """Upstream's words."""
        # stem
        x = self.patch_embed(x)
        x, rope = self._pos_embed(x)  # positions

        # drop
        x = self.drop(
            x,
        )

        for i, blk in enumerate(self.blocks):
            if self.mixed:
                x = blk(x, rope[i], mask)
            else:
                x = blk(x, rope, mask)
            # blk done

        # norm
        x = self.norm(x)
        return x
        # the end

    def forward(self, x):
        return self.forward_features(x)
'''

HEAD, REST = NET.split("    # All but the head\n")
TAIL = REST[REST.index('    def forward(self, x)'):]

PARTS = '''
class Net:
    @moved_from('forward_features', through='x = self.patch_embed(x)')
    def embed_patches(self, x):
        ...  # upstream's statements
        return x

    @moved_from('forward_features', after='x = self.patch_embed(x)', before='for i, blk in enumerate(self.blocks): ...')
    @final
    def embed_positions(self, x):
        """Ours."""

        ...

        return x, rope

    @moved_from(
        'forward_features',
        start='for i, blk in enumerate(self.blocks): ...',
    )
    # stages
    async def forward_stages(self, x, mask=None):
        x, rope = x
        ...
        # ours, too
'''.replace('    @final\n', '    @property\n')


def test_method_in_three_parts_keeps_text_comments_and_order():
    assert_woven(NET, PARTS, HEAD + '''    # All but the head
    @property
    def forward_features(
            self,
            x,
            mask: Optional[int] = None,
    ):
        """Upstream's words."""
        return self.forward_stages(self.embed(x), mask=mask)

    def embed_patches(self, x):
        # stem
        x = self.patch_embed(x)
        return x

    @property
    def embed_positions(self, x):
        """Ours."""

        x, rope = self._pos_embed(x)  # positions

        # drop
        x = self.drop(
            x,
        )

        return x, rope

    # stages
    async def forward_stages(self, x, mask=None):
        x, rope = x
        for i, blk in enumerate(self.blocks):
            if self.mixed:
                x = blk(x, rope[i], mask)
            else:
                x = blk(x, rope, mask)
            # blk done

        # norm
        x = self.norm(x)
        return x
        # the end
        # ours, too

''' + TAIL)


SIMPLE = '''
class Net:
    def f(self, x):
        x = self.a(x)
        x = self.b(x)
        x = self.c(x)
        return x

    def g(self):
        pass
'''


def simple(parts):
    return f'\nclass Net:\n{parts}\n    def g(self):\n        pass\n'


def test_parts_stand_in_upstreams_order_and_the_whole_method_after_the_part_that_it_follows():
    assert_woven(SIMPLE, '''
        class Net:
            @moved_from('f', after='x = self.b(x)')
            def late(self, x):
                ...

            def f(self, x):
                return self.late(self.early(x))

            def helper(self):
                pass

            @moved_from('f', through='x = self.b(x)')
            def early(self, x):
                ...
                return x

            def g(self):
                pass
    ''', simple('''
    def helper(self):
        pass

    def early(self, x):
        x = self.a(x)
        x = self.b(x)
        return x

    def late(self, x):
        x = self.c(x)
        return x

    def f(self, x):
        return self.late(self.early(x))
'''.lstrip('\n')))


def test_whole_method_before_all_parts():
    assert_woven(SIMPLE, '''
        class Net:
            def f(self, x):
                return self.late(x)

            @moved_from('f')
            def late(self, x):
                ...
    ''', simple('''
    def f(self, x):
        return self.late(x)

    def late(self, x):
        x = self.a(x)
        x = self.b(x)
        x = self.c(x)
        return x
'''.lstrip('\n')))


def test_statements_are_dropped_by_name():
    assert_woven(SIMPLE, '''
        class Net:
            @moved_from('f', after='x = self.a(x)', without=('x = self.b(x)', 'return x'))
            def late(self, x):
                ...
                return x, 1
    ''', simple('''
    def late(self, x):
        x = self.c(x)
        return x, 1
'''.lstrip('\n')))


def test_a_part_may_keep_the_name_of_its_source():
    assert_woven(SIMPLE, '''
        class Net:
            @moved_from('f', through='x = self.a(x)')
            def early(self, x):
                ...
                return x

            @moved_from('f', after='x = self.a(x)')
            def f(self, x):
                x = self.early(x)
                ...
    ''', simple('''
    def early(self, x):
        x = self.a(x)
        return x

    def f(self, x):
        x = self.early(x)
        x = self.b(x)
        x = self.c(x)
        return x
'''.lstrip('\n')))


def test_overlapping_drop_and_move():
    """What one part leaves out, another may take."""
    assert_woven(SIMPLE, '''
        class Net:
            @moved_from('f', without='x = self.b(x)')
            def most(self, x):
                ...

            @moved_from('f', start='x = self.b(x)', through='x = self.b(x)')
            def middle(self, x):
                ...
                return x
    ''', simple('''
    def most(self, x):
        x = self.a(x)
        x = self.c(x)
        return x

    def middle(self, x):
        x = self.b(x)
        return x
'''.lstrip('\n')))


@pytest.mark.parametrize('statement, anchor, found', [
    ('for blk in self.blocks:\n            x = blk(x)', 'for blk in self.blocks: ...', True),
    ('for blk in self.blocks:\n            x = blk(x)\n        else:\n            x = 1',
     'for blk in self.blocks: ...', True),
    ('for blk in self.blocks:\n            x = blk(x)', 'for blk in self.blocks:\n    x = blk(x)', True),
    ('for blk in self.blocks:\n            x = blk(x)', 'for blk in self.blocks:\n    x = blk(y)', False),
    ('for blk in self.blocks:\n            x = blk(x)', 'for b in self.blocks: ...', False),
    ('if x:\n            x = 1', 'if x: ...', True),
    ('if x:\n            x = 1\n        elif y:\n            x = 2', 'if x: ...', True),
    ('if x:\n            x = 1\n        elif y:\n            x = 2', 'if x:\n    x = 1', False),
    ('if x:\n            x = 1\n        else:\n            x = 2', 'if x: ...\nelse: ...', True),
    ('if x:\n            x = 1\n        else:\n            x = 2', 'if x: ...\nelse:\n    x = 3', False),
    ('if x:\n            x = 1', 'if x: ...\nelse: ...', False),
    ('try:\n            x = 1\n        except E:\n            x = 2\n        finally:\n            x = 3',
     'try: ...\nexcept E: ...', True),
    ('try:\n            x = 1\n        except E:\n            x = 2', 'try: ...\nexcept F: ...', False),
    ('with a as b:\n            x = 1', 'with a as b: ...', True),
    ('with a as b:\n            x = 1', 'with a: ...', False),
    ('x = f(  x , y=1)  # why', 'x = f(x, y=1)', True),
    ('x = f(x)', 'x = f( x)', True),
    ('x = f(x)', 'x += f(x)', False),
    ('x = f(1)', 'x = f(1.0)', False),
    ('x = f(1)', 'x = f(True)', False),
    ("x = f('a')", 'x = f("a")', True),
    ("x = f('a')", "x = f(u'a')", True),
    ('x = f(...)', 'x = f(1)', False),
    ('x: int = 1', 'x: int = 1', True),
    ('x: int = 1', 'x = 1', False),
    ('await x', 'await x', True),
    ('yield x', 'yield x', True),
    ('def inner():\n            x = 1', 'def inner(): ...', True),
])
def test_anchors_compare_code(statement, anchor, found):
    before = f'from a import *\nclass Net:\n    async def f(self, x):\n        {statement}\n        self.last()\n'
    change = f'class Net:\n    @moved_from("f", after={anchor!r})\n    def late(self, x):\n        ...\n'
    if found:
        assert_woven(before, change, 'from a import *\nclass Net:\n    def late(self, x):\n        self.last()\n')
    else:
        assert_refused(before, change, 'Net.late', repr(anchor)[1:-1], 'upstream has no statement')


def part(arguments, name='late', body='...', parameters='self, x'):
    return f'class Net:\n    @moved_from({arguments})\n    def {name}({parameters}):\n        {body}\n'


@pytest.mark.parametrize('change, parts', [
    (part("'ff'"), ['Net.ff', 'no such method']),
    (part("'f', after='x = self.d(x)'"), ['Net.late', "'x = self.d(x)'", 'no statement']),
    (part("'f', after='x = '"), ['Net.late', "'x = '", 'does not parse']),
    (part("'f', after='x = 1; y = 2'"), ['Net.late', 'exactly one statement']),
    (part("'f', start='x = self.a(x)', after='x = self.a(x)'"), ['Net.late', 'start or after, not both']),
    (part("'f', through='x = self.a(x)', before='x = self.a(x)'"), ['Net.late', 'through or before, not both']),
    (part("'f', start='x = self.c(x)', through='x = self.a(x)'"), ['Net.late', 'empty']),
    (part("'f', start='x = self.c(x)', before='x = self.c(x)'"), ['Net.late', 'empty']),
    (part("'f', start='return x', without='return x'"), ['Net.late', 'empty']),
    (part("'f', start='x = self.b(x)'"), ['Net.f', "'x = self.a(x)' (line 3)", 'left over']),
    (part("'f', through='x = self.b(x)'"), ['Net.f', "'x = self.c(x)' (line 5)", 'left over']),
    (part("'f', before='return x'") + part("'f'", 'all')[11:],
     ['Net.f', "'x = self.a(x)' (line 3)", 'moves twice', 'late', 'all']),
    (part("'f', after='x = self.a(x)', without='x = self.a(x)'"), ['Net.late', 'line 3', 'outside its range']),
    (part("'f', without='x = self.d(x)'"), ['Net.late', "'x = self.d(x)'", 'no statement']),
    (part("'f', 'x'"), ['Net.late', '@moved_from takes']),
    (part(''), ['Net.late', '@moved_from takes']),
    (part("'f', until='x = self.a(x)'"), ['Net.late', '@moved_from takes']),
    (part("'f', after=1"), ['Net.late', '@moved_from takes']),
    (part("'f', without=(1,)"), ['Net.late', '@moved_from takes']),
    (part("name, after='return x'"), ['Net.late', '@moved_from takes']),
    ("class Net:\n    @moved_from\n    def late(self):\n        ...\n", ['Net.late', '@moved_from takes']),
    ("class Net:\n    @moved_from('f')\n    @moved_from('g')\n    def late(self):\n        ...\n", ['one @moved_from']),
    (part("'f'", body='return x'), ['Net.late', "exactly one '...'", 'has 0']),
    (part("'f'", body='...\n        ...'), ['Net.late', "exactly one '...'", 'has 2']),
    (part("'f'", body='if x:\n            ...'), ['Net.late', "exactly one '...'", 'has 0']),
    (part("'f', without='return x'", body='...; x = 1'), ['Net.late', 'more than one statement']),
    (part("'f'", name='g'), ['Net.g', 'upstream has it already']),
    (part("'f'") + '    del f\n', ['Net.f', 'is split']),
    (part("'f'", body='...\n        x = 1'), ['Net.late', "'return' in line 6", 'more of f follows']),
    (part("'f', through='return x'", body='x = 1\n            ...'), ['does not parse']),
    (part("'f'", parameters='self'), ['Net.late', "uses 'x' (line 3 of upstream)", 'the cut of f']),
    (part("'f'", body='y = z\n        ...'), ['Net.late', "uses 'z'"]),
    (part("'f'", body='y = x\n        del x\n        ...'), ['Net.late', "uses 'x' (line 3 of upstream)"]),
])
def test_refused(change, parts):
    assert_refused(SIMPLE, change, *parts)


def test_ambiguous_anchor():
    before = SIMPLE.replace('x = self.a(x)', 'x = x + 1').replace('x = self.c(x)', 'x = x + 1')
    assert_refused(before, part("'f', after='x = x + 1'"), 'Net.late', "'x = x + 1' is ambiguous", 'lines 3 and 5')


def test_source_on_one_line():
    assert_refused('class Net:\n    def f(self): return 1\n', part("'f'"), 'Net', 'line 2', 'more than one statement')


def test_two_statements_on_one_line():
    before = 'class Net:\n    def f(self, x):\n        x = 1; x = 2\n        return x\n'
    assert_refused(before, part("'f', after='x = 1'"), 'Net', 'line 3', 'more than one statement')


def test_return_inside_a_moved_statement():
    before = 'class Net:\n    def f(self, x):\n        if x:\n            return 1\n        x = 2\n        return x\n'
    change = part("'f', before='x = 2'", body='...\n        return x') + part("'f', start='x = 2'", 'rest')[11:]
    assert_refused(before, change, 'Net.late', "'return' in line 4")
    # a return of a function inside is another matter
    before = before.replace('if x:', 'def g():')
    assert_woven(before, change, '''
        class Net:
            def late(self, x):
                def g():
                    return 1
                return x

            def rest(self, x):
                x = 2
                return x
    ''')


CUT = '''
class Net:
    def f(self, x, mask=None):
        shape = x.shape
        {first}
        {use}
        return x
'''


@pytest.mark.parametrize('first, use, missing', [
    ('x = 1', 'x = shape', 'shape'),
    ('x = 1', 'x = mask', 'mask'),
    ('y = 1', 'x += y', 'y'),
    ('y = 1', 'y += x', 'y'),
    ('y = 1', 'x[y] = 1', 'y'),
    ('y = 1', 'x = [y for _ in x]', 'y'),
    ('y = 1', 'x = [z for z in y]', 'y'),
    ('y = 1', 'x = lambda: y', 'y'),
    ('y = 1', 'def g(): return y', 'y'),
    ('y = 1', 'def g(z=y): return z', 'y'),
    ('y = 1', "x = f'{y}'", 'y'),
    ('y = 1', 'y = y', 'y'),
    ('y = 1', 'for x in y: pass', 'y'),
    ('y = 1', 'if x: y = 2\n        x = (y, mask)', 'mask'),
    ('y = 1', 'with y: pass', 'y'),
    ('y = 1', 'while y: pass', 'y'),
    ('import os', 'x = os', 'os'),
    ('with x as y: pass', 'x = y', 'y'),
    ('(y := 1)', 'x = y', 'y'),
    ('def y(): pass', 'x = y()', 'y'),
    # a global of the same name is not what upstream meant
    ('print = x', 'x = print', 'print'),
    # nothing is missing
    ('y = 1', 'x = [y for y in x]', None),
    ('y = 1', 'x = [z for y in x for z in y]', None),
    ('y = 1', 'x = {y: z for y, z in x}', None),
    ('y = 1', 'x = lambda y: y', None),
    ('y = 1', 'def g(y): return y', None),
    ('y = 1', 'for y in x: x = y', None),
    ('y = 1', 'for i in x:\n            if i: x = y\n            y = i', None),
    ('y = 1', 'with x as y: x = y', None),
    ('y = 1', 'if x: y = 2\n        x = y', None),
    ('y = 1', 'try: y = 2\n        except ValueError as e: x = e\n        x = y', None),
    ('y = 1', 'x = (y := 2) + y', None),
    ('y = 1', 'y: int = 2\n        x = y', None),
    ('y = 1', 'import y\n        x = y', None),
    ('y = 1', 'x = len(x)', None),
])
def test_names_after_the_cut(first, use, missing):
    before = CUT.format(first=first, use=use)
    change = f'''
class Net:
    @moved_from('f', through={first!r})
    def head(self, x, mask=None):
        ...

    @moved_from('f', after={first!r})
    def tail(self, x):
        ...
'''
    if missing:
        assert_refused(before, change, 'Net.tail', f"uses '{missing}'", 'the cut of f')
    else:
        header = '    def f(self, x, mask=None):\n'
        assert_woven(before, change, before.replace(header, header.replace('f(', 'head(', 1)).replace(
            f'        {first}\n', f'        {first}\n\n    def tail(self, x):\n'))
