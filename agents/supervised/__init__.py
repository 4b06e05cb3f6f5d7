"""Training of gates with Gumbel-softmax, DFS, SkipNet and BlockDrop."""
