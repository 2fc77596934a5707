from .backbone import (
    encode_visible as encode_visible,
    encode_with_mask_token as encode_with_mask_token,
    remove_unused as remove_unused,
)
from .decoder import (
    MaskedDecoder as MaskedDecoder,
    PixelDecoder as PixelDecoder,
    sincos_position_embedding as sincos_position_embedding,
)
from .factory import (
    create_mim as create_mim,
    get_mim as get_mim,
    list_mim_models as list_mim_models,
    list_mims as list_mims,
    register_mim as register_mim,
)
from .fcmae import FCMAE as FCMAE
from .targets import (
    hog_target as hog_target,
    masked_l1_loss as masked_l1_loss,
    masked_loss as masked_loss,
    normalize_patches as normalize_patches,
    normalized_pixel_target as normalized_pixel_target,
    patchify as patchify,
    pixel_target as pixel_target,
    unpatchify as unpatchify,
)
from .ijepa import IJEPA as IJEPA
from .mae import MAE as MAE
from .masked_convolution import VisibleMap as VisibleMap, masked_images as masked_images
from .masking import (
    block_mask as block_mask,
    block_noise_size as block_noise_size,
    default_mask_unit as default_mask_unit,
    keyed_noise as keyed_noise,
    masked_count as masked_count,
    random_mask as random_mask,
    scatter_patches as scatter_patches,
    split_mask as split_mask,
    unit_grid as unit_grid,
    upsample_mask as upsample_mask,
    visible_count as visible_count,
)
from .meta_run import FeatureMap as FeatureMap, dry_run as dry_run
from .method import MIMMethod as MIMMethod
from .multi_block import (
    MultiBlockMasks as MultiBlockMasks,
    MultiBlockSampler as MultiBlockSampler,
    official_multi_block_masks as official_multi_block_masks,
)
from .output import MIMOutput as MIMOutput, View as View
from .errors import ImageSizeError as ImageSizeError, MIMUnsupportedError as MIMUnsupportedError
from .simmim import SimMIM as SimMIM
from .spark import SparK as SparK
from .teacher import EMATeacherMethod as EMATeacherMethod, TeacherTarget as TeacherTarget
