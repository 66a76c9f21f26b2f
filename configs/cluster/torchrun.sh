#!/bin/bash
# One training on several nodes without SLURM: the same line on each of them, HEAD is the first one's name and a port.
#   NODES=2 GPUS=4 HEAD=node0:29500 configs/cluster/torchrun.sh -c configs/base_gan/e2gan.yaml \
#       --trainer.default_root_dir /shared/runs/e2gan
# A lost process starts all of them anew, from last.ckpt; up to RESTARTS times (3). SIGUSR1 to this script writes
# last.ckpt after the batch in work; outside of SLURM this, too, is a restart that counts. The batch is of all GPUs together. The run folder is on a disk that all nodes share, or give
# --mirror.url. Within a SLURM job: srun --ntasks-per-node=1 configs/cluster/torchrun.sh ...
set -euo pipefail
: "${NODES:?how many nodes}" "${GPUS:?how many GPUs on each}" "${HEAD:?host:port of the first node}"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else a restart meets the addresses of the start before (pytorch #135712)
# torchrun hands SIGUSR1 on to nobody and would end by it
(
    trap '' USR1
    exec torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" --rdzv-backend=c10d --rdzv-endpoint="$HEAD" \
        --rdzv-id="${RUN_ID:-pocketgan}" --max-restarts="${RESTARTS:-3}" -m pocketgan fit "$@" --ckpt_path=last \
        --trainer.num_nodes="$NODES" --trainer.devices="$GPUS" --trainer.strategy="${STRATEGY:-ddp_find_unused_parameters_true}"
) &
agent=$!
trap 'pkill -USR1 -P $agent || true' USR1 # it has no processes at its start and between two
trap 'kill -TERM $agent' TERM INT HUP
while kill -0 $agent 2>/dev/null; do # a signal ends the wait, not the agent
    wait $agent || true
done
wait $agent # its own exit status, which bash remembers
