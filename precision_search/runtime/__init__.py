"""How graphs run: sessions, heads, buffers, the generator, teacher forcing, the reference, timing."""
