"""A view's side: one environment in local memory, kept right by messages, and the lease that proves it."""
