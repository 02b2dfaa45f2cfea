"""What goes out: progress, tables, run files, published models with their cards."""
