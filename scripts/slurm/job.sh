# shellcheck shell=bash
# Sourced by the .sbatch files beside it, with the root of the repository as the working folder.
set -euo pipefail

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts[0]:?scontrol names no host of $SLURM_JOB_NODELIST}
# Another job on the same nodes has another id; the range lies below the ports that systems hand out by themselves.
export MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
export NNODES=$SLURM_JOB_NUM_NODES RUN_ID=$SLURM_JOB_ID

# on_nodes COMMAND...: run it once on every node, until all are done. A job that was asked to stop before it was done
# goes back into the queue; one that is being cancelled, or that SLURM has put back by itself, is left alone.
on_nodes() {
  local status steps='' asked='' again
  # srun hands SIGUSR1 on; SIGTERM would make it kill the processes at once.
  trap 'asked=yes again=yes; [ -z "$steps" ] || kill -USR1 "$steps" 2>/dev/null || true' USR1 TERM
  # shellcheck disable=SC2016  # each node's own SLURM_NODEID
  srun --ntasks-per-node=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    --kill-on-bad-exit=0 --wait=0 \
    bash -c 'NODE_RANK=$SLURM_NODEID exec "$@"' node "$@" &
  steps=$!
  while :; do  # a signal ends `wait` before srun ends
    again='' status=0
    wait "$steps" || status=$?
    [ -n "$again" ] || break
  done
  if [ "$status" -eq 0 ] || { [ "$status" -ne 75 ] && [ -z "$asked" ]; }; then
    return "$status"
  fi
  if [[ $(scontrol show job --oneliner "$SLURM_JOB_ID") == *JobState=RUNNING* ]]; then
    echo "job $SLURM_JOB_ID goes back into the queue; it will go on from its last checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
  fi
  return "$status"
}
