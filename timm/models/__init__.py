# Overlay: woven into upstream's timm/models/__init__.py when the package is built.
# Read the result in build/timm/models/__init__.py.
from ._embed_stages import EmbedStagesMixin as EmbedStagesMixin
from ._model_class import (
    get_model_class as get_model_class,
    has_embed_stages as has_embed_stages,
)
