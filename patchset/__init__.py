"""The patch set: upstream's wheel and the overlays in `timm/` give the complete package.

`python -m patchset --help` lists the commands; the standard library alone is enough to run them. The modules, in the
order in which to read them:

- `source`, `overlay`, `plan`, `weave`: one file of upstream and its overlay give the woven file. `names` and `protocol`
  are the rules that the woven file has to keep.
- `upstream`, `lock`, `project`, `editable`: the wheel of the pinned release, what the overlays need of it, and the
  complete package on disk.
- `findings`, `upgrade`: the same overlays on another release.
- `steps`, `clone`, `series`: the pull request.
"""


class PatchsetError(Exception):
    """A mistake in an overlay, the lock or the set-up. Its text is one line: where, what is wrong, what is allowed."""

    def __init__(self, where: str, problem: str):
        super().__init__(f'{where}: {problem}' if where else problem)
