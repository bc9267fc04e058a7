"""The forward pass: attention, layers, pooling and heads, and the parity check against eager transformers."""
