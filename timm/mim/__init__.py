"""Masked image modeling (MIM): pre-training methods that work on any model with the embed / stages protocol."""
from .backbone import (
    encode_visible,
    encode_with_mask_token,
    remove_unused,
)
from .data2vec import Data2Vec
from .decoder import (
    MaskedDecoder,
    PixelDecoder,
    sincos_position_embedding,
)
from .capi import CAPI, sinkhorn_knopp
from .cross_decoder import CrossDecoder
from .factory import (
    create_mim,
    get_mim,
    list_mim_models,
    list_mims,
    register_mim,
)
from .fcmae import FCMAE
from .targets import (
    hog_target,
    masked_l1_loss,
    masked_loss,
    normalize_patches,
    normalized_pixel_target,
    patchify,
    pixel_target,
    unpatchify,
)
from .ijepa import IJEPA
from .mae import MAE
from .masked_convolution import VisibleMap, masked_images
from .masking import (
    block_mask,
    block_noise_size,
    default_mask_unit,
    keyed_noise,
    masked_count,
    random_mask,
    scatter_patches,
    split_mask,
    unit_grid,
    upsample_mask,
    visible_count,
)
from .meta_run import FeatureMap, dry_run
from .method import MIMMethod
from .multi_block import (
    MultiBlockMasks,
    MultiBlockSampler,
    official_multi_block_masks,
)
from .output import MIMOutput, View
from .errors import ImageSizeError, MIMUnsupportedError
from .simmim import SimMIM
from .spark import SparK
from .teacher import EMATeacherMethod, TeacherTarget

__all__ = [
    'CAPI', 'CrossDecoder', 'Data2Vec', 'EMATeacherMethod', 'FCMAE', 'FeatureMap', 'IJEPA',
    'ImageSizeError', 'MAE', 'MIMMethod', 'MIMOutput', 'MIMUnsupportedError', 'MaskedDecoder', 'MultiBlockMasks',
    'MultiBlockSampler', 'PixelDecoder', 'SimMIM', 'SparK', 'TeacherTarget', 'View', 'VisibleMap', 'block_mask',
    'block_noise_size', 'create_mim', 'default_mask_unit', 'dry_run', 'encode_visible', 'encode_with_mask_token',
    'get_mim', 'hog_target', 'keyed_noise', 'list_mim_models', 'list_mims', 'masked_count', 'masked_images',
    'masked_l1_loss', 'masked_loss', 'normalize_patches', 'normalized_pixel_target', 'official_multi_block_masks',
    'patchify', 'pixel_target', 'random_mask', 'register_mim', 'remove_unused', 'scatter_patches',
    'sincos_position_embedding', 'sinkhorn_knopp', 'split_mask', 'unit_grid', 'unpatchify', 'upsample_mask',
    'visible_count',
]
