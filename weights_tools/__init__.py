"""From checkpoints to bundles: reads diffusers pipeline directories, builds graphs, converts, makes random models."""
