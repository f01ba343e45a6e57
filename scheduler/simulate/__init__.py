"""`roost simulate`: replay a trace of requests under several policies, and compare the results."""
