"""Object stores and file systems: the only folder that talks to them."""
