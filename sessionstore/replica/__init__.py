"""A view's side: one environment in local memory, kept up to date by messages, and the lease that proves it."""
