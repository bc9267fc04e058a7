"""Vectors as plain arrays: `.npy` files, or one `.fbin` or `.u8bin` file."""
