"""CAPI against lightly's loss and masks: the same draws, the same logits.

lightly has no rotary positions in the encoder and one optimizer; its loss and its masks are those of the reference.
"""
import math
import threading

import pytest
import torch
import torch.nn.functional as F

from blindness import assert_blind
from every_model import REFUSED_CASES, REFUSED_WHEN_DROPPING, assert_learns, branches, case_class, case_sizes, \
    registered_sizes, without_gradient

import probe
from timm.mim import CAPI, capi, create_mim, list_mim_models, sinkhorn_knopp
from timm.mim.inverse_block import inverse_block_mask
from tiny_models import build, images_for

SMALL = dict(num_clusters=16, predictor_depth=2, predict_ratio=0.5)


def method_on(name='vit', **options):
    torch.manual_seed(0)
    return CAPI(build(name), img_size=(64, 96), **{**SMALL, **options})


def noise_for(method, batch_size=2, seed=3):
    return torch.rand(method.noise_shape(batch_size), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('side, ratio, aspect, roll', [
    (16, 0.65, (0.5, 2.), True), (14, 0.65, (0.5, 2.), False), (7, 0.8, (0.3, 3.), True), (16, 0.1, (0.5, 2.), True),
    (4, 0.5, (0.25, 4.), True)])
def test_masks_are_lightlys(side, ratio, aspect, roll, monkeypatch):
    utils = pytest.importorskip('lightly.models.utils')
    noise = torch.rand(60, 5, generator=torch.Generator().manual_seed(0))
    draws = []

    class Drawn:
        def uniform_(self, low, high):
            return torch.tensor(low + (high - low) * draws.pop(0), dtype=torch.float64)

    num_masked = int(side ** 2 * ratio)
    masks = inverse_block_mask(noise, (side, side), side ** 2 - num_masked, aspect, roll)
    monkeypatch.setattr(utils.torch, 'empty', lambda *shape: Drawn())
    monkeypatch.setattr(
        utils.torch, 'randint', lambda low, high, shape: torch.tensor(low + math.floor((high - low) * draws.pop(0))))
    theirs = []
    for row in noise.tolist():
        draws[:] = row
        theirs.append(utils.random_inverse_block_mask((1, side ** 2), ratio, 0, *aspect, roll)[1])
    monkeypatch.undo()
    expected = torch.zeros(60, side ** 2, dtype=torch.bool).scatter(1, torch.cat(theirs), True)
    assert torch.equal(masks.flatten(1), expected)


@pytest.mark.parametrize('grid', [(3, 20), (20, 3), (1, 12), (4, 6)])
def test_masks_of_rectangular_grids(grid):
    cells = grid[0] * grid[1]
    noise = torch.rand(400, 5, generator=torch.Generator().manual_seed(0))
    for num_visible in (1, cells // 3, cells - 1):
        masks = inverse_block_mask(noise, grid, num_visible)
        assert ((~masks).flatten(1).sum(1) == num_visible).all()
        if num_visible == cells // 3:
            often = (~masks).float().mean(0)
            assert often.min() > 0.2 and often.max() < 0.47  # each cell is visible a third of the time


def test_loss_is_lightlys():
    """Both parts by their loss, of logits that are computed here from the parts of the method."""
    losses = pytest.importorskip('lightly.loss.capi_loss')
    method = method_on(momentum=(0.9, 1.)).train()
    images, noise = images_for(method, 5), noise_for(method, 5)
    mask = method.drawn_mask(noise, method.img_size)
    output = method(images, noise=noise)
    features = method.target_encoder.forward_features(images)[:, 1:].detach()
    features = F.layer_norm(features, features.shape[-1:])
    teacher = F.normalize(features, dim=-1) @ method.clustering.weight.T + method.clustering.bias
    context = method.backbone.forward_stages(
        method.backbone.keep_tokens(method.backbone.embed(images), mask.visible))
    tokens = F.normalize(method.predictor(context, mask.visible, mask.predicted), dim=-1)
    student = tokens @ F.normalize(method.head.weight, dim=-1).T
    theirs = losses.CAPILoss()
    clustering, prediction = theirs(teacher, teacher), theirs(teacher, student, mask.predicted)
    torch.testing.assert_close(output.loss, clustering + prediction)
    torch.testing.assert_close(output.logs['clustering_loss'], clustering.detach())
    torch.testing.assert_close(output.logs['prediction_loss'], prediction.detach())
    torch.testing.assert_close(output.prediction, student, atol=1e-5, rtol=1e-4)
    assignments = losses.sinkhorn_knopp(teacher / 0.06)
    torch.testing.assert_close(sinkhorn_knopp(teacher / 0.06), assignments)
    torch.testing.assert_close(output.target, assignments.gather(1, mask.predicted[..., None].expand(-1, -1, 16)))

    # the two parts reach separate parameters
    gradients = torch.autograd.grad(output.loss, list(method.clustering.parameters()), retain_graph=True)
    for ours, expected in zip(gradients, torch.autograd.grad(clustering, list(method.clustering.parameters()))):
        torch.testing.assert_close(ours, expected)
    assert mask.predicted.shape == (5, 8)  # half of 15 masked patches of 24
    assert mask.patches.flatten(1).gather(1, mask.predicted).all()


def test_sinkhorn_over_processes(monkeypatch):
    """Two threads with half of the batch each, and an all-reduce between them."""
    logits = torch.randn(6, 4, 5) * 3
    barrier, parts, results = threading.Barrier(2), {}, {}

    def all_reduce(tensor, op=torch.distributed.ReduceOp.SUM):
        parts[threading.get_ident()] = tensor.clone()
        barrier.wait()
        both = torch.stack(list(parts.values()))
        barrier.wait()
        tensor.copy_(both.amax(0) if op == torch.distributed.ReduceOp.MAX else both.sum(0))

    monkeypatch.setattr(capi.dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(capi.dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(capi.dist, 'all_reduce', all_reduce)
    halves = logits.chunk(2)

    def run(rank):
        results[rank] = sinkhorn_knopp(halves[rank], distributed=True)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    torch.testing.assert_close(torch.cat([results[0], results[1]]), sinkhorn_knopp(logits))


def one_case_per_class():
    cases = {}
    for case in branches('capi'):
        if case.name not in REFUSED_CASES and case.name not in REFUSED_WHEN_DROPPING:
            cases.setdefault(case_class(case), case)
    return list(cases.values())


def pytest_generate_tests(metafunc):
    if 'case' in metafunc.fixturenames:
        metafunc.parametrize('case', [pytest.param(case, id=case.name) for case in one_case_per_class()])
    if 'registered' in metafunc.fixturenames:
        everything = metafunc.config.getoption('--all-models', False)
        metafunc.parametrize('registered', list_mim_models('capi') if everything else [])


def create_at(sizes, create):
    for size in dict.fromkeys(sizes):
        try:
            return create(size)
        except (AssertionError, RuntimeError, ValueError) as error:
            problem = error
    raise problem


def test_class(case):
    """On each class that drops tokens, rotary positions and all: blind, and every trainable parameter learns."""
    torch.manual_seed(0)
    method = create_at(case_sizes(case), lambda size: create_mim(
        'capi', probe.build(case.model, case.model_kwargs, None), img_size=size, **SMALL))
    assert_blind(method)
    method.zero_grad()
    assert_learns(method)


def test_every_listed_class_is_tested():
    from timm.models import get_model_class
    tested = {case_class(case) for case in one_case_per_class()}
    assert {get_model_class(name) for name in list_mim_models('capi')} <= tested
    assert list_mim_models('capi') == list_mim_models('ijepa')


def test_registered_model(registered):
    def create(size):
        with torch.device('meta'):
            return create_mim('capi', registered, img_size=size, **SMALL)

    method = create_at(registered_sizes(registered), create)
    images = torch.empty(2, method.in_chans, *method.img_size, device='meta')
    method(images, noise=torch.empty(method.noise_shape(2), device='meta')).loss.backward()
    assert without_gradient(method) == []


def test_momentum():
    """The teacher is frozen at first; the momentum reaches its first value at the end of the warm-up."""
    method = method_on(momentum=(0.9, 0.99), momentum_warmup=0.2)
    assert [round(method.momentum_at(progress), 6) for progress in (0, 0.1, 0.2, 0.6, 1)] == [
        1, 0.95, 0.9, 0.945, 0.99]
    before = [p.clone() for p in method.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in method.backbone.parameters():
            parameter.add_(1)
    method.update_target(0.)
    assert all(torch.equal(a, b) for a, b in zip(before, method.target_encoder.parameters()))
    method.update_target(0.2)
    for a, b in zip(before, method.target_encoder.parameters()):
        torch.testing.assert_close(b, a + 0.1, atol=1e-5, rtol=1e-5)
    assert method.encoder is method.target_encoder


def test_positions_are_rotations():
    """Attention scores depend on offsets only, which is not so in the reference, and vectors keep their length."""
    predictor = method_on(predictor_dim=32, predictor_heads=2).predictor
    from timm.layers import apply_rot_embed_cat
    query, key = torch.randn(2, 1, 16).double().unbind()
    table = predictor.rope.double().unflatten(0, (4, 6))

    def score(a, b):
        rotated = [apply_rot_embed_cat(x, table[place].unsqueeze(0), half=True) for x, place in ((query, a), (key, b))]
        torch.testing.assert_close(rotated[0].norm(), query.norm())
        return (rotated[0] * rotated[1]).sum()

    torch.testing.assert_close(score((0, 1), (2, 4)), score((1, 2), (3, 5)), atol=1e-5, rtol=1e-5)
    assert (score((0, 1), (2, 4)) - score((0, 1), (2, 3))).abs() > 1e-3
    assert torch.equal(apply_rot_embed_cat(query.float(), predictor.unrotated[0], half=True), query.float())


def test_collapse_is_logged():
    method = method_on().train()
    images, noise = images_for(method, 8), noise_for(method, 8)
    healthy = method(images, noise=noise).logs
    with torch.no_grad():
        for parameter in method.target_encoder.parameters():
            parameter.zero_()
    collapsed = method(images, noise=noise).logs
    assert healthy['assignment_entropy'] < 0.8 and collapsed['assignment_entropy'] > 0.999
    assert healthy['target_std'] > 0.5 and collapsed['target_std'] == 0 and healthy['target_rank'] > 3
    shares = torch.zeros(4, 3, 16)
    shares[..., 0] = 1  # a single cluster
    assert capi._entropies(shares) == dict(assignment_entropy=0, cluster_entropy=0)
    shares = torch.eye(16).view(4, 4, 16)
    assert capi._entropies(shares)['cluster_entropy'] == pytest.approx(1)


def test_pictures_and_given_masks():
    method = method_on('vit_registers').eval()
    images, noise = images_for(method), noise_for(method)
    views = method.views(images, noise)
    assert [view.label for view in views] == [
        'original', 'masked input', 'clusters of the teacher', 'predicted clusters']
    assert all(view.images.shape == images.shape for view in views)
    # visible patches show the teacher's clusters, hidden ones the prediction
    teacher, predicted, hole = views[2].images, views[3].images, method.pixel_mask(method.make_mask(noise))
    assert torch.equal(teacher.masked_fill(hole, 0), predicted.masked_fill(hole, 0))
    assert not torch.equal(teacher, predicted)
    mask = method.make_mask(noise)
    output = method(images, mask=mask)
    assert output.prediction.shape == (2, 15, 16) and torch.equal(output.mask, mask)
    assert output.target.sum(-1).allclose(torch.ones(2, 15), atol=1e-5)
    with pytest.raises(ValueError, match='the same number of patches visible in each sample'):
        method(images, mask=torch.stack([mask[0], mask[0].roll(1, 0) & mask[0]]))
    assert method.forward_intermediates(images, mask).visible.shape == (2, 9)


def test_gradient_checkpointing():
    method, other = (method_on().train() for _ in range(2))
    other.set_grad_checkpointing()
    for each in (method, other):
        each(images_for(each), noise=noise_for(each)).loss.backward()
    for (name, parameter), second in zip(method.named_parameters(), other.parameters()):
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, second.grad, msg=name)


@pytest.mark.parametrize('options, message', [
    (dict(num_clusters=0), 'num_clusters must be a positive integer, got 0.'),
    (dict(student_temperature=-1), 'student_temperature must be a positive number, got -1.'),
    (dict(mask_ratio=1.), 'mask_ratio must be a number between 0 and 1'),
    (dict(mask_ratio=0.01), 'mask_ratio 0.01 masks none of the 24 units'),
    (dict(predict_ratio=0), 'predict_ratio must be a number above 0 and up to 1, got 0.'),
    (dict(mask_aspect=(2, 1)), 'mask_aspect must be a pair of positive numbers, smallest first'),
    (dict(momentum=(0, 2)), 'momentum must be a pair'),
    (dict(momentum_warmup=1), 'momentum_warmup must be a share from 0 to below 1'),
    (dict(predictor_heads=4), 'The rotary embedding needs heads whose width is a multiple of 4: 4 heads of'),
    (dict(predictor_heads=7), '7 heads do not divide the width 24'),
])
def test_mistakes(options, message):
    with pytest.raises(ValueError) as error:
        method_on(**options)
    assert message in str(error.value)
