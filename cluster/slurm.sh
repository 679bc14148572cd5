#!/bin/bash
# One Ray cluster on the nodes of a Slurm job, with one verb on it:
#   sbatch --nodes 4 cluster/slurm.sh label bundle /shared/faces /shared/labels
# Before: a Python environment with fer_scale on a file system that all nodes see; FER_SCALE_ENV names it.
# After a time limit or a lost node the same command goes on (tune, train: with --resume).
#SBATCH --job-name=fer-scale
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-task=0
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --output=fer-scale-%j.log
set -euo pipefail

source "${FER_SCALE_ENV:-.venv}/bin/activate"
readarray -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000))  # another one for each job: nodes may be shared

# Other users reach these ports: only who knows the token is let in. It stays in this job's environment.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_ADDRESS="$address:$port"
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # since Slurm 22.05 srun no longer takes it from sbatch
resources=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_PER_TASK:-0}")
scratch=/tmp/ray-$SLURM_JOB_ID  # short: Unix sockets lie below it

srun --nodes=1 --ntasks=1 --nodelist="$head" --export=ALL \
    ray start --head --node-ip-address="$address" --port="$port" --temp-dir="$scratch" \
    --include-dashboard=false "${resources[@]}" --block &
for _ in $(seq 60); do
    ray health-check --address="$RAY_ADDRESS" 2>/dev/null && break
    sleep 2
done
others=$((SLURM_JOB_NUM_NODES - 1))
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --exclude="$head" --export=ALL \
        ray start --address="$RAY_ADDRESS" "${resources[@]}" --block &
    sleep 15
fi

# The batch shell, on the first node, passes Slurm's SIGTERM on, two minutes before the end, so that the verb ends as
# after Ctrl-C. Under srun it would be killed: srun takes SIGTERM as the end of the step.
fer-scale "$@" &
verb=$!
trap 'kill -TERM "$verb"' TERM
while true; do
    code=0
    wait "$verb" || code=$?  # a signal ends the wait, but not yet the verb
    kill -0 "$verb" 2>/dev/null || break
done
exit "$code"
