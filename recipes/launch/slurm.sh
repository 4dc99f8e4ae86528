#!/bin/bash
# Trains @recipe@ on @gpus@ GPUs. Submit it with sbatch, in an environment that has evo2.
#
# Written by evo2cli @version@:
#   @made_by@
#
# Before the time limit, and when the job is preempted, all ranks save and exit. The job then
# requeues itself and resumes, until the run is finished.
@directives@

set -euo pipefail

export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / @gpus_per_node@))
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1 # a rank exits when it loses a peer, instead of waiting
export NCCL_DEBUG=WARN

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first_node=${nodes%%$'\n'*}
port=$((20000 + SLURM_JOB_ID % 10000)) # differs between jobs that share a node

# `evo2 launch` runs one torchrun per node; they meet on the first node (c10d).
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    @launch@ \
    --nodes "$SLURM_JOB_NUM_NODES" --rendezvous "$first_node:$port"

state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
if [[ ! -e @finished@ && $state == RUNNING ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
