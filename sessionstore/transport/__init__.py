"""What both drivers share of redis-py: connecting, RESP, and the meaning of errors."""
