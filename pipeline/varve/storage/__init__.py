"""Object stores and file systems. Only this folder accesses them."""
