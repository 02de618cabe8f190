"""Trains kiv's reference models: small, and good at finding facts in long texts."""
