"""Lineages: how each of those who publish VGGs names, orders and feeds them."""
