"""Tables of the models that `masked_convolution` cannot mask, so that listing models builds none.

When a method is built, a run on the meta device decides. The tables hold the result of such runs for all registered
models. The test suite compares the two.
"""
from fnmatch import fnmatch
from typing import Optional

__all__ = ['why_not_maskable', 'why_not_maskable_model']

_ATTENTION = 'mixes cells by attention, which masks of cells do not serve; MAE or SimMIM does'
_TOKENS = 'mixes cells by linear or recurrent layers, which masks of cells do not serve; SimMIM does'

_CLASSES = {
    _ATTENTION: '''
        Beit CPUBone Cait CoaT ConVit CrossVit DaVit DeepseekVitClassifier DeepseekVitEncoder EdgeNeXt
        EfficientFormer EfficientFormerV2 EfficientViM EfficientViMDistilled EfficientVitMsra Eva
        Gemma4VitClassifier Gemma4VitEncoder GlobalContextVit Hiera HieraDet IFormer Levit LevitDistilled
        LowFormer MaxxVit MobileNetV5 MobileNetV5Encoder MultiScaleVit NaFlexVit Nest NextViT
        PoolingVisionTransformer PyramidVisionTransformerV2 Qwen3VitClassifier Qwen3VitEncoder SHViT SwiftFormer
        SwinTransformer SwinTransformerV2 SwinTransformerV2Cr TNT TinyVit Twins VOLO Visformer VisionTransformer
        VisionTransformerDistilled VisionTransformerRelPos VisionTransformerSAM Xcit''',
    _TOKENS: 'CSATv2 MlpMixer Sequencer2d',
}
_REASONS = {name: reason for reason, names in _CLASSES.items() for name in names.split()}
# models that are not supported although other models of their class are
_PER_SAMPLE = 'has convolutions with weights of each sample, and folds samples into channels'
_MODELS = {
    _ATTENTION: '''
        *botnet* *botnext* *halonet* *halonext* *haloregnet* lambda_resnet* bat_resnext*
        mobilevit* caformer* fastvit_sa* fastvit_ma* fastvit_mci* mobilenetv4_hybrid*''',
    _PER_SAMPLE: 'efficientnet_cc* tf_efficientnet_cc*',
}


def why_not_maskable(model_cls: type) -> Optional[str]:
    """Return why the cells of a model class cannot be masked, or None if they can or the class is not from timm."""
    if not model_cls.__module__.startswith('timm.'):
        return None
    reason = _REASONS.get(model_cls.__name__)
    return reason and f'{model_cls.__name__} {reason}'


def why_not_maskable_model(name: str) -> Optional[str]:
    """Return why the cells of a registered model cannot be masked while its class is supported, or None if they can."""
    for reason, patterns in _MODELS.items():
        if any(fnmatch(name, pattern) for pattern in patterns.split()):
            return f'{name} {reason}'
    return None
