"""Flags, files, devices, run folders and pictures: no science. Skip it at first."""
