"""Everything that Ray does: clusters and slots, trials by Tune, ranks of one training, client mode."""
