"""From image pairs in any layout at any URL to pair shards."""
