#!/usr/bin/env bash
# Starts a phase, or any lexlip command, in several processes on one node or many, and again when one of them dies.
#
#   bash scripts/launch.sh Phase1 with task_Text_MAE_Contrastive_train beit16_base224 ...    # every GPU of this machine
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 bash scripts/launch.sh Phase1 with ...            # on node0
#   NNODES=2 NODE_RANK=1 MASTER_ADDR=node0 bash scripts/launch.sh Phase1 with ...            # on the other
#   bash scripts/launch.sh --max-restarts 0 Phase2 with ...
#
# Variables: NNODES (1; 1:4 for an elastic run), NODE_RANK, MASTER_ADDR, MASTER_PORT (29500), NPROC_PER_NODE (num_gpus if
# given, else the number of GPUs, else 1), MAX_RESTARTS (3); docs/RUNNING.md has the others and the exit statuses.
# Paths count from where it is started.
set -euo pipefail
here=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
PYTHONPATH=$PWD:$PWD/datasets${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
cd "$here"
exec "$python" -m lexlip.launch "$@"
