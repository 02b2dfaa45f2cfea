"""What people see: progress on a terminal, tables, reports as text and as a page."""
