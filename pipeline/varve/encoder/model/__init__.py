"""The forward pass: attention, layers, pooling and heads, and the check against eager transformers."""
