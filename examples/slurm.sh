#!/bin/bash
# Pre-train on several machines under Slurm. Submit it once, with the options of the run:
#
#     sbatch examples/slurm.sh -c mae_vit_large_patch16 --data-dir IMAGES --experiment long_run
#
# Slurm starts this script again, with the same options, until the run is done:
# - five minutes before the time limit, and when another job takes the machines, Slurm sends SIGTERM to all processes.
#   They save, and end with exit code 75. This script then puts the job back into the queue.
# - when Slurm loses a machine, it puts the job back into the queue by itself (--requeue).
# - when a process is killed, or NCCL gives up after 10 minutes, the step ends with an exit code above 128. This script
#   puts the job back into the queue, at most MAX_RESTARTS times.
# Any other exit code is a mistake, or an error that would come again: the job ends.
#
# `scancel JOB` sends SIGTERM too: the run saves, and this script sees that the job was cancelled. (It needs a Slurm whose
# scontrol has --json. On others the job comes back; `scancel --full --signal=KILL JOB` ends it for good.)

# Edit these for your cluster.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
MAX_RESTARTS=${MAX_RESTARTS:-20}

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since Slurm 22.05, srun does not take it from the job

# Slurm signals the processes itself. This script has to live on, to put the job back into the queue.
trap : TERM

# One process per GPU. After the first process has ended, the others have five minutes: rank 0 writes the last files.
# The number of the job stays the same in all tries, and so does the folder of the run.
srun --kill-on-bad-exit=0 --wait=300 \
    python -m timm.mim.pretrain --experiment "slurm-$SLURM_JOB_ID" "$@" --resume auto
code=$?

is_cancelled() { scontrol --json show job "$SLURM_JOB_ID" 2>/dev/null | grep -q '"CANCELLED"'; }
if ((code == 75)) || ((code > 128 && ${SLURM_RESTART_COUNT:-0} < MAX_RESTARTS)); then
    if ! is_cancelled; then
        echo "slurm.sh: exit code $code: job $SLURM_JOB_ID goes back into the queue."
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit $code
