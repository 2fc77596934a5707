"""Functions, assignments, new classes and bytes of a module."""
import pytest

from patchset.weave import weave
from weaving import PATH, assert_refused, assert_woven, overlay

MODULE = '''
"""Doc."""
import x

LIMIT = 3  # blocks
NAMES: list = [
    'a',
]


def helper(y):
    return y


class Net:
    def forward(self):
        return 1


def net():
    return Net()
'''


def test_new_class_stands_before_the_class_that_follows_it():
    assert_woven(MODULE, '''
        import x


        # Crosses the cut
        class Tokens:
            grid = 1
            # the end


        class Net:
            def forward(self):
                return 2
    ''', MODULE.replace('''class Net:
    def forward(self):
        return 1
''', '''# Crosses the cut
class Tokens:
    grid = 1
    # the end


class Net:
    def forward(self):
        return 2
'''))


def test_new_class_stands_after_the_previous_one_if_none_follows():
    assert_woven(MODULE, '''
        class Net:
            def last(self):
                return 2


        class Other:
            pass


        def other():
            return Other()
    ''', MODULE.replace('''        return 1
''', '''        return 1

    def last(self):
        return 2


class Other:
    pass


def other():
    return Other()
'''))


def test_functions_and_assignments_are_replaced_added_and_removed():
    assert_woven(MODULE, '''
        LIMIT = 4
        MORE = 5


        def before(y):
            return MORE


        def helper(y):
            return before(y)


        del NAMES, net
    ''', '''
        """Doc."""
        import x

        LIMIT = 4


        MORE = 5


        def before(y):
            return MORE


        def helper(y):
            return before(y)


        class Net:
            def forward(self):
                return 1
    ''')


def test_additions_without_a_neighbour_stand_at_the_end():
    assert_woven(MODULE, 'A = 1\nB = 2\n\n\ndef more():\n    return A\n', MODULE + '''

A = 1
B = 2


def more():
    return A
''')


def test_function_is_split_like_a_method():
    assert_woven('''
        def run(x):
            x = first(x)
            # then
            return second(x)
    '''.replace('first', 'abs').replace('second', 'str'), '''
        @moved_from('run', through='x = abs(x)')
        def one(x):
            ...
            return x

        @moved_from('run', after='x = abs(x)')
        def two(x):
            ...

        def run(x):
            return two(one(x))
    ''', '''
        def one(x):
            x = abs(x)
            return x


        def two(x):
            # then
            return str(x)


        def run(x):
            return two(one(x))
    ''')


@pytest.mark.parametrize('change, parts', [
    ('class Nett:\n    @moved_from("forward")\n    def f(self):\n        ...\n', ['Nett', 'no such class']),
    ('@moved_from("runn")\ndef f():\n    ...\n', ['f', 'runn', 'no such function']),
    ('"""Doc."""\n', ['no docstring']),
    ('if x:\n    LIMIT = 1\n', ['line 2', 'under a condition']),
    ('LIMIT += 1\n', ['line 2', 'an overlay holds']),
    ('for i in x:\n    pass\n', ['line 2', 'an overlay holds']),
    ('class Net(:\n    pass\n', ['does not parse', 'line 2']),
    ('x = 1\n', ["x: upstream imports this name"]),
    ('from y import helper\n', ["imports 'helper'", 'upstream defines']),
    ('from y import x\n', ["imports 'x'", 'upstream defines']),
    ('def Net():\n    pass\n', ['Net', 'not a plain function']),
    ('def f():\n    return undefined\n', ["f: uses 'undefined'"]),
    ('VALUE = undefined\n', ["VALUE: uses 'undefined'"]),
])
def test_refused(change, parts):
    assert_refused(MODULE, change, *parts)


def test_overlay_must_say_that_it_is_one():
    with pytest.raises(Exception, match='timm/models/net.py: exists upstream; .*# Overlay:'):
        weave(b'x = 1\n', b'x = 2\n', PATH)


@pytest.mark.parametrize('upstream, part', [
    (b'def f(:\n', 'upstream timm/models/net.py: does not parse'),
    (b'# coding: latin-1\nx = "\xe9"\n', 'iso-8859-1'),
    (b'x = "\xe9"\n', 'does not parse'),
    (b'\xef\xbb\xbfx = 1\n', 'utf-8-sig'),
    (b'x = 1\0\n', 'does not parse'),
])
def test_upstream_that_cannot_be_read(upstream, part):
    with pytest.raises(Exception, match=part):
        weave(upstream, overlay('x = 2\n'), PATH)


CRLF = b'''"""Doc."""\r
from a import b\r
\r
\r
class Net:\r
    def f(self):\r
        x = "\xc3\xa9\xe2\x80\xa8"; y = "\x0c"   \r
\r
    def forward(self, x):\r
        x = b(x)  # \xe2\x82\xac\r
        return x\r
\x0c\r
class Other: pass   \r
\ttail = 1'''.replace(b'\ttail', b'# no final newline: tail')


def test_every_other_byte_stays_with_windows_line_ends_odd_characters_and_no_final_newline():
    change = '''
        from a import c


        class Net:
            @moved_from('forward', through='x = b(x)')
            def embed(self, x):
                ...
                return x

            @moved_from('forward', after='x = b(x)')
            def stages(self, x):
                x = c(x)
                ...
    '''
    woven = weave(CRLF, overlay(change), PATH)
    assert woven == CRLF.replace(b'import b', b'import b, c').replace(
        b'    def forward(self, x):\r\n', b'    def embed(self, x):\r\n').replace(
        b'        return x\r\n',
        b'        return x\r\n\r\n    def stages(self, x):\r\n        x = c(x)\r\n        return x\r\n')
    assert woven == weave(CRLF, overlay(change).replace(b'\n', b'\r\n'), PATH)


def test_tabs_are_kept_if_the_overlay_has_them_and_refused_otherwise():
    before = b'class Net:\n\tdef f(self):\n\t\tx = 1\n\t\treturn x\n'
    change = 'class Net:\n\t@moved_from("f")\n\tdef g(self):\n\t\ty = 2\n\t\t...\n'
    assert weave(before, overlay(change), PATH) == b'class Net:\n\tdef g(self):\n\t\ty = 2\n\t\tx = 1\n\t\treturn x\n'
    with pytest.raises(Exception, match=r"Net.g: must be indented as upstream indents there, by '\\t'"):
        weave(before, overlay(change.replace('\t', '    ')), PATH)


def test_replacing_the_last_statement_of_a_file_without_final_newline():
    assert weave(b'a = 1\nb = 2', overlay('b = 3\n'), PATH) == b'a = 1\nb = 3'
    assert weave(b'a = 1\nb = 2', overlay('c = 3\n'), PATH) == b'a = 1\nb = 2\nc = 3'


def test_empty_upstream_file():
    assert weave(b'', overlay('import a\n'), PATH) == b'import a\n'
    assert weave(b'', overlay('c = 3\n'), PATH) == b'c = 3\n'


def test_an_overlay_that_says_nothing_changes_nothing():
    assert weave(CRLF, overlay('class Net:\n    pass\n'), PATH) == CRLF
