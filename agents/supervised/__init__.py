"""Gates that learn by supervision: Gumbel-softmax, DFS, SkipNet, BlockDrop."""
