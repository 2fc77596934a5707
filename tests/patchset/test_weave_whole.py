"""`forward_features` keeps upstream's header; its body is the composition, in which no argument is lost."""
import pytest

from weaving import assert_refused, assert_woven

HEADER = '''
class Net:
    def forward_features(self, {arguments}):
        """Upstream's words."""
'''
BODY = '''        # why
        x = self.stem(x)
        x = self.blocks(x)
        return x
'''
STAGES = '''
class Net:
    {embed}@moved_from('forward_features', after='x = self.stem(x)')
    def forward_stages(self, {arguments}):
        # why
        ...
'''
MOVED = '''
    def forward_stages(self, {arguments}):
        # why
        x = self.blocks(x)
        return x
'''
EMBED = 'def embed(self, {}): return x\n\n    '


@pytest.mark.parametrize('whole, embed, stages, body', [
    ('x', '', 'x', 'self.forward_stages(self.embed(x))'),
    ('x, mask=None, *, causal=False', '', 'x, mask=None, *, causal=False',
     'self.forward_stages(self.embed(x), mask=mask, causal=causal)'),
    ('x, mask=None, causal=False', 'x, mask=None', 'x, causal=False',
     'self.forward_stages(self.embed(x, mask=mask), causal=causal)'),
    ('x, mask=None', 'x, mask=None', 'x, mask=None', 'self.forward_stages(self.embed(x, mask=mask), mask=mask)'),
    ('x, mask', 'x, mask, more=1', 'x', 'self.forward_stages(self.embed(x, mask=mask))'),
])
def test_arguments_go_to_the_half_that_takes_them(whole, embed, stages, body):
    embed = EMBED.format(embed) if embed else ''
    header = HEADER.format(arguments=whole)
    woven = f'{header}        return {body}\n' + MOVED.format(arguments=stages)
    if embed:
        woven = woven.replace('class Net:\n', f'class Net:\n    {embed.rstrip()}\n\n')
    assert_woven(header + BODY, STAGES.format(embed=embed, arguments=stages), woven)


def test_long_composition_takes_two_lines():
    names = [f'an_argument_with_a_long_name_{i}' for i in range(2)]
    arguments = ', '.join(['x'] + [f'{name}=None' for name in names])
    given = ', '.join(f'{name}={name}' for name in names)
    header = HEADER.format(arguments=arguments)
    assert_woven(header + BODY, STAGES.format(embed='', arguments=arguments), (
        f'{header}        embedded = self.embed(x)\n        return self.forward_stages(embedded, {given})\n'
        + MOVED.format(arguments=arguments)))


@pytest.mark.parametrize('whole, embed, stages, parts', [
    ('x, new=None', '', 'x', ["upstream takes 'new'", 'neither embed nor forward_stages']),
    ('x, mask=None', '', 'x, mask=1', ["default of 'mask'", 'forward_stages']),
    ('x, mask', '', 'x, mask=None', ["default of 'mask'"]),
    ('x, mask=None', 'x, mask=1', 'x', ["default of 'mask'", 'embed']),
    ('x', '', 'x, mask', ["forward_stages needs 'mask'"]),
    ('x, *masks', '', 'x', ['cannot be handed on']),
    ('x, **masks', '', 'x', ['cannot be handed on']),
])
def test_argument_that_would_be_lost_is_refused(whole, embed, stages, parts):
    embed = EMBED.format(embed) if embed else ''
    before = HEADER.format(arguments=whole) + BODY
    assert_refused(before, STAGES.format(embed=embed, arguments=stages), 'Net.forward_features', *parts)


WHOLE = '''
class Net:
    @no_grad
    def forward_features(self, x, mask=None) -> Tensor:
        """Upstream's words."""
        return x
'''


@pytest.mark.parametrize('change, what', [
    ('def forward_features(self, x) -> Tensor:\n        """Upstream\'s words."""', 'arguments'),
    ('def forward_features(self, x, mask=1) -> Tensor:\n        """Upstream\'s words."""', 'arguments'),
    ('def forward_features(self, x, mask=None):\n        """Upstream\'s words."""', 'arguments'),
    ('def forward_features(self, x, mask=None) -> Tensor:\n        """Upstream\'s words."""', 'decorators'),
    ('@no_grad\n    def forward_features(self, x, mask=None) -> Tensor:\n        """Ours."""', 'docstring'),
])
def test_header_that_the_overlay_writes_is_upstreams(change, what):
    change = f'class Net:\n    {change}\n        return 2 * x\n'
    assert_refused(WHOLE, change, 'Net.forward_features', f"must keep upstream's {what}")


def test_header_is_never_removed():
    assert_refused(WHOLE, 'class Net:\n    del forward_features\n', 'Net.forward_features', 'never removed')


def test_split_without_stages_is_refused():
    assert_refused(HEADER.format(arguments='x') + BODY, '''
        class Net:
            @moved_from('forward_features')
            def embed(self, x):
                ...
    ''', 'Net.forward_features', "no 'forward_stages'")


def test_comment_of_a_dropped_statement_is_not_lost():
    before = HEADER.format(arguments='x') + BODY
    change = STAGES.format(embed='', arguments='x').replace('        # why\n', '')
    assert_refused(before, change, 'Net.forward_features', "'# why' (line 4 of upstream)", 'write the comment')


def test_members_before_the_first_part_stand_before_the_header():
    assert_woven(HEADER.format(arguments='x') + BODY, '''
        class Net:
            def patch_dim(self):
                return 1

            @moved_from('forward_features', after='x = self.stem(x)')
            def forward_stages(self, x):
                # why
                ...
    ''', '''
class Net:
    def patch_dim(self):
        return 1

    def forward_features(self, x):
        """Upstream's words."""
        return self.forward_stages(self.embed(x))
''' + MOVED.format(arguments='x'))
