"""Learning without Ray: one fit(), its augmentation, metrics, calibration and what a bundle promises."""

import os

# PyTorch reads it at its first allocation: tensors of 2 MiB and more lie in huge pages where the kernel has them, and a
# step on a CPU does not wait for its pages one by one (docs/results.md).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
