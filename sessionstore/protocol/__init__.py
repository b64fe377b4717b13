"""What passes between Redis and this library: key names, scripts, calls, replies, messages and operations."""
