"""How a bundle runs: sessions, heads, the generator, teacher forcing, the reference, timing, device profiles."""
