"""Facts about a graph, derived from its operators' declarations."""
