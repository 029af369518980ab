"""From pair shards and a teacher to its trajectories: cached, or computed during training."""
