"""A compiled step has one graph: no graph break, and after the first step no compilation."""
import pytest
import torch
from torch._dynamo.utils import counters

from timm.mim import CAPI, IJEPA, MAE, Data2Vec, SimMIM
from tiny_models import build, images_for


def train_compiled(method, steps):
    """Train with other masks in each step. Number of graphs after each step."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(method, backend='eager', dynamic=False)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], fused=True)
    graphs = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        noise = torch.rand(method.noise_shape(2), generator=generator)
        compiled(images_for(method, seed=step), noise=noise).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        graphs.append(counters['stats']['unique_graphs'])
    return graphs


@pytest.mark.parametrize('fast_path, create', [
    (True, lambda: MAE(build('vit', depth=1), decoder_dim=24, decoder_depth=1, decoder_heads=2)),
    (True, lambda: MAE(
        build('vit'), mask_unit=32, decoder='cross', predict_ratio=0.5, decoder_dim=24, decoder_depth=1,
        decoder_heads=2)),
    (True, lambda: SimMIM(build('vit', depth=1))),
    (False, lambda: SimMIM(build('swin', depths=(1, 1)))),
    (True, lambda: IJEPA(build('vit', depth=1), predictor_dim=24, predictor_depth=1)),
    (True, lambda: Data2Vec(build('vit', depth=1), mask_ratio=0.5, clone_batch=2, decoder_layers=1)),
    (True, lambda: CAPI(build('vit', depth=1), num_clusters=16, predictor_depth=1, predict_ratio=0.5)),
], ids=['mae', 'mae_cross', 'simmim', 'simmim_swin', 'ijepa', 'data2vec', 'capi'])
def test_one_graph(create, fast_path):
    method = create()
    method.fast_path = fast_path
    assert train_compiled(method, 3) == [1, 1, 1]
    assert not counters['graph_break']


def test_official_masks_have_a_graph_for_each_length():
    method = IJEPA(
        build('vit', patch_size=8, depth=1), img_size=(64, 96), predictor_dim=24, predictor_depth=1, sampler='official')
    lengths, expected = set(), []
    for step in range(3):
        noise = torch.rand(method.noise_shape(2), generator=torch.Generator().manual_seed(step))
        masks = method.make_mask(noise)
        lengths.add((masks.context.shape, masks.targets.shape))
        expected.append(len(lengths))
    assert train_compiled(method, 3) == expected


def test_methods_of_several_image_sizes():
    """The second and third method of a process meet a compiler that takes their sizes for symbols."""
    torch._dynamo.reset()
    for size in (32, 64, 96):
        method = SimMIM(build('vit', depth=1, img_size=size), mask_unit=16)
        method.fast_path = True
        noise = torch.rand(method.noise_shape(2), generator=torch.Generator().manual_seed(size))
        expected = method(images_for(method), noise=noise).loss
        loss = torch.compile(method, backend='eager')(images_for(method), noise=noise).loss
        torch.testing.assert_close(loss, expected)
