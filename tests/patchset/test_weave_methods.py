"""Whole members of a class: added, replaced, removed; bases and attributes."""
import pytest

from weaving import assert_refused, assert_woven

NET = '''
import torch


class Net(nn.Module):
    """A net."""
    fused: bool = True
    depth = 2  # blocks

    def __init__(self):
        self.x = 1

    # Called by train.py
    @torch.jit.ignore
    def forward(self, x):
        """Run."""
        return x

    def head(self, x):
        return x  # done


def net():
    return Net()
'''


def test_method_is_replaced_where_it_stands_and_decorators_are_the_overlays():
    assert_woven(NET, '''
        class Net:
            def forward(self, x):
                return 2 * x
    ''', NET.replace('''    @torch.jit.ignore
    def forward(self, x):
        """Run."""
        return x
''', '''    def forward(self, x):
        return 2 * x
'''))


def test_comments_above_a_method_give_way_to_the_overlays_own():
    assert_woven(NET, '''
        class Net:
            # Twice
            @torch.no_grad()
            async def forward(self, x):
                return 2 * x
                # and no more
    ''', NET.replace('''    # Called by train.py
    @torch.jit.ignore
    def forward(self, x):
        """Run."""
        return x
''', '''    # Twice
    @torch.no_grad()
    async def forward(self, x):
        return 2 * x
        # and no more
'''))


def test_added_method_stands_before_the_next_member_that_has_a_place():
    assert_woven(NET, '''
        class Net:
            def embed(self, x):
                return x

            def stages(self, x):
                return x

            def forward(self, x):
                return self.stages(self.embed(x))
    ''', NET.replace('''    # Called by train.py
    @torch.jit.ignore
    def forward(self, x):
        """Run."""
        return x
''', '''    def embed(self, x):
        return x

    def stages(self, x):
        return x

    # Called by train.py
    def forward(self, x):
        return self.stages(self.embed(x))
'''))


def test_added_method_stands_after_the_previous_member_if_none_follows():
    assert_woven(NET, '''
        class Net:
            def forward(self, x):
                return x

            def first(self, x):
                return x

            def second(self, x):
                return x
    ''', NET.replace('''    @torch.jit.ignore
    def forward(self, x):
        """Run."""
        return x
''', '''    def forward(self, x):
        return x

    def first(self, x):
        return x

    def second(self, x):
        return x
'''))


def test_added_method_stands_at_the_end_of_the_class_if_nothing_else_has_a_place():
    assert_woven(NET, '''
        class Net:
            def pool(self, x):
                return x
    ''', NET.replace('''        return x  # done
''', '''        return x  # done

    def pool(self, x):
        return x
'''))


def test_comments_after_the_last_statement_belong_to_a_method():
    before = '''
        class Net:
            def forward(self, x):
                return x
                # the end

                # really

            # About head
            def head(self, x):
                return x
                # last
    '''
    assert_woven(before, '''
        class Net:
            def forward(self, x):
                return 2

            def tail(self, x):
                return x

            del head
    ''', '''
        class Net:
            def forward(self, x):
                return 2

            def tail(self, x):
                return x
    ''')


def test_method_is_removed_with_its_comments_and_the_blank_line():
    assert_woven(NET, 'class Net:\n    del forward\n', NET.replace('''
    # Called by train.py
    @torch.jit.ignore
    def forward(self, x):
        """Run."""
        return x
''', ''))


def test_several_are_removed():
    assert_woven(NET, 'class Net:\n    del fused, forward, head\n', '''
        import torch


        class Net(nn.Module):
            """A net."""
            depth = 2  # blocks

            def __init__(self):
                self.x = 1


        def net():
            return Net()
    ''')


def test_attributes_are_replaced_in_place_and_added_after_those_at_the_head():
    assert_woven(NET, '''
        class Net:
            fused: bool = False
            cut: int = 3
            width = (
                4,
            )
    ''', NET.replace('''    fused: bool = True
    depth = 2  # blocks
''', '''    fused: bool = False
    depth = 2  # blocks
    cut: int = 3
    width = (
        4,
    )
'''))


def test_attribute_follows_the_docstring_of_a_class_without_attributes():
    assert_woven('''
        class Net:
            """A net."""

            def forward(self):
                pass
    ''', 'class Net:\n    cut = 3\n', '''
        class Net:
            """A net."""
            cut = 3

            def forward(self):
                pass
    ''')


def test_attribute_stands_first_in_a_class_that_starts_with_a_method():
    assert_woven('''
        class Net:

            @property
            def forward(self):
                pass
    ''', 'class Net:\n    cut = 3\n', '''
        class Net:

            cut = 3

            @property
            def forward(self):
                pass
    ''')


def test_attribute_and_replaced_method_at_the_same_place():
    assert_woven('class Net:\n    def f(self):\n        pass\n', '''
        class Net:
            def f(self):
                return 1

            cut = 3
    ''', 'class Net:\n    cut = 3\n\n    def f(self):\n        return 1\n')


