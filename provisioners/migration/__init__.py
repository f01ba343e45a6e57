"""Translates kernelspecs of Enterprise Gateway, Gateway Provisioners and Remote Provisioners into roost's.

report       what became of each option, and the whole translation
"""
