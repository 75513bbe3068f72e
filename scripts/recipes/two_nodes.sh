#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# One training run on several machines with torchrun. Run it on every machine, each with its own NODE_RANK:
#
#   NODE_RANK=0 MASTER_ADDR=10.0.0.1 scripts/recipes/two_nodes.sh scripts/finetune.py --bf16   # on the first machine
#   NODE_RANK=1 MASTER_ADDR=10.0.0.1 scripts/recipes/two_nodes.sh scripts/finetune.py --bf16   # on the second one
#
# Data, model and output_dir must be the same on all machines: on a shared disk. The batch size is that of one process.
# With sam_scope "device" the first pass sends nothing (see docs/scaling.md).
# Tested: two launches, as if on two machines, train one model on CPUs (with --use_cpu, gloo). Not yet run on GPUs.
set -euo pipefail
: "${NODE_RANK:?is the number of this machine, from 0}" "${MASTER_ADDR:?is the address of machine 0}"
exec python -m torch.distributed.run \
  --nnodes "${NODES:-2}" --node_rank "$NODE_RANK" --nproc_per_node "${PROCESSES:-gpu}" \
  --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}" "$@"
