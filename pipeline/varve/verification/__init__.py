"""Proofs that an output is right: one part, the whole output, the canary."""
