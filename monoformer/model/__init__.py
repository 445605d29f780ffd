"""The single-device network: no optimiser, no noise, no files.

Shapes in comments: B rows, T tokens, D width, H query heads, G key-value heads, K head width, V vocabulary, N images
(blocks of patch tokens) of one size, P patches in one, C latent channels, p patch side, S keys a query may look at.
"""
