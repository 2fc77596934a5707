"""The registered models of upstream's pinned release, and which of them the fork serves.

`registry.csv` lists name, module, class, kind (transformer, hybrid, token, cnn), parameters, prefix tokens and input
size.
"""
import csv
import importlib
from pathlib import Path
from typing import Dict, FrozenSet, List, NamedTuple


class Entry(NamedTuple):
    name: str
    module: str
    class_name: str
    kind: str
    parameters: int


def registered() -> List[Entry]:
    """All models of the release."""
    with open(Path(__file__).with_name('registry.csv'), newline='') as file:
        return [
            Entry(row['model'], row['module'], row['class'], row['kind'], int(row['params']))
            for row in csv.DictReader(file)]


def model_class(entry: Entry) -> type:
    return getattr(importlib.import_module(f'timm.models.{entry.module}'), entry.class_name)


def served() -> List[Entry]:
    """The models whose class has embed and forward_stages."""
    from timm.models import has_embed_stages
    return [entry for entry in registered() if has_embed_stages(model_class(entry))]


# With a kind of layer that no branch of their class and no smaller model of it has (`test_registry.py`).
OWN_LAYERS = """
    bat_resnext26ts coatnet_0_224 coatnext_nano_rw_224 darknetaa53 eca_resnext26ts eca_vovnet39b ecaresnext26t_32x4d
    efficientnet_cc_b0_4e ese_vovnet39b_evos gc_efficientnetv2_rw_t gcresnext26ts gmixer_12_224 hgnet_tiny
    legacy_seresnet50 legacy_seresnext26_32x4d levit_384_s8 maxvit_tiny_pm_256 maxvit_tiny_tf_224
    maxxvit_rmlp_nano_rw_256 mobilenetv4_hybrid_large_075 nf_ecaresnet26 poolformer_s12 regnetv_064 regnety_040_sgn
    res2next50 resmlp_12_224 resnest14d resnet50_gn resnetblur18 resnetv2_18d resnetv2_50d_evos resnetv2_50d_frn
    resnetv2_50x1_bit sedarknet21 seresnet18 skresnet18 skresnet50 vit_dpwee_patch16_reg1_gap_256
    vit_dwee_patch16_reg1_gap_256 vit_pwee_patch16_reg1_gap_256 vit_relpos_small_patch16_rpn_224
    vit_small_plus_patch16_dinov3 vit_small_r26_s32_224 vitamin_small_224
""".split()
SMALL, LARGE, GIANT = 10e6, 40e6, 1e9  # parameters


def smallest_of_each_class() -> List[Entry]:
    smallest: Dict[str, Entry] = {}
    for entry in sorted(registered(), key=lambda entry: entry.parameters):
        smallest.setdefault(f'{entry.module}.{entry.class_name}', entry)
    return list(smallest.values())


def with_numbers() -> FrozenSet[str]:
    """The models that Proof 2 runs by default: all small ones, one of each class, those with layers of their own.

    None is large. Classes that have large models alone are run as shrunken ones.
    """
    small = [entry.name for entry in registered() if entry.parameters <= SMALL]
    one_of_each = [entry.name for entry in smallest_of_each_class() if entry.parameters <= LARGE]
    return frozenset([*small, *one_of_each, *OWN_LAYERS])
