"""From pair shards and a teacher to its trajectories: cached, beside the trainers, or in them."""
