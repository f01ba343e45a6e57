"""`roost simulate`: replay a trace of requests under several policies, and compare the results.

trace_files.py      trace and nodes from files        ┐
request_streams.py  streams of requests from a trace  ├→ command.py → placement/replay.py → report.py
(the scheduler)     nodes as they are now             ┘
"""
