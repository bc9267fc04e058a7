"""The encoder on one device: token ids in, features out. Needs only torch, transformers and numpy."""
