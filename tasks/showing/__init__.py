"""What people look at: the comparison, the plots, the page."""
