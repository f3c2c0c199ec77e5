"""Schedules that ship with tilus, one JSON file for each op and target, and the script that writes them."""
