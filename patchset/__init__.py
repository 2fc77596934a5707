"""The patch set: upstream's wheel plus the overlays in `timm/` give the complete package.

Start reading at `weave.py` (upstream bytes + overlay bytes -> woven bytes); `python -m patchset --help` lists the
commands. The standard library alone is enough to run it.
"""
