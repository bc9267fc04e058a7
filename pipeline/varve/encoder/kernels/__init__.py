"""Compiled code for CPUs and Triton kernels for GPUs, with torch as the fallback."""
