"""Learning without Ray: one fit(), its augmentation, metrics, calibration and the space that a search draws from."""
