"""What a run stands on: Ray joined or started, what its nodes have, how the work is spread over them."""
