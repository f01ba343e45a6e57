"""The files of a migration: it finds old kernelspecs, writes new ones, and removes these again.

    find_kernelspecs ──> translate ──> plan_result ──> plan_all_settings ──> write_run
                                                       find_migrated ──> undo_all

run                one run: its kernelspecs, and the result for each
found_kernelspecs  the kernelspecs of the three systems, in the folders that Jupyter searches
target             the folder that Jupyter searches before the old one, and the old one put aside if there is none
mark               the mark in a kernelspec that a migration has written, with its digest
plan               the new kernelspec of an old one, and whether it is there already
undo               removes new kernelspecs, and puts old ones back
shown_document     a kernel.json without its secrets, and the difference of two
settings_file      the `jupyter_roost_config.json` that the new kernelspecs need
"""
