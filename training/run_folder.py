"""The folder of a run: where it is, what stands in it, and how a run goes on from it."""
import argparse
import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Dict, Optional, Tuple

from torch.optim import Optimizer

from timm.mim.pretrain.run_folder import lies_in
from timm.models import safe_model_name
from timm.task import TrainingTask
from timm.utils import CheckpointSaver, get_outdir, trim_summary, update_summary
from .device import Process
from .epoch import mean_learning_rate
from .errors import UserError

_logger = logging.getLogger(__name__)

LAST = 'last.pth.tar'


def find_checkpoint(args: argparse.Namespace) -> str:
    """Find the checkpoint to go on from: `--resume FILE`, or the last one of the run with `--resume auto`.

    Returns:
        Its path, '' for a run that begins anew.

    Raises:
        UserError: There is no such file, or --experiment names another run's folder.
    """
    folder = Path(args.output or './output/train') / args.experiment
    if args.resume == 'auto':
        path = folder / LAST
        return str(path) if path.is_file() else ''
    if args.resume and not os.path.isfile(args.resume):
        raise UserError(f"--resume: there is no checkpoint '{args.resume}'.")
    if args.resume and args.experiment and (folder / LAST).exists() and not lies_in(Path(args.resume), folder):
        raise UserError(
            f"--resume: '{args.resume}' is no checkpoint of '{folder}', which holds a run of its own. Go on with that "
            'run by --resume auto, or give an --experiment that does not exist yet.')
    return args.resume


class RunFolder:
    """Writes what a run leaves: args.yaml, summary.csv and checkpoints. One process of a run has it.

    Args:
        args: Arguments of the run, which checkpoints hold.
        args_text: The arguments as they were given, in YAML.
        task: Task to save.
        optimizer: Its optimizer.
        process: Device and precision, with the scaler to save.
        image_size: Side of the images, for the name of the folder.
        lower_is_better: Whether the metric should fall.
    """

    def __init__(
            self,
            args: argparse.Namespace,
            args_text: str,
            task: TrainingTask,
            optimizer: Optimizer,
            process: Process,
            image_size: int,
            lower_is_better: bool,
    ):
        self.args = args
        self.optimizer = optimizer
        name = args.experiment or '-'.join([
            datetime.now().strftime('%Y%m%d-%H%M%S'), safe_model_name(args.model), str(image_size)])
        self.path = get_outdir(args.output or './output/train', name)
        self.summary = os.path.join(self.path, 'summary.csv')
        self.saver = CheckpointSaver(
            model=task.get_trainable_module(),
            optimizer=optimizer,
            args=args,
            amp_scaler=process.scaler,
            checkpoint_dir=self.path,
            recovery_dir=self.path,
            decreasing=lower_is_better,
            max_history=args.checkpoint_hist,
            task=task,
        )
        with open(os.path.join(self.path, 'args.yaml'), 'w') as f:
            f.write(args_text)
        self.wandb = _start_wandb(args, name)

    def begin(self, checkpoint: str, start_epoch: int) -> None:
        """Drop what an earlier run left after `start_epoch`, and take up its history if the run goes on in place."""
        if checkpoint and lies_in(Path(checkpoint), Path(self.path)):
            self.saver.load_state_dict_from_checkpoint(checkpoint)
        trim_summary(self.summary, start_epoch)

    def save(
            self,
            epoch: int,
            train_metrics: Dict[str, float],
            metrics: Optional[Dict[str, float]],
            metric: float,
    ) -> Tuple[Optional[float], Optional[int]]:
        """Write the results of an epoch and its checkpoint.

        Returns:
            The best metric so far and its epoch.
        """
        update_summary(
            epoch,
            train_metrics,
            metrics,
            filename=self.summary,
            lr=mean_learning_rate(self.optimizer),
            log_wandb=self.wandb,
        )
        best = self.saver.save_checkpoint(epoch, metric=metric)
        if epoch + 1 in (self.args.save_epochs or []):
            self.saver.save_milestone(epoch + 1)
        return best

    def save_recovery(self, epoch: int, update: int) -> None:
        """Write a checkpoint in the midst of an epoch."""
        self.saver.save_recovery(epoch, batch_idx=update)


def _start_wandb(args: argparse.Namespace, name: str) -> bool:
    if not args.log_wandb:
        return False
    try:
        import wandb
    except ImportError:
        _logger.warning('--log-wandb: wandb is not installed, nothing is reported to it (pip install wandb).')
        return False
    if args.wandb_resume_id and not args.resume:
        raise UserError('--wandb-resume-id goes on with a run: give its checkpoint with --resume.')
    wandb.init(
        project=args.wandb_project,
        name=name,
        config=vars(args),
        tags=args.wandb_tags,
        resume='must' if args.wandb_resume_id else None,
        id=args.wandb_resume_id or None,
    )
    return True
