"""Signature texts as data: good ones, wrong ones, and what both mean."""
