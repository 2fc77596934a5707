"""Measure the cost of the split: stock's `forward_features` compared with `forward_stages(embed(x))`."""
from collections import Counter
from typing import List

import torch
import torch.nn as nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm.models import create_model

from .stock import StockModules
from .timing import compare

# one model of each file that the overlays change; the largest ones with fewer blocks
FAMILIES = (
    'beit_base_patch16_224', 'cait_xxs24_224', 'coat_lite_tiny', 'coatnet_nano_rw_224', 'convit_tiny',
    'convmixer_768_32', 'cpubone_nano', 'crossvit_tiny_240', 'cs3darknet_focus_s', 'csatv2', 'cspnext_tiny',
    'davit_tiny', 'deepseek_vit_412m', 'deit_tiny_distilled_patch16_224', 'densenet121', 'dla46x_c', 'dpn48b',
    'edgenext_xx_small', 'efficientformer_l1', 'efficientformerv2_s0', 'efficientvim_m1', 'efficientvit_b0',
    'efficientvit_m0', 'ese_vovnet19b_slim_dw', 'eva02_tiny_patch14_224', 'fasternet_t0', 'fastvit_t8',
    'focalnet_tiny_srf', 'gcvit_xxtiny', 'gemma4_vit_167m', 'ghostnet_050', 'hgnetv2_b0', 'hiera_tiny_224',
    'hieradet_small', 'hrnet_w18_small', 'iformer_t', 'inception_next_atto', 'inception_resnet_v2', 'inception_v3',
    'inception_v4', 'lcnetv2_small', 'legacy_seresnet18', 'legacy_xception', 'levit_128s', 'lowformer_b0',
    'mambaout_femto', 'mixer_s32_224', 'mobilenetv4_hybrid_medium_075', 'mobilenetv5_base', 'mobilevit_xxs',
    'mvitv2_tiny', 'naflexvit_base_patch16_gap', 'nasnetalarge', 'nest_tiny', 'nextvit_small', 'pit_ti_224',
    'pnasnet5large', 'poolformer_s12', 'pvt_v2_b0', 'qwen3_vit_88m', 'rdnet_tiny', 'regnetx_002', 'repghostnet_050',
    'repvit_m1', 'resnetv2_18', 'rexnet_100', 'samvit_base_patch16_224', 'selecsls42', 'sequencer2d_s', 'shvit_s1',
    'starnet_s050', 'swiftformer_xs', 'swin_tiny_patch4_window7_224', 'swinv2_cr_tiny_224',
    'swinv2_tiny_window8_256', 'test_convnext', 'test_efficientnet', 'test_nfnet', 'test_resnet', 'tiny_vit_5m_224',
    'tnt_s_legacy_patch16_224', 'tresnet_m', 'twins_pcpvt_small', 'vgg11', 'visformer_tiny',
    'vit_relpos_small_patch16_224', 'vit_tiny_patch16_224', 'volo_d1_224', 'xception41p', 'xcit_nano_12_p16_224',
)
FEWER_BLOCKS = dict(deepseek_vit_412m=1, gemma4_vit_167m=1, qwen3_vit_88m=1, naflexvit_base_patch16_gap=4)
# some models, such as XCiT, do not compile in a process with two timms: guards look up its NamedTuple in the other timm
COMPILED = ('vit_tiny_patch16_224', 'pvt_v2_b0')


class _Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class _Halves(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.forward_stages(self.model.embed(x))


class _Stock(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.forward_features(x)


@torch.no_grad()
def run(rounds: int, device: torch.device, compiled: bool) -> List[dict]:
    stock = StockModules()
    rows = []
    for name in FAMILIES:
        options = dict(depth=FEWER_BLOCKS[name]) if name in FEWER_BLOCKS else {}
        with stock.active():
            from timm.models import create_model as create_stock_model
            theirs = create_stock_model(name, num_classes=0, **options).eval().to(device)
        ours = create_model(name, num_classes=0, **options).eval().to(device)
        ours.load_state_dict(theirs.state_dict())
        side = ours.pretrained_cfg['input_size'][-1]
        images = torch.randn(1, 3, side, side, device=device)
        modules = dict(ours=_Halves(ours), stock=_Stock(theirs))
        calls = {}
        for variant, module in modules.items():
            module(images)  # some models fill a cache on the first call
            with _Calls() as recorder:
                module(images)
            calls[variant] = recorder.counts
        assert calls['ours'] == calls['stock'], name
        assert _equal(modules['ours'](images), modules['stock'](images)), name
        rows += _compare(name, 'eager', modules, images, rounds, device, sum(calls['ours'].values()))
        if compiled and name in COMPILED:
            torch._dynamo.reset()
            modules = {variant: torch.compile(module, dynamic=False) for variant, module in modules.items()}
            with stock.active():
                modules['stock'](images)
            modules['ours'](images)
            rows += _compare(name, 'compiled', modules, images, rounds, device, None)
    return rows


def _compare(name, mode, modules, images, rounds, device, calls) -> List[dict]:
    steps = {variant: lambda module=module: module(images) for variant, module in modules.items()}
    rows = compare('refactor', f'{name}, {mode}', steps, rounds, device, memory=False)
    for row in rows:
        row['aten_calls'] = calls
    return rows


def _equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b))
