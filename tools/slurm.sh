#!/bin/bash
# Trains on 2 machines with 8 GPUs each:  sbatch tools/slurm.sh configs/nyudv2_resnet101.yaml runs/resnet101
# Two minutes before the time is over the run saves after its step, and the job queues itself again to go on.
#SBATCH --job-name=joint
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
config=$1 run=$2
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [ -e "$run/last.pt" ]; then
    what=(--resume "$run")
else
    what=(--config "$config" --run "$run")
fi
stopped=false
trap 'stopped=true; kill -TERM "$training"' TERM  # srun passes it on to torchrun, and that to train.py
gpus=${SLURM_GPUS_PER_NODE:-8}  # a number, or with the kind of GPU, such as h100:8
gpus=${gpus%%(*}
gpus=${gpus##*:}
port=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}  # two jobs may share a machine
# Each process reads its own frames: --workers is for one of them. The -- keeps torchrun from taking --run for its own.
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$gpus" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$first:$port" --rdzv-id "$SLURM_JOB_ID" \
    -- train.py "${what[@]}" --workers $((SLURM_CPUS_PER_TASK / gpus)) &
training=$!
status=0
wait "$training" || status=$?
if $stopped; then
    wait "$training" || true  # the first wait ended with the signal, the training has not yet
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$status"
