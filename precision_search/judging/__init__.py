"""What is known of a plan: sample sets, ranges, screen, confirm run, flip risk, latency, verdict."""
