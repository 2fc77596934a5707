# Overlay: woven into upstream's timm/task/__init__.py when the package is built.
# Read the result in build/timm/task/__init__.py.
from .masked_image_modeling import MaskedImageModelingTask as MaskedImageModelingTask