@pytest.mark.parametrize('header, bases, woven', [
    ('class Net(nn.Module):', '(Mixin, nn.Module)', 'class Net(Mixin, nn.Module):'),
    ('class Net(nn.Module):  # a net', '(Mixin, nn.Module)', 'class Net(Mixin, nn.Module):  # a net'),
    ('class Net:', '(Mixin)', 'class Net(Mixin):'),
    ('class  Net () :', '(Mixin)', 'class  Net(Mixin) :'),
    ('class Net(\n    nn.Module,  # base\n):', '(Mixin, nn.Module)', 'class Net(\n    Mixin, nn.Module,  # base\n):'),
    ('class Net(A, metaclass=Meta):', '(Mixin, A, metaclass=Meta)', 'class Net(Mixin, A, metaclass=Meta):'),
    ('class Net(nn.Module):', '', 'class Net(nn.Module):'),
    ('class Net(a.B , C):', '(a.B, C)', 'class Net(a.B , C):'),
])
def test_written_bases_replace_upstreams(header, bases, woven):
    prefix = 'from x import A, B, C, Meta, Mixin, a, nn\n@register\n'
    assert_woven(f'{prefix}{header}\n    x = 1\n', f'class Net{bases}:\n    pass\n', f'{prefix}{woven}\n    x = 1\n')


def test_decorated_class_keeps_its_decorators_and_a_neighbour_goes_above_them():
    assert_woven('''
        import x


        # About Net
        @x.register
        class Net:
            def forward(self):
                return 1
    ''', '''
        class Helper:
            pass


        class Net:
            def forward(self):
                return Helper()
    ''', '''
        import x


        class Helper:
            pass


        # About Net
        @x.register
        class Net:
            def forward(self):
                return Helper()
    ''')


@pytest.mark.parametrize('change, parts', [
    ('class Net:\n    del backward\n', ['Net.backward', 'cannot be removed']),
    ('class Net:\n    def fused(self):\n        pass\n', ['Net.fused', 'not a plain function']),
    ('class Net:\n    forward = 1\n', ['Net.forward', 'not a plain assignment']),
    ('class Net:\n    def net(self):\n        pass\n    del net\n', ['Net.net', 'defined twice']),
    ('class Net:\n    """Doc."""\n', ['Net', 'no docstring']),
    ('@x\nclass Net:\n    pass\n', ['Net', 'decorators']),
    ('class Net:\n    class Inner:\n        pass\n', ['Net.Inner', 'class inside a class']),
    ('class Net:\n    if True:\n        def forward(self):\n            pass\n', ['line 3', 'under a condition']),
    ('class Net:\n    a, b = 1, 2\n', ['line 3', 'an overlay holds']),
    ('class Net:\n  def forward(self, x):\n    return x\n', ['Net.forward', 'indented']),
    ('class Net: a = 1; b = 2\n', ['Net', 'more than one statement']),
    ('class Net(Mixin):\n    pass\n', ['Net', "uses 'Mixin'"]),
    ('class Net:\n    def forward(self, x) -> Tensor:\n        return x\n', ['Net.forward', "uses 'Tensor'"]),
    ('class Net:\n    def forward(self, x):\n        return fn(x)\n', ['Net.forward', "uses 'fn'"]),
    ('class Net:\n    @register\n    def forward(self, x):\n        return x\n', ['Net.forward', "uses 'register'"]),
    ('class Net:\n    depth = DEPTH\n', ['Net.depth', "uses 'DEPTH'"]),
    ('class New:\n    def f(self):\n        return missing\n', ['New.f', "uses 'missing'"]),
])
def test_refused(change, parts):
    assert_refused(NET, change, *parts)


@pytest.mark.parametrize('members', [
    '@property\ndef p(self):\n    return 1\n\n@p.setter\ndef p(self, v):\n    pass\n',
    '@overload\ndef p(self, v): ...\n\ndef p(self, v):\n    return v\n',
])
@pytest.mark.parametrize('upstream', [True, False])
def test_properties_with_setters_and_overloads_are_refused_on_both_sides(members, upstream):
    body = 'class Net:\n' + ''.join(f'    {line}\n' if line else '\n' for line in members.splitlines())
    plain = 'class Net:\n    def p(self):\n        pass\n'
    assert_refused(*((body, plain) if upstream else (plain, body)), 'Net.p', '2 times' if upstream else 'defined twice')


def test_conditional_definition_upstream_is_refused():
    before = 'class Net:\n    x = 1\n    if x:\n        def p(self):\n            pass\n'
    assert_refused(before, 'class Net:\n    def p(self):\n        pass\n', 'Net.p', 'under a condition')


def test_class_whose_body_is_on_the_header_line_is_refused():
    assert_refused('class Net: x = 1\n', 'class Net:\n    y = 1\n', 'Net', 'more than one statement')
