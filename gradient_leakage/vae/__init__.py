"""The VAE codec: updates as a few numbers that can be summed. An encoder alone is no privacy mechanism."""
