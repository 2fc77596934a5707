# Overlay: woven into upstream's timm/version.py when the package is built.
# Read the result in build/timm/version.py.
__version__ = '1.0.31+mim.1'
