"""The mathematics of noise: paths, objectives and samplers. Knows images of any shape, nothing of tokens."""
