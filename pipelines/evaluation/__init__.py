"""Evaluation of networks and baselines on a split of the pairs: figures, intervals and a report page."""
