#!/bin/bash
# Trains @recipe@ on @gpus@ GPUs.   sbatch THIS_FILE, in an environment that has evo2.
#
# Made by evo2cli @version@:
#   @made_by@
#
# Before the time is up, and when the job is pre-empted, all ranks save and exit; the job then
# queues itself again, and goes on where it was, until the run is finished.
@directives@

set -euo pipefail

export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / @gpus_per_node@))
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1 # a lost peer ends a rank, which would else wait for ever
export NCCL_DEBUG=WARN

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first_node=${nodes%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a node have one each

# One torchrun a node, inside `evo2 launch`; they meet on the first node (c10d).
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    @launch@ \
    --nodes "$SLURM_JOB_NUM_NODES" --rendezvous "$first_node:$port"

state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
if [[ ! -e @finished@ && $state == RUNNING ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
