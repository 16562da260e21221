"""Encoders, decoders, and readers of the weights that others published."""
