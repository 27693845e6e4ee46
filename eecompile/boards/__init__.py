"""Boards: their files, what this machine is, and files made from machines and device trees."""
