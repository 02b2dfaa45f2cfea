"""What a plan costs: shapes, launches, the latency estimate, and the minimum cut that places casts."""
