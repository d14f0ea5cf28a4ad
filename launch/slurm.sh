#!/bin/bash
# The same command in every task of a Slurm job:
#
#     sbatch --nodes=4 launch/slurm.sh a3jax train llama_8b
#
# Options of sbatch take the place of the resources below. A task has one GPU: JAX takes that of its number on the node.
#SBATCH --job-name=a3jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

if (($# == 0)); then
    echo "usage: sbatch [OPTION...] launch/slurm.sh COMMAND..." >&2
    exit 2
fi
# When one task is lost, the others say so and end by themselves: srun must not kill them first, nor wait forever.
srun --kill-on-bad-exit=0 --wait=300 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$@"
status=$? # the highest of all tasks
# 143: told to stop (the time limit, see --signal), and saved. 75, 137: what may pass, such as a task that was lost, or killed;
# the command goes on from the last checkpoint, but what kills it every time must end some day. `scancel` also ends this shell, so it is final.
case $status in
    143) again=1 ;;
    75 | 137) again=$((${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-20})) ;;
    *) again=0 ;;
esac
if ((again)); then
    echo "launch/slurm.sh: exit status $status; the job is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
