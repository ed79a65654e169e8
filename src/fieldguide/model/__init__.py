"""Models: weights, the vision encoder, the projector, the language model, and their assembly."""
