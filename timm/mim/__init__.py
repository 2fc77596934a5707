from .decoder import PixelDecoder as PixelDecoder
from .factory import (
    create_mim as create_mim,
    get_mim as get_mim,
    list_mim_models as list_mim_models,
    list_mims as list_mims,
    register_mim as register_mim,
)
from .masking import (
    masked_count as masked_count,
    random_mask as random_mask,
    unit_grid as unit_grid,
    upsample_mask as upsample_mask,
)
from .noise import keyed_noise as keyed_noise
from .output import MIMOutput as MIMOutput, MIMUnsupportedError as MIMUnsupportedError
from .simmim import SimMIM as SimMIM
from .targets import masked_l1_loss as masked_l1_loss, pixel_target as pixel_target
