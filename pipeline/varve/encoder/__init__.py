"""The encoder on one device: token ids in, features out. Needs torch, transformers and numpy only."""
