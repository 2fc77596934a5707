"""What a feature map does not depend on is found, also where the graph of autograd reaches it."""
import pytest
import torch
import torch.nn as nn

from timm.mim import IJEPA, MAE, SimMIM
from timm.mim.meta_run import unreached
from tiny_models import build, images_for


def frozen(method):
    return {name for name, p in method.backbone.named_parameters() if not p.requires_grad}


def numbers_without_gradient(result, parameters):
    """Names of the parameters whose gradient is zero in real numbers."""
    gradients = torch.autograd.grad(result.square().sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients) if gradient is None or not gradient.any()]


@pytest.mark.parametrize('method', [
    lambda model: SimMIM(model, mask_unit=16), lambda model: IJEPA(model, predictor_dim=24, predictor_depth=1)])
def test_class_attention_of_cait_stays_as_it_is(method):
    """A feature map does not hold the class token, weight decay would shrink what makes it."""
    model = build('cait')
    class_attention = {name for name, _ in model.named_parameters() if name.startswith(('blocks_token_only', 'cls_t'))}
    method = method(model)
    assert frozen(method) == class_attention and class_attention
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    method(images_for(method)).loss.backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == before.keys() - class_attention


def test_mae_trains_class_attention():
    """Its decoder sees the class token."""
    method = MAE(build('cait'), decoder_dim=24, decoder_depth=1, decoder_heads=2)
    assert not frozen(method)
    method(images_for(method)).loss.backward()
    assert all(p.grad.any() for p in method.backbone.parameters())


def cut(tokens, norm):
    return norm(tokens)[:, 1:]


def cut_from_the_end(tokens, norm):
    return norm(tokens * 2 + 1)[:, -4:]


def cut_twice(tokens, norm):
    return torch.cat([norm(tokens)[:, 1:], tokens[:, :1]], dim=1)  # the first token comes back


def mixed(tokens, norm):
    return norm(tokens).cumsum(dim=1)[:, 1:]


def cut_channels(tokens, norm):
    return norm(tokens)[..., 2:]


def cut_before_the_join(tokens, norm):
    return norm(tokens)[:, :1]


@pytest.mark.parametrize('program', [cut, cut_from_the_end, cut_twice, mixed, cut_channels, cut_before_the_join])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_programs(program, device):
    """The graph tells on the meta device what gradients tell in real numbers."""
    def run(device):
        torch.manual_seed(0)
        parameters = dict(first=nn.Parameter(torch.randn(2, 1, 6)), others=nn.Parameter(torch.randn(2, 4, 6)))
        norm = nn.LayerNorm(6)
        parameters = {name: nn.Parameter(p.detach().to(device)) for name, p in parameters.items()}
        return program(torch.cat(list(parameters.values()), dim=1), norm.to(device)), parameters

    assert unreached(*run(device)) == numbers_without_gradient(*run('cpu'))
