# Overlay: woven into upstream's timm/utils/checkpoint_saver.py when the package is built.
# Read the result in build/timm/utils/checkpoint_saver.py.
import math
import os
import shutil

import torch


def _write_complete(save_state, save_path):
    """Write a checkpoint atomically: to a temporary file in the same folder, which then replaces the target.

    Raises:
        OSError: The checkpoint cannot be written. An existing file at the path is unchanged.
    """
    tmp_save_path = f'{save_path}.partial'
    try:
        with open(tmp_save_path, 'wb') as f:
            torch.save(save_state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp_save_path, save_path)
    except BaseException as e:
        if os.path.exists(tmp_save_path):
            os.unlink(tmp_save_path)
        if isinstance(e, (OSError, RuntimeError)):
            size, free = _num_bytes(save_state), shutil.disk_usage(os.path.dirname(save_path) or '.').free
            # on a full disk PyTorch raises an error of its own, while it handles that of the system
            reason = e.__context__ if isinstance(e.__context__, OSError) else e
            raise OSError(
                f"Checkpoint of {size} bytes cannot be written to '{save_path}', where {free} are free: {reason}"
            ) from e
        raise


def _num_bytes(state):
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(_num_bytes, values))


class CheckpointSaver:

    def _replace(self, src, dst):
        os.replace(src, dst)

    def _duplicate(self, src, dst):
        tmp_path = f'{dst}.partial'
        if os.path.exists(tmp_path):
            os.unlink(tmp_path)
        if self.can_hardlink:
            try:
                os.link(src, tmp_path)
            except (OSError, NotImplementedError):
                self.can_hardlink = False
        if not self.can_hardlink:
            shutil.copy2(src, tmp_path)
        os.replace(tmp_path, dst)
        if os.path.exists(tmp_path):
            os.unlink(tmp_path)  # os.replace does nothing if both names are hard links to the same file

    @moved_from('_save', before='torch.save(save_state, save_path)')
    def _checkpoint_state(self, epoch, metric=None):
        """Return the content of a checkpoint."""
        ...
        return save_state

    def _save(self, save_path, epoch, metric=None):
        _write_complete(self._checkpoint_state(epoch, metric), save_path)

    @moved_from('save_checkpoint', through='self._replace(tmp_save_path, last_save_path)')
    def save_checkpoint(self, epoch, metric=None):
        """Save the current state as ``last`` and, if it earns a place, as a numbered epoch checkpoint.

        Checkpoints with a ``metric`` are ranked by it, the earlier one first among equals. Those without, and those
        whose metric is not a number, follow, the newest first, and never take a ranked one's place.

        Args:
            epoch: Epoch index of the state being saved.
            metric: Value used to rank the checkpoint, or None to keep it by recency only.

        Returns:
            Tuple of (best_metric, best_epoch), both None until a ranked checkpoint has been saved.
        """
        if metric is not None and math.isnan(metric):
            metric = None  # comparisons with NaN are false: a NaN would remain the best metric
        ...
        return self._rank_last(epoch, metric)

    @moved_from('save_checkpoint', after='self._replace(tmp_save_path, last_save_path)')
    def _rank_last(self, epoch, metric=None):
        """Keep ``last`` as a numbered checkpoint if it ranks high enough; safe to repeat after a killed run."""
        last_save_path = os.path.join(self.checkpoint_dir, 'last' + self.extension)
        ...
