"""Supervised training, as `train.py` and `validate.py` run it: timm's parts, put together one purpose per module.

A plain package beside the scripts, not a part of the installed timm.
"""
