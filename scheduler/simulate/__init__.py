"""`roost simulate`: replay a trace or recorded requests under several policies."""
