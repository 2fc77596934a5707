"""Create the folder of a run, write its files, and find the checkpoint to resume from."""
import argparse
import os
from datetime import datetime
from pathlib import Path
from typing import Dict, Optional, Tuple

from torch.optim import Optimizer

from timm.mim.pretrain.reporting.records import start_wandb
from timm.mim.pretrain.run_folder import lies_in
from timm.models import safe_model_name
from timm.task import TrainingTask
from timm.utils import CheckpointSaver, get_outdir, trim_summary, update_summary
from .device import Process
from .epoch import mean_learning_rate
from .errors import UserError

LAST = 'last.pth.tar'


def find_checkpoint(args: argparse.Namespace) -> str:
    """Find the checkpoint to resume from: `--resume FILE`, or the last one of the run with `--resume auto`.

    Returns:
        Path of the checkpoint, '' for a new run.

    Raises:
        UserError: The file does not exist, or --experiment names the folder of another run.
    """
    folder = Path(args.output or './output/train') / args.experiment
    if args.resume == 'auto':
        path = folder / LAST
        return str(path) if path.is_file() else ''
    if args.resume and not os.path.isfile(args.resume):
        raise UserError(f"--resume: there is no checkpoint '{args.resume}'.")
    if args.resume and args.experiment and (folder / LAST).exists() and not lies_in(Path(args.resume), folder):
        raise UserError(
            f"--resume: '{args.resume}' is not a checkpoint of '{folder}', which holds another run. Continue that run "
            'with --resume auto, or give an --experiment that does not exist yet.')
    return args.resume


class RunFolder:
    """Writes the files of a run: args.yaml, summary.csv and checkpoints. Only the first process has one.

    Args:
        args: Arguments of the run, stored in checkpoints.
        args_text: The arguments in YAML, before the run changes them.
        task: Task to save.
        optimizer: Optimizer to save.
        process: Device and precision, with the scaler to save.
        image_size: Side of the images, for the name of the folder.
        lower_is_better: Lower values of the metric are better.
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
        """Delete rows of the summary from `start_epoch` on. If the run resumes in its own folder, restore the history
        of checkpoints.
        """
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
        """Write a checkpoint within an epoch."""
        self.saver.save_recovery(epoch, batch_idx=update)


def _start_wandb(args: argparse.Namespace, name: str) -> bool:
    if not args.log_wandb:
        return False
    if args.wandb_resume_id and not args.resume:
        raise UserError('--wandb-resume-id continues a run: give the checkpoint of that run with --resume.')
    start_wandb(args, name, vars(args), args.wandb_resume_id)
    return True
